"""A mixed shard: it both prefills and decodes."""
