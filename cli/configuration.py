"""`spsctl config`: the documented example configuration."""

from sps2.common import config_text


def config() -> None:
    """Print a configuration file with every key, its default and its meaning."""
    print(config_text.example(), end="")
