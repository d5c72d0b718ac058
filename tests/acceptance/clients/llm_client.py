"""llm, the command: a prompt with and without a stream, a conversation, a schema, and tools."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from served import model_of

LLM = Path(sys.executable).parent / "llm"
MODELS = """\
- model_id: sps2
  model_name: {model}
  api_base: {url}/v1
  supports_schema: true
  supports_tools: true
"""
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOL = '''\
def weather(city: str) -> str:
    """The weather of a city."""
    return f"Rain in {city}."
'''


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "extra-openai-models.yaml"
        path.write_text(MODELS.format(model=model_of(url), url=url))

        def llm(*arguments: str) -> str:
            done = subprocess.run(
                [LLM, *arguments],
                env=os.environ | {"LLM_USER_PATH": folder},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        short, long = (("-m", "sps2", "-o", "max_tokens", most) for most in ("16", "200"))
        assert llm("prompt", *short, "Name a river.")
        assert llm("prompt", *short, "--no-stream", "Name a river.")
        assert llm("prompt", *short, "--continue", "Another.")
        answer = llm("prompt", *long, "--schema", json.dumps(SCHEMA), "Is Paris large?")
        assert json.loads(answer)["size"] in ("small", "large")
        assert llm("prompt", *short, "--functions", TOOL, "The weather in Oslo?")


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
