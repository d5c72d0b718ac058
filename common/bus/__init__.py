"""Typed calls and events between services over ZeroMQ."""
