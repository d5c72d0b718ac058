"""Whether short prompts should wait for company: the best waiting rule beside none.

    python benchmarks/batching.py [--base-ms 26 --row-ms 0.29 --rows 64 --most 16]

A shard that prefills short prompts is a server of batches: a pass of b prompts takes `base` and b
times `rows * row`. SPS2 begins a pass as soon as one is waiting (continuous batching). The other
extreme is a table from a semi-Markov decision process that says for each number of waiting prompts
whether to begin or to wait for the next one: the least mean number of prompts in the system, found
by relative value iteration of the chain embedded at decisions, with Poisson arrivals (SMDP-based
dynamic batching, arXiv 2301.12865). Printed is the mean time from arrival to the end of the pass.
"""

import argparse
import math

ROOM = 48
"""Prompts that may wait; more are as many."""
ROUNDS = 1600


def poisson(mean: float, most: int) -> list[float]:
    """Probabilities of 0 to `most` arrivals, the last one of all beyond."""
    found = [math.exp(-mean)]
    for count in range(1, most):
        found.append(found[-1] * mean / count)
    return [*found, max(0.0, 1 - sum(found))]


def arrived(waiting: int, size: int, chances: list[float]) -> list[tuple[int, float]]:
    """How many wait at the end of a pass of `size`, with the chance of each."""
    return [(min(ROOM, waiting - size + n), chance) for n, chance in enumerate(chances)]


def in_system_s(waiting: int, rate: float, took_s: float) -> float:
    """The integral of the number of prompts in the system during a pass, its own included."""
    return waiting * took_s + rate * took_s * took_s / 2


def best_table(rate: float, times: list[float], most: int) -> list[bool]:
    """For each number of waiting prompts: whether to begin a pass."""
    chances = [poisson(rate * took, ROOM) for took in times]
    begins = [False] * (ROOM + 1)
    low, high = 0.0, float(ROOM)
    for _ in range(40):  # the least mean number is where the best relative cost is zero
        gain = (low + high) / 2
        value = [0.0] * (ROOM + 1)
        for _ in range(ROUNDS // 40):
            new = list(value)
            for waiting in range(1, ROOM + 1):
                size = min(waiting, most)
                took = times[size]
                run = in_system_s(waiting, rate, took) - gain * took
                run += sum(p * value[n] for n, p in arrived(waiting, size, chances[size]))
                wait = math.inf
                if waiting < ROOM:
                    wait = (waiting - gain) / rate + value[waiting + 1]
                begins[waiting] = run <= wait
                new[waiting] = min(run, wait)
            new[0] = -gain / rate + value[1]
            shift = new[0]
            value = [each - shift for each in new]
        low, high = (gain, high) if shift > 0 else (low, gain)
    return begins


def mean_s(rate: float, times: list[float], most: int, begins: list[bool]) -> float:
    """Mean time in the system under a table, by the stationary chain (Little's law)."""
    chances = [poisson(rate * took, ROOM) for took in times]
    share = [1.0] + [0.0] * ROOM
    for _ in range(ROUNDS):
        new = [0.0] * (ROOM + 1)
        for waiting, mass in enumerate(share):
            if not mass:
                continue
            if waiting and (begins[waiting] or waiting == ROOM):
                size = min(waiting, most)
                for n, p in arrived(waiting, size, chances[size]):
                    new[n] += mass * p
            else:
                new[waiting + 1] += mass
        share = [(a + b) / 2 for a, b in zip(share, new, strict=True)]
    area = time_s = 0.0
    for waiting, mass in enumerate(share):
        if waiting and (begins[waiting] or waiting == ROOM):
            took = times[min(waiting, most)]
            area += mass * in_system_s(waiting, rate, took)
            time_s += mass * took
        else:
            area += mass * waiting / rate
            time_s += mass / rate
    return area / time_s / rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-ms", type=float, default=26.0, help="of a pass")
    parser.add_argument("--row-ms", type=float, default=0.29, help="of each token in it")
    parser.add_argument("--rows", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--most", type=int, default=16, help="prompts of a pass")
    options = parser.parse_args()
    times = [
        (options.base_ms + size * options.rows * options.row_ms) / 1e3
        for size in range(options.most + 1)
    ]
    capacity = options.most / times[-1]
    always = [True] * (ROOM + 1)
    print("| load | prompts/s | at once, ms | best table, ms | gain | it waits below |")
    print("|---|---|---|---|---|---|")
    for load in (0.1, 0.3, 0.5, 0.7, 0.9):
        rate = load * capacity
        table = best_table(rate, times, options.most)
        greedy, best = (mean_s(rate, times, options.most, each) for each in (always, table))
        least = next(n for n in range(1, ROOM + 1) if table[n])
        print(
            f"| {load} | {rate:.1f} | {1e3 * greedy:.1f} | {1e3 * best:.1f} | "
            f"{1 - best / greedy:.1%} | {least} |"
        )


if __name__ == "__main__":
    main()
