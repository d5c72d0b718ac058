"""Workloads: requests with lengths and times, read from traces or drawn from distributions."""
