"""Made runs: servers in a queue, with known answers."""

import heapq
import random

from sps2.cli.simulator.outcomes import Activity, Delay, Outcome, Run


def outcome(name: str, arrived_s: float = 0.0, ttft_s: float | None = 1.0, **fields) -> Outcome:
    """A request of 100 tokens with 11 answer tokens, 0.1 s apart; `ttft_s` None: it got none."""
    first_s = None if ttft_s is None else arrived_s + ttft_s
    made = {
        "session": "",
        "arrived_s": arrived_s,
        "prompt_tokens": 100,
        "answer_tokens": 11,
        "first_s": first_s,
        "ended_s": None if first_s is None else first_s + 1.0,
        "alone_s": 0.5,
        "degree": 1,
        "epochs": 1,
    }
    return Outcome(name, **{**made, **fields})


def run_of(outcomes: list[Outcome], *, policy: str = "fcfs", margin: float = 0.0, **fields) -> Run:
    ends = [each.ended_s for each in outcomes if each.ended_s is not None]
    made = {"profile": "a100", "rate": 1.0, "seed": 1, "stopped_s": max(ends, default=0.0)}
    return Run(
        policy=policy,
        cluster="2 x A100",
        shards=("mixed-0", "mixed-1"),
        workload="made",
        model="llama",
        margin=margin,
        outcomes=outcomes,
        **{**made, **fields},
    )


def queued(
    load: float,
    *,
    count: int = 1000,
    seed: int = 1,
    noise: int = 1,
    shortest_first: bool = False,
    burst: tuple[int, int] | None = None,
    **fields,
) -> Run:
    """Two shards with a queue: 95 % of requests take 0.3 s on average, the others 6 s.

    load: of capacity. seed: of the workload. noise: seed of the computing times' 5 % of noise.
    burst: requests of these numbers all arrive at once.
    """
    draw, jitter = random.Random(seed), random.Random(noise)
    rate = load * 2 / (0.95 * 0.3 + 0.05 * 6)
    time = 0.0
    waiting: list[tuple[float, int, int, float]] = []
    requests: list[tuple[float, int, int, float]] = []
    for number in range(count):
        if not (burst and burst[0] < number < burst[1]):
            time += draw.expovariate(rate)
        is_long = draw.random() < 0.05
        tokens = draw.randint(100_000, 500_000) if is_long else draw.randint(400, 2200)
        work_s = tokens / (50_000 if is_long else 4333)
        requests.append((time, number, tokens, work_s * jitter.uniform(0.95, 1.05)))
    free = [(0.0, 0), (0.0, 1)]
    now, following = 0.0, 0
    outcomes: list[Outcome] = []
    activities: list[Activity] = []
    while following < count or waiting:
        at, shard = heapq.heappop(free)
        now = max(now, at, requests[following][0] if not waiting else 0.0)
        while following < count and requests[following][0] <= now:
            waiting.append(requests[following])
            following += 1
        waiting.sort(key=lambda each: each[2] if shortest_first else each[1])
        arrived_s, number, tokens, work_s = waiting.pop(0)
        heapq.heappush(free, (now + work_s, shard))
        delays = [Delay("turn", arrived_s, now)] if now > arrived_s else []
        made = outcome(
            f"request-{number}",
            arrived_s,
            now + work_s - arrived_s,
            prompt_tokens=tokens,
            alone_s=work_s,
            delays=delays,
            sent_bytes={"kv": 100.0 * tokens},
        )
        outcomes.append(made)
        activities.append(
            Activity(f"mixed-{shard}", "prefill", now, now + work_s, f"request-{number}")
        )
    policy = "sjf" if shortest_first else "fcfs"
    return run_of(
        outcomes, **{"policy": policy, "rate": round(rate, 3), "activities": activities, **fields}
    )
