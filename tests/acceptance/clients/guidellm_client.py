"""guidellm: a short benchmark of chats and of completions."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from served import model_of

GUIDELLM = Path(sys.executable).parent / "guidellm"
REQUESTS, TOKENS = 4, 8


def main(url: str, folder: str) -> None:
    model = model_of(url)
    for path in ("/v1/chat/completions", "/v1/completions"):
        backend = f"kind=openai_http,target={url},model={model},request_format={path}"
        with tempfile.TemporaryDirectory() as results:
            output = Path(results) / "report.json"
            options = {
                "backend": backend,
                "profile": "kind=concurrent,streams=2",
                "constraint": f"kind=max_requests,count={REQUESTS}",
                "tokenizer": f"kind=huggingface_auto,model={folder}",
                "data": f"kind=synthetic_text,prompt_tokens=32,output_tokens={TOKENS}",
                "output": f"kind=json,path={output}",
            }
            given = [part for name, value in options.items() for part in (f"--{name}", value)]
            subprocess.run([GUIDELLM, "run", *given, "--disable-console"], check=True, timeout=300)
            (benchmark,) = json.loads(output.read_text())["benchmarks"]
        done = benchmark["metrics"]["request_totals"]
        assert (done["successful"], done["errored"]) == (REQUESTS, 0), done
        tokens = benchmark["metrics"]["output_token_count"]["successful"]["mean"]
        assert tokens == TOKENS, tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("ok")
