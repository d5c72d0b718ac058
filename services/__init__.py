"""The processes of a cluster, one package each, and the code that they share."""
