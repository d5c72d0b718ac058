"""The KV directory: leases of pages, and which prefixes are cached where."""
