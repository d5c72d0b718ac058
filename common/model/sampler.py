"""Sampling of the next token: penalties, truncation, and a draw that any shard can repeat."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from msgspec.structs import replace
from torch import Tensor

from sps2.common.errors import Invalid, Unsound
from sps2.common.grammar import Matcher
from sps2.common.messages import FinishReason, Sampling, Token, TokenLogprobs
from sps2.common.model.banned import Banned
from sps2.common.model.token_counts import Tally
from sps2.kernels import gpu
from sps2.kernels.contracts import Choices
from sps2.kernels.sample import drawn, sample

KINDS = (torch.float32, torch.float32, torch.int32, torch.float32, torch.float64)
"""Of the columns of `Choices`."""
NO_NUMBER = -1
"""Stands for the most likely token of a row that has none."""


class Sampler:
    """Draws the tokens of one request, and keeps the counts that its penalties need.

    The draw of token `index` depends on the seed, the index and the logits alone, so that it is
    the same on any shard, in any batch, and after a restart. Steps, in order: repetition penalty
    (on prompt and answer, as transformers), presence and frequency penalties (on the answer, as
    OpenAI), `logit_bias`, `allowed_token_ids` and `bad_words`, `min_tokens`, temperature, `min_p`,
    `top_k`, `top_p`. Ids beyond the vocabulary, which the gateway refuses, are ignored. Of equally
    likely tokens the lowest id is the most likely one.

    A grammar bans what may not follow, after the penalties and bans and before the temperature. An
    answer ends where its grammar does: then nothing but an end is left to draw.

    Args:
        prompt: token ids, [tokens] int64; the last `sampling.answered` belong to the answer.
        matcher: of `sampling.grammar`, behind the answer's tokens in `prompt`; None for free text.
    """

    def __init__(self, sampling: Sampling, prompt: Tensor, matcher: Matcher | None = None) -> None:
        assert (matcher is None) == (not sampling.grammar), "a grammar needs its matcher"
        self._sampling = sampling
        self._matcher = matcher
        repeats = sampling.repetition_penalty != 1
        counts = bool(sampling.presence_penalty or sampling.frequency_penalty)
        answer = prompt[len(prompt) - sampling.answered :]
        self._seen = Tally(prompt) if repeats else None
        self._said = Tally(answer) if counts else None
        bans = bool(sampling.allowed_token_ids or sampling.bad_words)
        self._banned = Banned(sampling, answer) if bans else None
        unchanged = not (
            repeats
            or counts
            or bans
            or sampling.logit_bias
            or sampling.min_tokens
            or sampling.grammar
        )
        self.greedy = sampling.temperature == 0 and unchanged
        """Whether each token is simply the most likely one."""
        self.plain = unchanged and sampling.logprobs is None
        """Whether tokens depend on the model's logits alone, and none are to be returned: they are
        drawn where the logits are."""

    def seen(self, token: int) -> None:
        """Count a token of the answer for the penalties, the bans and the grammar."""
        for tally in (self._said, self._seen):
            if tally is not None:
                tally.add(token)
        if self._banned is not None:
            self._banned.seen(token)
        if self._matcher is not None:
            self._matcher.advance(token)

    def next(self, logits: Tensor, index: int) -> Token:
        """Draw token number `index` of the answer. logits: [vocab] float32, left as they are.

        Raises:
            Unsound: the logits are not finite numbers.
            Invalid: no token is left that may be drawn, or the grammar needs too much work.
        """
        scores = logits if self.greedy else self._penalised(logits, index)
        best = int(most_likely(scores))
        if best == NO_NUMBER and self._matcher is not None and index < self._sampling.min_tokens:
            scores = self._penalised(logits, self._sampling.min_tokens)  # only an end may follow
            best = int(most_likely(scores))
        if best == NO_NUMBER:
            require_numbers(int(most_likely(logits)))
            raise Invalid("no token is left to draw: all are banned", None, "invalid_value")
        return self.accept(drawn(scores, *self.choice(index)), logits, index)

    def choice(self, index: int) -> tuple[float, float, int, float, float]:
        """The row of `Choices` for token number `index`."""
        sampling = self._sampling
        digest = hashlib.blake2b(f"{sampling.seed}/{index}".encode(), digest_size=8).digest()
        draw = (int.from_bytes(digest, "little") >> 11) / 2**53
        return sampling.temperature, sampling.min_p, sampling.top_k, sampling.top_p, draw

    def accept(self, token: int, logits: Tensor | None, index: int) -> Token:
        """Make `token` number `index` of the answer. `logits` may be None if `plain`.

        Raises:
            Unsound: `token` is `NO_NUMBER`.
        """
        require_numbers(token)
        sampling = self._sampling
        self.seen(token)
        finish: FinishReason | None = None
        if token in sampling.stop_token_ids or (self._matcher and self._matcher.ended):
            finish = "stop"
        elif index + 1 >= sampling.max_tokens:
            finish = "length"
        logprobs = None
        if sampling.logprobs is not None and logits is not None:
            logprobs = score(logits[None], [token], sampling.logprobs)[0]
        return Token(index, token, logprobs, finish)

    def _penalised(self, logits: Tensor, index: int) -> Tensor:
        sampling = self._sampling
        scores = logits.clone()
        vocab = len(scores)
        if self._seen is not None:
            seen, _ = self._seen.within(vocab)
            penalty = sampling.repetition_penalty
            values = scores[seen]
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._said is not None:
            said, counts = self._said.within(vocab)
            scores[said] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        for token, bias in sampling.logit_bias.items():
            if 0 <= token < vocab:
                scores[token] += bias
        if self._banned is not None:
            self._banned.apply(scores)
        if index < sampling.min_tokens:
            scores[_ids(sampling.stop_token_ids, vocab)] = -torch.inf
        if self._matcher is not None:
            self._matcher.ban(scores.numpy())
        return scores


def needed(
    samplers: Sequence[Sampler], logits: Tensor, indices: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The tokens of rows with plain samplers, and what `draw` needs of the others.

    Args:
        logits: [rows, vocab] on any device.
        indices: numbers of the tokens in their answers.

    Returns:
        Tokens of all rows, drawn or the most likely ones, with `NO_NUMBER` for rows without one;
        and the logits of the rows whose samplers are not plain.
    """
    tokens = most_likely(logits)
    random = [row for row, each in enumerate(samplers) if each.plain and not each.greedy]
    if random:
        about = zip(*(samplers[row].choice(indices[row]) for row in random), strict=True)
        choices = Choices(
            *(
                gpu.upload(torch.tensor(column, dtype=dtype), logits.device)
                for column, dtype in zip(about, KINDS, strict=True)
            )
        )
        here = _rows(random, len(samplers), logits.device)
        found = sample(_of(logits, here), choices)
        if here is None:
            tokens = torch.where(tokens == NO_NUMBER, tokens, found)
        else:
            best = tokens[here]
            tokens[here] = torch.where(best == NO_NUMBER, best, found)
    others = [row for row, each in enumerate(samplers) if not each.plain]
    return tokens, _of(logits, _rows(others, len(samplers), logits.device))


def _rows(rows: Sequence[int], count: int, device: torch.device) -> Tensor | None:
    """Rows as an index on the device; None for all."""
    return None if len(rows) == count else gpu.upload(torch.tensor(rows, dtype=torch.int64), device)


def _of(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def draw(
    samplers: Sequence[Sampler], best: Tensor, scores: Tensor, indices: Sequence[int]
) -> list[Token | Exception]:
    """Draw each sampler's next token from the result of `needed`, on the host.

    If a sampler raises, its row has the error, so that it does not affect other requests.
    """
    likely = best.tolist()
    rows = iter(scores)
    tokens: list[Token | Exception] = []
    for each, token, index in zip(samplers, likely, indices, strict=True):
        row = None if each.plain else next(rows)
        try:
            if row is None or each.greedy:
                tokens.append(each.accept(token, row, index))
            else:
                tokens.append(each.next(row, index))
        except Exception as error:
            tokens.append(error)
    return tokens


def most_likely(logits: Tensor) -> Tensor:
    """The best token of each row, the lowest of equals: [..., vocab] -> [...] int64.

    `NO_NUMBER` where the best is infinite or a logit is NaN, as after an overflow.
    """
    best, tokens = logits.max(-1)  # NaN if one of them is
    return tokens.masked_fill(~best.isfinite(), NO_NUMBER)


def require_numbers(token: int) -> None:
    """Check a result of `most_likely`.

    Raises:
        Unsound: it is `NO_NUMBER`.
    """
    if token == NO_NUMBER:
        raise Unsound(
            "the model's logits are not finite numbers: its weights are damaged, or overflow in "
            "this dtype; try --dtype float32, or check the model's files"
        )


def score(logits: Tensor, tokens: Sequence[int], alternatives: int) -> list[TokenLogprobs]:
    """Log-probability of one token per row, and of the most likely ones, before any penalty.

    Args:
        logits: [rows, vocab] float32.
        alternatives: how many of the most likely tokens to list, best first, then by id.

    Raises:
        Unsound: logits are not finite numbers.
    """
    for token in most_likely(logits).tolist():
        require_numbers(token)
    logprobs = logits.log_softmax(-1)
    best = _top(logits, min(alternatives, logits.shape[-1]))
    values = logprobs.gather(-1, best)
    chosen = logprobs.gather(-1, torch.as_tensor(tokens, dtype=torch.int64)[:, None])[:, 0]
    return [
        TokenLogprobs(own, tuple(zip(ids, of_ids, strict=True)))
        for own, ids, of_ids in zip(chosen.tolist(), best.tolist(), values.tolist(), strict=True)
    ]


def _top(logits: Tensor, count: int) -> Tensor:
    """Ids of the `count` best tokens, best first, equals by id: [rows, count]."""
    values, ids = logits.topk(min(count + 1, logits.shape[-1]), dim=-1)
    if count and values.shape[-1] > count:
        for row in (values[:, count - 1] == values[:, count]).nonzero()[:, 0].tolist():
            least = values[row, count]  # a tie for the last place: topk chose any of them
            better = int((values[row] > least).sum())
            equal = (logits[row] == least).nonzero()[: count - better, 0]
            ids[row, better:count] = equal
    ids = ids[:, :count].sort(-1).values
    order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def prompt_logprobs(logits: Tensor, targets: Tensor, alternatives: int) -> list[TokenLogprobs]:
    """As `score`, for the prompt's tokens, with their ranks: targets [rows] int64."""
    scores = score(logits, targets.tolist(), alternatives)
    ranks = 1 + (logits > logits.gather(-1, targets[:, None])).sum(-1)
    return [replace(each, rank=rank) for each, rank in zip(scores, ranks.tolist(), strict=True)]


def _ids(tokens: Iterable[int], vocab: int) -> Tensor:
    """The tokens that are within the vocabulary, as an index tensor."""
    return torch.tensor([token for token in tokens if 0 <= token < vocab], dtype=torch.int64)
