"""The gateway: OpenAI's HTTP API and the SDK's bus in front of a cluster."""
