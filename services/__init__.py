"""The processes of a cluster, one package each, and what they have in common."""
