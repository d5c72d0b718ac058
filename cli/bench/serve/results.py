"""The result file of a run: JSON with the keys of `vllm bench serve`, and a few more."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from sps2.cli.bench.serve.metrics import Result
from sps2.cli.bench.serve.reply import Reply
from sps2.cli.workload.arrivals import Arrivals


@dataclass(frozen=True)
class Setting:
    """What was run. metadata: pairs that the user wants in the file."""

    backend: str
    label: str | None
    model: str
    tokenizer: str | None
    dataset: str
    num_prompts: int
    arrivals: Arrivals
    burstiness: float
    max_concurrency: int | None
    metadata: Mapping[str, str]
    at: datetime

    @property
    def rate(self) -> float | str:
        """JSON has no infinity."""
        return "inf" if math.isinf(self.arrivals.rate) else self.arrivals.rate


def as_dict(setting: Setting, result: Result, metrics: Sequence[str]) -> dict[str, Any]:
    """The figures by their names in the file. metrics: those whose percentiles are wanted."""
    found: dict[str, Any] = {
        "date": setting.at.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": setting.backend,
        "backend": setting.backend,
        "label": setting.label,
        "model_id": setting.model,
        "tokenizer_id": setting.tokenizer,
        "dataset": setting.dataset,
        "num_prompts": setting.num_prompts,
        **setting.metadata,
        "request_rate": setting.rate,
        "burstiness": "inf" if math.isinf(setting.burstiness) else setting.burstiness,
        "max_concurrency": setting.max_concurrency,
    }
    if setting.arrivals.last_rate is not None:
        found["ramp_up_strategy"] = setting.arrivals.strategy
        found["ramp_up_start_rps"] = setting.arrivals.rate
        found["ramp_up_end_rps"] = setting.arrivals.last_rate
    found |= {
        "duration": result.duration_s,
        "completed": result.completed,
        "failed": result.failed,
        "unfinished": result.unfinished,
        "unsent": result.unsent,
        "total_input_tokens": result.input_tokens,
        "total_cached_tokens": result.cached_tokens,
        "total_output_tokens": result.output_tokens,
        "request_throughput": result.request_throughput,
        "request_goodput": result.request_goodput,
        "output_throughput": result.output_throughput,
        "total_token_throughput": result.total_token_throughput,
        "max_output_tokens_per_s": result.peak_output_tokens,
        "max_concurrent_requests": result.peak_requests,
        "p99_client_lag_ms": result.late_ms,
    }
    for name in metrics:
        summary = result.summaries[name]
        found[f"mean_{name}_ms"] = summary.mean
        found[f"median_{name}_ms"] = summary.median
        found[f"std_{name}_ms"] = summary.std
        for percent, value in summary.percentiles.items():
            found[f"p{percent:g}_{name}_ms"] = value
    found["error_counts"] = dict(result.errors)
    return found


def details(replies: Sequence[Reply], started_s: float) -> dict[str, Any]:
    """What is known of each request, in the order of sending; times in seconds."""
    return {
        "input_lens": [reply.prompt_tokens for reply in replies],
        "output_lens": [reply.answer_tokens for reply in replies],
        "ttfts": [reply.ttft_s if reply.stamps_s else 0.0 for reply in replies],
        "itls": [
            [after - before for before, after in pairwise(stamps)]
            for stamps in (reply.stamps_s for reply in replies)
        ],
        "latencies": [reply.e2el_s if reply.stamps_s else 0.0 for reply in replies],
        "start_times": [reply.sent_s - started_s if reply.sent_s else None for reply in replies],
        "queue_times": [reply.queue_s if reply.sent_s else None for reply in replies],
        "generated_texts": [reply.text for reply in replies],
        "errors": [reply.error for reply in replies],
    }


def file_name(setting: Setting) -> str:
    """As `vllm bench serve` names it."""
    arrivals = setting.arrivals
    load = f"{setting.rate}qps"
    if arrivals.last_rate is not None:
        load = f"ramp-up-{arrivals.strategy}-{arrivals.rate:g}qps-{arrivals.last_rate:g}qps"
    if setting.max_concurrency is not None:
        load += f"-concurrency{setting.max_concurrency}"
    model = setting.model.rsplit("/", 1)[-1] or "model"
    date = setting.at.strftime("%Y%m%d-%H%M%S")
    return f"{setting.label or setting.backend}-{load}-{model}-{date}.json"


def title(setting: Setting) -> str:
    """The run in one line."""
    rate = "all at once" if setting.rate == "inf" else f"{setting.rate:g} requests/s"
    if setting.arrivals.last_rate is not None:
        rate = f"{setting.arrivals.rate:g} to {setting.arrivals.last_rate:g} requests/s"
    return f"{setting.model}, {setting.num_prompts} requests of {setting.dataset}, {rate}"


def write(found: Mapping[str, Any], path: Path, is_appended: bool) -> None:
    """Write a result, or add it as a further line. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(found)
    with path.open("ab" if is_appended else "wb") as file:
        if file.tell():
            file.write(b"\n")
        file.write(line)
