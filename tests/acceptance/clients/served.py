"""What a cluster serves, for clients that do not ask."""

import json
from urllib.request import urlopen


def model_of(url: str) -> str:
    """The name of the served model."""
    with urlopen(f"{url}/v1/models", timeout=60) as answer:
        name: str = json.load(answer)["data"][0]["id"]
    return name
