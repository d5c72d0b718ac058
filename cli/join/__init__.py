"""`spsctl join`: this machine's shards become a part of a cluster that runs elsewhere."""
