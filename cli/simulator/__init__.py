"""Simulates a cluster in discrete events, with the scheduler's core and KV directory that serve."""
