"""A prefill shard: one rank of the groups that compute prompts together."""
