"""Code that services and clients share: messages, bus, data plane, configuration, model."""
