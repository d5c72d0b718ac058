"""lm_eval over local-completions: log-likelihoods and generation, of a task with its own data."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from served import model_of

LM_EVAL = Path(sys.executable).parent / "lm_eval"
ROWS = [
    {"text": "The capital of France is", "options": ["Paris", "Rome", "green"], "best": 0},
    {"text": "The colour of grass is", "options": ["France", "green", "Rome"], "best": 1},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
output_type: {kind}
"""
CHOICES = """\
doc_to_choice: "{{options}}"
doc_to_target: best
metric_list: [{metric: acc}]
"""
GENERATION = """\
doc_to_target: "{{options[best]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def main(url: str, tokenizer: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
        for task, kind, more in (
            ("chosen", "multiple_choice", CHOICES),
            ("written", "generate_until", GENERATION),
        ):
            text = TASK.format(name=task, data=data, kind=kind)
            (folder / f"{task}.yaml").write_text(text + more)
        model = f"model={model_of(url)},base_url={url}/v1/completions,tokenizer={tokenizer}"
        command = [LM_EVAL, "run", "--model", "local-completions", "--model_args", model]
        command += ["--tasks", "chosen,written", "--include_path", name, "--output_path", name]
        subprocess.run(command, check=True, timeout=300)
        (path,) = folder.rglob("results*.json")
        results = json.loads(path.read_text())["results"]
    assert 0 <= results["chosen"]["acc,none"] <= 1, results
    assert 0 <= results["written"]["exact_match,none"] <= 1, results


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("ok")
