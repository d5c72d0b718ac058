"""From logits to the next token: penalties, truncation, a draw that any shard can repeat."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sps2.common.messages import FinishReason, Sampling, Token, TokenLogprobs
from sps2.kernels.sample import truncate


class Sampler:
    """Draws the tokens of one request; remembers what its penalties need.

    The draw of token `index` depends on the seed, the index and the logits alone, so that it is
    the same on any shard, in any batch, and after a restart. Steps, in order: repetition penalty
    (on prompt and answer, as transformers), presence and frequency penalties (on the answer, as
    OpenAI), `logit_bias`, `min_tokens`, temperature, `min_p`, `top_k`, `top_p`. Ids beyond the
    vocabulary, which the gateway refuses, are ignored.

    Args:
        prompt: token ids, [tokens] int64; the last `sampling.answered` are of the answer.
    """

    def __init__(self, sampling: Sampling, prompt: Tensor) -> None:
        self._sampling = sampling
        self._said = Counter(prompt[len(prompt) - sampling.answered :].tolist())
        repeats = sampling.repetition_penalty != 1
        self._seen: set[int] = set(prompt.unique().tolist()) if repeats else set()
        self.greedy = sampling.temperature == 0 and not (
            repeats
            or sampling.presence_penalty
            or sampling.frequency_penalty
            or sampling.logit_bias
            or sampling.min_tokens
        )
        """Whether tokens are simply the most likely ones."""
        self.plain = self.greedy and sampling.logprobs is None
        """Whether nothing else is asked about them."""

    def seen(self, token: int) -> None:
        """Count a token of the answer that was drawn elsewhere."""
        self._said[token] += 1
        if self._sampling.repetition_penalty != 1:
            self._seen.add(token)

    def next(self, logits: Tensor, index: int) -> Token:
        """Draw token number `index` of the answer. logits: [vocab] float32, left as they are."""
        scores = logits if self.greedy else self._penalised(logits, index)
        if self._sampling.temperature == 0:
            return self.accept(int(scores.argmax()), logits, index)
        return self.accept(self._draw(scores / self._sampling.temperature, index), logits, index)

    def accept(self, token: int, logits: Tensor | None, index: int) -> Token:
        """Make `token` number `index` of the answer, as drawn from `logits`; None if `plain`."""
        sampling = self._sampling
        self.seen(token)
        finish: FinishReason | None = None
        if token in sampling.stop_token_ids:
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
        if sampling.repetition_penalty != 1:
            seen = _ids(self._seen, vocab)
            penalty = sampling.repetition_penalty
            values = scores[seen]
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            said = _ids(self._said, vocab)
            counts = torch.tensor([self._said[token] for token in said.tolist()])
            scores[said] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        for token, bias in sampling.logit_bias.items():
            if 0 <= token < vocab:
                scores[token] += bias
        if index < sampling.min_tokens:
            scores[_ids(sampling.stop_token_ids, vocab)] = -torch.inf
        return scores

    def _draw(self, scores: Tensor, index: int) -> int:
        sampling = self._sampling
        scores = truncate(scores, sampling.min_p, sampling.top_k, sampling.top_p)
        # The first of independent exponential clocks with these rates rings with their odds.
        digest = hashlib.blake2b(f"{sampling.seed}/{index}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        clocks = torch.empty_like(scores).exponential_(generator=generator)
        return int((scores.softmax(-1) / clocks).argmax())


def needed(samplers: Sequence[Sampler], logits: Tensor) -> tuple[Tensor, Tensor]:
    """What `draw` needs of `logits`, [rows, vocab], wherever they lie.

    Returns:
        The most likely tokens of all rows, if any sampler is greedy, and the scores of those rows
        whose samplers are not plain.
    """
    greedy = any(each.greedy for each in samplers)
    rows = [row for row, each in enumerate(samplers) if not each.plain]
    best = logits.argmax(-1) if greedy else torch.empty(0, dtype=torch.int64)
    return best, logits if len(rows) == len(samplers) else logits[rows]


def draw(
    samplers: Sequence[Sampler], best: Tensor, scores: Tensor, indices: Sequence[int]
) -> list[Token | Exception]:
    """`next` of each sampler, from what is `needed`, on the host; greedy rows at once.

    Where a sampler raises, its row has the error: one request's is not its neighbours'.
    """
    likely = best.tolist() or indices
    rows = iter(scores)
    tokens: list[Token | Exception] = []
    for each, token, index in zip(samplers, likely, indices, strict=True):
        row = None if each.plain else next(rows)
        try:
            if each.greedy or row is None:
                tokens.append(each.accept(token, row, index))
            else:
                tokens.append(each.next(row, index))
        except Exception as error:
            tokens.append(error)
    return tokens


def score(logits: Tensor, tokens: Sequence[int], alternatives: int) -> list[TokenLogprobs]:
    """Log-probability of a token per row, and of the most likely ones, as the model gives them.

    Args:
        logits: [rows, vocab] float32.
        alternatives: how many of the most likely tokens to list, best first.
    """
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(alternatives, logits.shape[-1]), dim=-1)
    chosen = logprobs.gather(-1, torch.as_tensor(tokens)[:, None])[:, 0].tolist()
    return [
        TokenLogprobs(own, tuple(zip(ids, values, strict=True)))
        for own, ids, values in zip(
            chosen, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def prompt_logprobs(logits: Tensor, targets: Tensor, alternatives: int) -> list[TokenLogprobs]:
    """As `score`, for the prompt's own tokens, [rows] int64."""
    return score(logits, targets.tolist(), alternatives)


def _ids(tokens: Iterable[int], vocab: int) -> Tensor:
    """Those within the vocabulary, as an index."""
    return torch.tensor([token for token in tokens if 0 <= token < vocab], dtype=torch.int64)
