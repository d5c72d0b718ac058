"""Searches for the cluster that serves a workload within its SLOs best, by simulating it."""
