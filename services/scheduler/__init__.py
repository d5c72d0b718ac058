"""The scheduler: decides which shards run a prompt, which keep its KV, and when."""
