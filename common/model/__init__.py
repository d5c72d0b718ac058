"""The transformer: configuration, weights, layers, sampling, tensor parallelism."""
