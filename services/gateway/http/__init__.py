"""The gateway's HTTP server: connections, limits, routes, errors, server-sent events."""
