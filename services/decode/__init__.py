"""A decode shard: keeps KV pages and generates tokens in a running batch."""
