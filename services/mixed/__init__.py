"""A mixed shard: it prefills and decodes."""
