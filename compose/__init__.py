"""Images, Docker Compose files and Kubernetes manifests."""
