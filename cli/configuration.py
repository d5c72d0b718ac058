"""`spsctl config`: the documented example configuration."""

from sps2.common import config as configuration


def config() -> None:
    """Print a configuration file with every key, its default and its meaning."""
    print(configuration.example(), end="")
