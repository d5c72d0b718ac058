"""The transformer: configuration, weights, layers, rotary embedding, sampling, tensor parallelism."""
