"""Runs the gateway: `python -m sps2.services.gateway --config FILE`."""

from sps2.services.gateway.main import serve
from sps2.services.run import run

if __name__ == "__main__":
    run("gateway", serve)
