"""`vllm bench serve`: a short benchmark by each of its backends of texts and embeddings."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from served import model_of

VLLM = Path(sys.executable).parent / "vllm"
REQUESTS, TOKENS = 4, 8
BACKENDS = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "openai-embeddings": "/v1/embeddings",
}


def main(url: str, tokenizer: str) -> None:
    model = model_of(url)
    for backend, path in BACKENDS.items():
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "backend": backend,
                "base-url": url,
                "endpoint": path,
                "model": model,
                "tokenizer": tokenizer,
                "dataset-name": "random",
                "random-input-len": "32",
                "random-output-len": str(TOKENS),
                "num-prompts": str(REQUESTS),
                "max-concurrency": "2",
                "result-dir": folder,
                "result-filename": "result.json",
            }
            given = [part for name, value in options.items() for part in (f"--{name}", value)]
            command = [VLLM, "bench", "serve", *given, "--save-result", "--disable-tqdm"]
            is_text = not backend.endswith("embeddings")
            if is_text:
                command.append("--ignore-eos")
            subprocess.run(command, check=True, timeout=300)
            result = json.loads((Path(folder) / "result.json").read_text())
        assert (result["completed"], result.get("failed", 0)) == (REQUESTS, 0), result
        if is_text:
            assert result["total_output_tokens"] == REQUESTS * TOKENS, result
            assert result["mean_ttft_ms"] > 0, result


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("ok")
