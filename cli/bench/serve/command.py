"""`spsctl bench serve`: the load generator's command line."""

import asyncio
import math
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from sps2.cli import render
from sps2.cli.bench.serve import flags
from sps2.cli.bench.serve.metrics import METRICS, computed, parse_goals
from sps2.cli.target import ConfigOption, NameOption
from sps2.cli.workload.arrivals import Strategy
from sps2.common.errors import Invalid

Kind = Literal["openai", "vllm", "openai-chat", "sps2", "sps2-chat"]
ENDPOINT = "/v1/completions"
CHAT_ENDPOINT = "/v1/chat/completions"
OF_TEXT = ("text", "sonnet", "custom", "conversations")
"""Datasets of real text, whose answers may end by themselves."""
LOAD, LENGTHS, OUTPUT = "Load", "Dataset", "Output"


def serve(
    backend: Annotated[
        Kind, typer.Option(help="API to ask; vllm is the same as openai, sps2 is the SDK.")
    ] = "openai",
    base_url: Annotated[
        str | None,
        typer.Option(
            help="The server, such as https://host:8000; of sps2 such as tcp://host:8001."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Host of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    endpoint: Annotated[
        str | None, typer.Option(help="Path that requests are sent to, if not the API's.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE to send with each request.")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Do not check the server's certificate.")] = False,
    model: Annotated[
        str | None, typer.Option(help="The model's name there; its first one if not given.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A model as for `spsctl pull`, or a folder, whose tokenizer counts."),
    ] = None,
    dataset_name: Annotated[
        str,
        typer.Option(
            help="random, trace, text, custom, conversations; or lengths: azure-conv, azure-code, "
            "mooncake, sharegpt, arxiv, agents, mixed, fixed:PROMPT,ANSWER, ...",
            rich_help_panel=LENGTHS,
        ),
    ] = "random",
    dataset_path: Annotated[
        Path | None, typer.Option(help="File of the dataset.", rich_help_panel=LENGTHS)
    ] = None,
    num_prompts: Annotated[
        int, typer.Option(min=1, help="Number of requests.", rich_help_panel=LENGTHS)
    ] = 1000,
    input_len: Annotated[
        int | None,
        typer.Option(
            "--random-input-len",
            "--input-len",
            min=1,
            help="Tokens of a prompt of random (1024) and text (550).",
            rich_help_panel=LENGTHS,
        ),
    ] = None,
    output_len: Annotated[
        int | None,
        typer.Option(
            "--random-output-len",
            "--output-len",
            min=1,
            help="Tokens of an answer, for datasets whose answers have no length.",
            rich_help_panel=LENGTHS,
        ),
    ] = None,
    random_range_ratio: Annotated[
        float,
        typer.Option(help="Random lengths differ by up to this share.", rich_help_panel=LENGTHS),
    ] = 0.0,
    random_prefix_len: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens that all random prompts begin with, besides their own.",
            rich_help_panel=LENGTHS,
        ),
    ] = 0,
    prompts: Annotated[
        Literal["tokens", "text"],
        typer.Option(
            help="What prompts consist of; chats and files of text are always text.",
            rich_help_panel=LENGTHS,
        ),
    ] = "tokens",
    vocab_size: Annotated[
        int | None,
        typer.Option(min=300, help="Token ids are below this (30000).", rich_help_panel=LENGTHS),
    ] = None,
    length_scale: Annotated[
        float,
        typer.Option(help="Lengths of a trace are multiplied by this.", rich_help_panel=LENGTHS),
    ] = 1.0,
    longest_prompt: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longer prompts of a trace are left out.", rich_help_panel=LENGTHS
        ),
    ] = None,
    time_span: Annotated[
        float | None,
        typer.Option(
            min=0, help="Send only what a trace has in these seconds.", rich_help_panel=LENGTHS
        ),
    ] = None,
    think_time: Annotated[
        float,
        typer.Option(
            min=0,
            help="Mean seconds before the next turn of a conversation of a file.",
            rich_help_panel=LENGTHS,
        ),
    ] = 0.0,
    num_sessions: Annotated[
        int | None,
        typer.Option(
            min=1, help="Send only so many sessions of a trace, whole.", rich_help_panel=LENGTHS
        ),
    ] = None,
    think_scale: Annotated[
        float,
        typer.Option(
            min=0,
            help="Pauses in the sessions of a trace are multiplied by this.",
            rich_help_panel=LENGTHS,
        ),
    ] = 1.0,
    longest_think_time: Annotated[
        float | None,
        typer.Option(
            min=0, help="Longer pauses of a trace are cut to it.", rich_help_panel=LENGTHS
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of everything drawn; another one makes other prompts.")
    ] = 0,
    request_rate: Annotated[
        float,
        typer.Option(
            help="Requests per second, or sessions; inf: all at once. A trace keeps its own "
            "times, stretched to this rate.",
            rich_help_panel=LOAD,
        ),
    ] = math.inf,
    burstiness: Annotated[
        float,
        typer.Option(
            help="Shape of the gaps' gamma distribution: 1 is a Poisson process, less is burstier, "
            "inf is regular.",
            rich_help_panel=LOAD,
        ),
    ] = 1.0,
    self_timed: Annotated[
        bool, typer.Option(help="Keep the times of a trace.", rich_help_panel=LOAD)
    ] = True,
    ramp_up_strategy: Annotated[
        Strategy | None, typer.Option(help="How the rate changes.", rich_help_panel=LOAD)
    ] = None,
    ramp_up_start_rps: Annotated[
        float | None, typer.Option(help="First rate of a ramp.", rich_help_panel=LOAD)
    ] = None,
    ramp_up_end_rps: Annotated[
        float | None, typer.Option(help="Last rate of a ramp.", rich_help_panel=LOAD)
    ] = None,
    max_concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests in work at once; others wait.", rich_help_panel=LOAD),
    ] = None,
    num_warmups: Annotated[
        int,
        typer.Option(min=0, help="Requests before the run, not measured.", rich_help_panel=LOAD),
    ] = 0,
    ready_check_timeout_sec: Annotated[
        float,
        typer.Option(min=0, help="Wait so long for the server to answer.", rich_help_panel=LOAD),
    ] = 0.0,
    ignore_eos: Annotated[
        bool | None,
        typer.Option(
            "--ignore-eos/--no-ignore-eos",
            help="Have every answer as long as asked for; the default for all but text.",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Of sampling.")] = None,
    extra_body: Annotated[
        str | None, typer.Option(help="JSON object: further fields of each request.")
    ] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            help="Goals in ms, such as ttft:200 tpot:50, that good requests meet.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    goals: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    percentile_metrics: Annotated[
        str,
        typer.Option(help=f"Metrics to show, of {','.join(METRICS)}.", rich_help_panel=OUTPUT),
    ] = "ttft,tpot,itl,e2el",
    metric_percentiles: Annotated[
        str, typer.Option(help="Percentiles to show, such as 50,90,99.", rich_help_panel=OUTPUT)
    ] = "99",
    save_result: Annotated[
        bool, typer.Option("--save-result", help="Write a JSON file.", rich_help_panel=OUTPUT)
    ] = False,
    save_detailed: Annotated[
        bool,
        typer.Option(
            "--save-detailed", help="Write each request's times too.", rich_help_panel=OUTPUT
        ),
    ] = False,
    append_result: Annotated[
        bool,
        typer.Option("--append-result", help="Add a line to the file.", rich_help_panel=OUTPUT),
    ] = False,
    result_dir: Annotated[
        Path | None, typer.Option(help="Folder of the file.", rich_help_panel=OUTPUT)
    ] = None,
    result_filename: Annotated[
        str | None, typer.Option(help="Name of the file.", rich_help_panel=OUTPUT)
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Of the run, for the file.", rich_help_panel=OUTPUT)
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the file.", rich_help_panel=OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture (PNG).", rich_help_panel=OUTPUT)
    ] = None,
    progress: Annotated[
        bool,
        typer.Option("--progress/--no-progress", help="Show what goes on.", rich_help_panel=OUTPUT),
    ] = True,
    disable_tqdm: Annotated[bool, typer.Option("--disable-tqdm", hidden=True)] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Put load on a server of OpenAI's API, or a cluster, and measure what its clients see.

    Flags are named as in `vllm bench serve`, and figures are defined as there. Ctrl-C ends the run
    and shows what was measured.
    """
    from sps2.cli.bench.serve import datasets, report, results, run  # not needed for --help
    from sps2.cli.bench.serve.jobs import Wanted

    if plot is not None and find_spec("matplotlib") is None:
        raise Invalid("--plot needs matplotlib; get it with `pip install 'sps2[bench]'`")
    if goals and not goodput:
        raise typer.BadParameter(f"unexpected argument {goals[0]!r}; see --help")
    wanted_goals = parse_goals([*(goodput or []), *(goals or [])])
    metrics = flags.metrics_of(percentile_metrics)
    percents = flags.percents_of(metric_percentiles)
    pairs = flags.pairs_of("--metadata", metadata or [])
    arrivals = flags.arrivals_of(
        request_rate, burstiness, ramp_up_strategy, ramp_up_start_rps, ramp_up_end_rps
    )
    is_chat = backend.endswith("-chat")
    wanted = Wanted(
        name=dataset_name,
        path=dataset_path,
        count=num_prompts,
        prompt_tokens=input_len,
        answer_tokens=output_len,
        range_ratio=random_range_ratio,
        prefix_tokens=random_prefix_len,
        arrivals=arrivals,
        is_self_timed=self_timed,
        scale=length_scale,
        longest=longest_prompt,
        span_s=time_span,
        think_scale=think_scale,
        longest_think_s=longest_think_time,
        sessions=num_sessions,
        think_s=think_time,
        is_chat=is_chat,
        is_text=is_chat or prompts == "text",
        seed=seed,
    )
    if ignore_eos is None:
        ignore_eos = dataset_name not in OF_TEXT
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    fields = {key: value for key, value in sampling.items() if value is not None}
    fields |= ({"ignore_eos": True} if ignore_eos else {}) | {**flags.object_of(extra_body)}
    is_sdk = backend in ("sps2", "sps2-chat")
    target = run.Target(
        is_sdk=is_sdk,
        url=base_url or (None if is_sdk else flags.url_of(host, port)),
        endpoint=endpoint or (CHAT_ENDPOINT if is_chat else ENDPOINT),
        headers=flags.headers_of(header or []),
        is_insecure=insecure,
        model=model,
        fields=fields,
        name=name,
        config=config,
    )
    tokens = run.tokenizer_of(tokenizer)
    jobs = datasets.jobs(wanted, run.prompts_of(tokens, vocab_size, seed), tokens)
    order = run.Order(
        ready_check_timeout_sec, num_warmups, max_concurrency, progress and not disable_tqdm
    )
    found_model, load = asyncio.run(run.run(target, order, jobs))

    result = computed(
        load.replies, load.ended_s - load.started_s, percents, wanted_goals, load.unsent
    )
    setting = results.Setting(
        backend=backend,
        label=label,
        model=found_model,
        tokenizer=tokenizer,
        dataset=dataset_name if dataset_path is None else dataset_path.name,
        num_prompts=len(jobs),
        arrivals=arrivals,
        burstiness=burstiness,
        max_concurrency=max_concurrency,
        metadata=pairs,
        at=datetime.now(),
    )
    report.show(result, metrics)
    if save_result or append_result:
        found = results.as_dict(setting, result, metrics)
        if save_detailed:
            found |= results.details(load.replies, load.started_s)
        path = (result_dir or Path()) / (result_filename or results.file_name(setting))
        results.write(found, path, append_result)
        print(path)
    if plot is not None:
        from sps2.cli.bench.serve.plots import draw

        draw(load.replies, load.started_s, results.title(setting), plot)
        print(plot)
    if load.is_interrupted:
        render.say_error("interrupted: the figures are of the requests that had ended")
        raise typer.Exit(130)
    if not result.completed:
        raise typer.Exit(1)
