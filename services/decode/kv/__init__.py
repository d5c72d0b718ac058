"""The KV that a decode shard keeps: its pool, pages of requests, cached pages."""
