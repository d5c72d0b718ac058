"""API keys of HTTP clients, with their quotas."""
