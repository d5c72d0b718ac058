"""The sampling options of a request: its own, the model's defaults, and token ids of its words."""

from typing import TypeVar

from sps2.common.api import ChatRequest, CompletionRequest, Parameters
from sps2.common.errors import Invalid
from sps2.common.messages import Sampling
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.limits import BAD, check_ids
from sps2.services.gateway.served_model import Served

R = TypeVar("R")

COLD = 1e-5
"""Temperatures below this are greedy: logits over less would overflow."""


def sampling_of(
    request: CompletionRequest | ChatRequest,
    served: Served,
    tokenizer: Tokenizer,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None,
    grammar: str,
) -> Sampling:
    """Sampling options without seed and limit; fields that are not set get the defaults.

    Args:
        prompt_logprobs: alternatives that are needed at least, besides the request's own field.
        grammar: see `Sampling`.

    Raises:
        Invalid: a field has ids that the model lacks, or no token is left to draw.
    """
    wanted = served.sampling_defaults
    temperature = _or(request.temperature, _or(wanted.temperature, 1.0))
    top_p = _or(request.top_p, _or(wanted.top_p, 1.0))
    scored = [each for each in (prompt_logprobs, request.prompt_logprobs) if each is not None]
    allowed = tuple(dict.fromkeys(request.allowed_token_ids or ()))
    check_ids(allowed, served, "allowed_token_ids")
    sampling = Sampling(
        max_tokens=0,
        seed=0,
        temperature=0.0 if temperature < COLD or top_p == 0 else temperature,
        top_p=top_p or 1.0,
        top_k=max(0, _or(request.top_k, _or(wanted.top_k, 0))),
        min_p=_or(request.min_p, _or(wanted.min_p, 0.0)),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, _or(wanted.repetition_penalty, 1.0)),
        logit_bias=_logit_bias(request, served),
        logprobs=logprobs,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=_stop_ids(request, served, tokenizer),
        prompt_logprobs=max(scored, default=None),
        allowed_token_ids=allowed,
        bad_words=_bad_words(request, tokenizer),
        grammar=grammar,
    )
    _check_drawable(sampling)
    return sampling


def _check_drawable(sampling: Sampling) -> None:
    banned = {words[0] for words in sampling.bad_words if len(words) == 1}
    if sampling.min_tokens:
        banned.update(sampling.stop_token_ids)
    if sampling.allowed_token_ids and banned.issuperset(sampling.allowed_token_ids):
        raise Invalid(
            "no token can be drawn: `bad_words`, or `min_tokens`, ban all `allowed_token_ids`",
            "allowed_token_ids",
            BAD,
        )


def _bad_words(request: Parameters, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it begins a text, and as one that follows a space."""
    found: list[tuple[int, ...]] = []
    for word in request.bad_words or ():
        bare = word.lstrip()
        ids, spaced = (
            tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (bare, f" {bare}")
        )
        if not ids:
            raise Invalid(f"`bad_words` has {word!r}, which has no tokens", "bad_words", BAD)
        found.append(ids)
        if spaced[0] != ids[0] and len(spaced) == len(ids):
            found.append(spaced)
    return tuple(dict.fromkeys(found))


def _logit_bias(request: Parameters, served: Served) -> dict[int, float]:
    bias = {}
    for token, value in (request.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise Invalid(f"`logit_bias` has {token[:40]!r} for a token id", "logit_bias", BAD)
        bias[int(token)] = value
    check_ids(list(bias), served, "logit_bias")
    return bias


def _stop_ids(request: Parameters, served: Served, tokenizer: Tokenizer) -> tuple[int, ...]:
    given = request.stop_token_ids or []
    check_ids(given, served, "stop_token_ids")
    own = () if request.ignore_eos else served.eos_ids
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    # the text of a special token is not shown, so stop strings cannot be found in it
    special = [tokenizer.special[stop] for stop in stops if stop in tokenizer.special]
    return tuple(dict.fromkeys([*own, *given, *special]))


def _or(value: R | None, default: R) -> R:
    return default if value is None else value
