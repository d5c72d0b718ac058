"""What is measured of a peer. Every time is taken here, in one way, as its tokens come in."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import quantiles

from peers.peer import Fields, Peer, PeerFailed, Reply
from prompts import Prompts

Values = dict[str, float]
"""What one measurement found, by the name of the figure, which ends with its unit."""
MS = 1e3
MIB = 1 << 20

POLL_S = 0.01
SAMPLE_S = 0.25
PAUSE_S = 0.5
"""For a peer to settle: before a conversation's second turn, and after streams were left."""
PACE_S = 0.5
"""Between two short prompts."""
ALONE = 16
"""Short prompts that are asked while nothing else runs."""
BESIDE_ANSWER = 1
"""Tokens of the answers to these: more of them would measure decoding too."""
QUESTION_TOKENS = 64
"""Of a conversation's second turn."""
AFTER_TOKENS = 4
"""That each stream still gets after a newcomer's first token, before the next one comes."""


def percentile(values: Sequence[float], percent: int) -> float:
    """Linear between the two nearest values."""
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]


async def ttft(peer: Peer, prompt: list[int], fields: Fields) -> Values:
    """Of one request alone."""
    reply = Reply()
    await peer.ask([prompt], 2, [reply], fields)
    return {"TTFT, s": reply.ttft_s}


async def tbt(peer: Peer, prompt: list[int], tokens: int) -> Values:
    """Between the tokens of one request alone."""
    reply = Reply()
    await peer.ask([prompt], tokens + 1, [reply])
    return _tbt(reply.gaps_s, 50, 95)


async def streams(
    peer: Peer, prompts: list[list[int]], tokens: int, newcomers: list[list[int]], room: int
) -> Values:
    """Of several requests at once, while all of them decode.

    Args:
        tokens: that each gets while it is measured.
        newcomers: prompts that are then asked one after another, if the peer takes them while the
            streams run.
        room: tokens that a stream's answer may have.
    """
    replies = [Reply() for _ in prompts]
    wanted = room if peer.is_server else tokens + 1
    running = asyncio.create_task(peer.ask(prompts, wanted, replies))
    try:
        await _each_has(replies, 1, running)
        marks = [len(reply.stamps_s) for reply in replies]
        await _each_has(replies, tokens, running, marks)
        values = steady(replies)
        for newcomer in newcomers if peer.is_server else []:
            values |= await _stall(peer, newcomer, replies, running)
        return values
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(PAUSE_S)


def steady(replies: Sequence[Reply]) -> Values:
    """Of the time in which every stream decodes: from the last first token to now."""
    start = max(reply.stamps_s[0] for reply in replies)
    end = min(reply.stamps_s[-1] for reply in replies)
    inside = [[at for at in reply.stamps_s if start <= at <= end] for reply in replies]
    gaps = [gap for stamps in inside for gap in Reply(stamps_s=stamps).gaps_s]
    total = sum(start < at for stamps in inside for at in stamps)
    return {"all streams, tokens/s": total / (end - start)} | _tbt(gaps, 50, 95, 99)


def _tbt(gaps_s: Sequence[float], *percents: int) -> Values:
    return {f"TBT p{percent}, ms": MS * percentile(gaps_s, percent) for percent in percents}


async def _stall(
    peer: Peer, newcomer: list[int], replies: Sequence[Reply], running: asyncio.Task[None]
) -> Values:
    """The longest time that a stream had no token while a newcomer's prompt was computed."""
    reply = Reply()
    await peer.ask([newcomer], 1, [reply])
    marks = [len(each.stamps_s) for each in replies]
    await _each_has(replies, AFTER_TOKENS, running, marks)
    stall = max(
        after - before
        for each in replies
        for before, after in zip(each.stamps_s, each.stamps_s[1:], strict=False)
        if after > reply.sent_s and before < reply.stamps_s[0]
    )
    tokens = len(newcomer)
    return {
        f"longest stall by a newcomer of {tokens}, ms": MS * stall,
        f"TTFT of that newcomer of {tokens}, s": reply.ttft_s,
    }


async def beside(
    peer: Peer, make: Callable[..., list[int]], short: int, middle: int, long: int, number: int
) -> Values:
    """Short prompts alone and beside the prefill of a long one; then one of middle length.

    Args:
        make: gives a prompt of a number of tokens, by its name.
        short, middle, long: tokens of the prompts.
    """
    numbers = itertools.count()

    async def ask(tokens: int) -> float:
        reply = Reply()
        prompt = make(tokens, "beside", number, next(numbers))
        await peer.ask([prompt], BESIDE_ANSWER, [reply])
        return reply.ttft_s

    async def pace(until: Callable[[int], bool]) -> list[float]:
        asked: list[asyncio.Task[float]] = []
        while not until(len(asked)):
            asked.append(asyncio.create_task(ask(short)))
            await asyncio.sleep(PACE_S)
        return await asyncio.gather(*asked)

    alone = await pace(lambda count: count == ALONE)
    long_alone_s = await ask(long)
    under_way = asyncio.create_task(ask(long))
    await asyncio.sleep(PACE_S / 2)
    together = await pace(lambda _: under_way.done())
    long_beside_s = await under_way
    under_way = asyncio.create_task(ask(long))
    await asyncio.sleep(0.4 * long_alone_s)
    middle_s = await ask(middle)
    was_first = not under_way.done()
    found = {"alone": alone, f"beside {long}": together}
    values = {
        f"TTFT of {short} {name} p{percent}, ms": MS * percentile(samples, percent)
        for name, samples in found.items()
        for percent in (50, 99)
    }
    return values | {
        f"p99 TTFT of {short}, times that alone": percentile(together, 99) / percentile(alone, 99),
        f"TTFT of {long} alone, s": long_alone_s,
        f"TTFT of {long} beside {short}, times that alone": long_beside_s / long_alone_s,
        f"TTFT of {middle} beside {long}, s": middle_s,
        f"times that {middle} was first": float(was_first),
        f"TTFT of {long} beside {middle}, s": await under_way,
    }


async def _each_has(
    replies: Sequence[Reply],
    tokens: int,
    running: asyncio.Task[None],
    marks: Sequence[int] | None = None,
) -> None:
    """Wait until each stream has `tokens` tokens beyond its mark. Raises PeerFailed if one ends."""
    goals = [tokens + mark for mark in marks or [0] * len(replies)]
    while any(len(r.stamps_s) < goal for r, goal in zip(replies, goals, strict=True)):
        if running.done():
            await running
            if all(len(r.stamps_s) >= goal for r, goal in zip(replies, goals, strict=True)):
                return
            raise PeerFailed("a stream ended before it could be measured; give it more room")
        await asyncio.sleep(POLL_S)


async def turns(peer: Peer, prompts: Prompts, tokens: int, answer: int, number: int) -> Values:
    """Of a conversation: a first turn of `tokens` tokens, its answer, and a second turn."""
    first, second = Reply(), Reply()
    prompt = prompts.make(tokens, "turns", number)
    await peer.ask([prompt], answer, [first])
    await asyncio.sleep(PAUSE_S)
    question = prompts.make(QUESTION_TOKENS, "question", number)
    await peer.ask([prompt + prompts.encode(first.text) + question], 2, [second])
    return {
        "TTFT of the first turn, s": first.ttft_s,
        "TTFT of the second turn, s": second.ttft_s,
        "second turn over first": second.ttft_s / first.ttft_s,
    }


async def start(peer: Peer, prompt: list[int]) -> Values:
    """From the start of its process."""
    await peer.start()
    ready_s = time.perf_counter() - peer.process.since_s
    reply = Reply()
    await peer.ask([prompt], 2, [reply])
    return {
        "ready, s": ready_s,
        "first token, s": reply.stamps_s[0] - peer.process.since_s,
    }


async def memory(peer: Peer, prompt: list[int], tokens: int) -> Values:
    """The most that all its processes have while they answer one prompt."""
    asking = asyncio.create_task(peer.ask([prompt], tokens, [Reply()]))
    samples = [peer.process.memory()]
    while not asking.done():
        await asyncio.wait({asking}, timeout=SAMPLE_S)
        samples.append(peer.process.memory())
    await asking
    most = max(samples, key=lambda sample: sample.pss)
    return {
        "memory, MiB": most.pss / MIB,
        "of it anonymous, MiB": most.anonymous / MIB,
        "of it files, MiB": most.file / MIB,
        "of it shared memory, MiB": most.shared / MIB,
    }
