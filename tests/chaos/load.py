"""What clients do during a run, drawn from its seed, and what they see."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from sps2.common.client import AsyncClient
from sps2.common.errors import ServiceError

LENGTHS = (3, 17, 40, 90, 150, 230, 330, 400)
ANSWER_TOKENS = 48
GAP = 1e-3
"""Least distance of the best two log-probabilities where greedy tokens are compared: the order of
additions, which differs from plan to plan, changes less."""

Prompt = tuple[int, ...]


def prompts(number: int) -> list[Prompt]:
    """Prompts of all lengths; a third of them begin alike."""
    drawn = random.Random(5)
    shared = [drawn.randrange(3, 380) for _ in range(200)]
    made = []
    for index in range(number):
        length = LENGTHS[index % len(LENGTHS)] + index // len(LENGTHS)
        own = [drawn.randrange(3, 380) for _ in range(length)]
        made.append(tuple((shared + own)[:length] if index % 3 == 2 else own))
    return made


@dataclass(frozen=True)
class Known:
    """A prompt, and the greedy answer without faults, as far as it is certain."""

    prompt: Prompt
    answer: tuple[str, ...]
    ids: tuple[int, ...]


async def known(client: AsyncClient, wanted: int) -> list[Known]:
    """The fault-free answers to prompts, by a cluster that is left in peace."""

    async def ask(prompt: Prompt) -> Known:
        answer = await client.complete(
            list(prompt),
            max_tokens=ANSWER_TOKENS,
            temperature=0,
            ignore_eos=True,
            logprobs=3,
            return_token_ids=True,
        )
        choice = answer.choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.top_logprobs is not None
        certain = 0
        for top in choice.logprobs.top_logprobs:
            best = sorted(top.values(), reverse=True)  # tokens with the same text are one
            if len(best) < 2 or best[0] - best[1] < GAP:
                break
            certain += 1
        tokens = choice.logprobs.tokens[:certain]
        return Known(prompt, tuple(tokens), tuple(choice.token_ids or ())[:certain])

    found = await asyncio.gather(*map(ask, prompts(wanted)))
    return [each for each in found if len(each.answer) >= 4]


@dataclass
class Plan:
    """One stream of a run: what its client does, and when."""

    known: Known
    tokens: int
    after_s: float
    way: str
    """`bus` or `http`."""
    leaves_after: int | None = None
    """The client goes away after so many tokens."""
    slow_s: float = 0.0
    """The client waits so long before it reads the next token."""
    is_turn: bool = False
    """The prompt is sent with the first half of its answer: a second turn."""


@dataclass
class Seen:
    """What became of a stream."""

    plan: Plan
    tokens: list[str] = field(default_factory=list)
    end: str = ""
    """`answer`, `left`, or the error's type."""
    message: str = ""
    times_s: list[float] = field(default_factory=list)
    """When it was sent, when each token came, and when it ended."""
    wrong: str = ""
    """What must not have been."""

    @property
    def took_s(self) -> float:
        return self.times_s[-1] - self.times_s[0]

    def stage(self, at_s: float) -> str:
        """Where it was at a time."""
        if at_s < self.times_s[0] or at_s > self.times_s[-1]:
            return "not there"
        return "before its first token" if at_s < self.times_s[1] else "in its answer"


def drawn(number: int, bank: Sequence[Known], streams: int) -> list[Plan]:
    """The streams of the seed of this number."""
    seed = random.Random(f"load {number}")
    plans = []
    for _ in range(streams):
        item = seed.choice(bank)
        way = seed.choice(("bus", "http"))
        is_turn = seed.random() < 0.25 and len(item.answer) > 8
        most = len(item.answer) - (len(item.answer) // 2 if is_turn else 0)
        plan = Plan(item, seed.randint(1, most), 2.5 * seed.random(), way, is_turn=is_turn)
        if seed.random() < 0.2:
            plan.leaves_after = seed.randrange(plan.tokens)
        elif seed.random() < 0.2:
            plan.slow_s = 0.1 * seed.random()
        plans.append(plan)
    return plans


async def run(plan: Plan, address: str | Sequence[str], url: str) -> Seen:
    """Be the client of one stream, to its end."""
    seen = Seen(plan)
    await asyncio.sleep(plan.after_s)
    seen.times_s.append(time.monotonic())
    try:
        if plan.way == "bus":
            await _over_bus(plan, address, seen)
        else:
            await _over_http(plan, url, seen)
    except ServiceError as error:
        seen.end, seen.message = type(error).__name__, str(error)
    except httpx.TransportError as error:
        seen.end, seen.message = "Broken", f"{type(error).__name__}: {error}"
    seen.times_s.append(time.monotonic())
    _judge(plan, seen)
    return seen


def _request(plan: Plan) -> tuple[list[int], dict[str, Any]]:
    half = len(plan.known.answer) // 2 if plan.is_turn else 0
    prompt = [*plan.known.prompt, *plan.known.ids[:half]]
    return prompt, {"max_tokens": plan.tokens, "temperature": 0, "logprobs": 0, "ignore_eos": True}


async def _over_bus(plan: Plan, address: str | Sequence[str], seen: Seen) -> None:
    prompt, parameters = _request(plan)
    async with (
        AsyncClient(address, connect_s=60.0) as client,
        aclosing(client.complete_stream(prompt, **parameters)) as chunks,
    ):
        async for chunk in chunks:
            for choice in chunk.choices:
                if await _took(plan, seen, choice.logprobs.tokens if choice.logprobs else []):
                    return
                _ended(seen, choice.finish_reason)


async def _over_http(plan: Plan, url: str, seen: Seen) -> None:
    prompt, parameters = _request(plan)
    body = {"prompt": prompt, "stream": True, **parameters}
    async with (
        httpx.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
        client.stream("POST", f"{url}/v1/completions", json=body) as answer,
    ):
        if answer.status_code != 200:
            problem = json.loads(await answer.aread())["error"]
            seen.end, seen.message = str(answer.status_code), f"{problem['message']}"
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                seen.wrong += "two ends; " if seen.end else ""
                seen.end, seen.message = event["error"]["code"], event["error"]["message"]
                continue
            for choice in event["choices"]:
                tokens = (choice.get("logprobs") or {}).get("tokens", [])
                if await _took(plan, seen, tokens):
                    return
                _ended(seen, choice.get("finish_reason"))


async def _took(plan: Plan, seen: Seen, tokens: Sequence[str]) -> bool:
    """Note tokens; returns whether the client goes away now."""
    if seen.end:
        seen.wrong += "text after the end; " if tokens else ""
    for token in tokens:
        seen.tokens.append(token)
        seen.times_s.append(time.monotonic())
        if plan.leaves_after is not None and len(seen.tokens) > plan.leaves_after:
            seen.end = "left"
            return True
        await asyncio.sleep(plan.slow_s)
    return False


def _ended(seen: Seen, finish_reason: str | None) -> None:
    if finish_reason is not None:
        seen.wrong += "two ends; " if seen.end else ""
        seen.end = "answer"


def _judge(plan: Plan, seen: Seen) -> None:
    half = len(plan.known.answer) // 2 if plan.is_turn else 0
    right = list(plan.known.answer[half : half + plan.tokens])
    if seen.tokens != right[: len(seen.tokens)]:
        place = [a == b for a, b in zip(seen.tokens, [*right, "?"], strict=False)].index(False)
        seen.wrong += f"token {place} differs; "
    if seen.end == "answer" and len(seen.tokens) != plan.tokens:
        seen.wrong += f"{len(seen.tokens)} of {plan.tokens} tokens; "
    if not seen.end:
        seen.wrong += "it ended without an answer and without an error; "
    elif seen.end not in ("answer", "left") and not seen.message:
        seen.wrong += "an error without words; "
