"""aiperf: a short benchmark of chats in streams, and of completions."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from served import model_of

AIPERF = Path(sys.executable).parent / "aiperf"
REQUESTS, TOKENS = 4, 8


def main(url: str, tokenizer: str) -> None:
    model = model_of(url)
    for kind in ("chat", "completions"):
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "model": model,
                "url": url,
                "endpoint-type": kind,
                "tokenizer": tokenizer,
                "concurrency": "2",
                "request-count": str(REQUESTS),
                "isl": "32",
                "osl": str(TOKENS),
                "extra-inputs": "ignore_eos:true",
                "workers-max": "2",
                "ui": "none",
                "output-artifact-dir": folder,
            }
            given = [part for name, value in options.items() for part in (f"--{name}", value)]
            subprocess.run([AIPERF, "profile", *given, "--streaming"], check=True, timeout=300)
            (path,) = Path(folder).rglob("*aiperf.json")
            report = json.loads(path.read_text())
        assert report["request_count"]["avg"] == REQUESTS
        assert report["usage_completion_tokens"]["avg"] == TOKENS
        assert report["time_to_first_token"]["avg"] > 0


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("ok")
