"""Attention to KV on other shards: queries go there, attention states come back."""
