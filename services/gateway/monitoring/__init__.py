"""The gateway's reports: metrics, traces, readiness, the state of the cluster."""
