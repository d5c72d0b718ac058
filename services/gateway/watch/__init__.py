"""What the gateway reports: metrics, traces, readiness, the state of the cluster."""
