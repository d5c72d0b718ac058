"""`spsctl keys`: keys of the bus, API keys, keys of clients."""
