"""What services and clients share: messages, the bus, the data plane, configuration, the model."""
