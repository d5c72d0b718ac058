"""Turns what the gateway submits into what the core needs to know."""

from msgspec.structs import replace

from sps2.common.config import Cluster
from sps2.common.messages import Submit
from sps2.common.page_hashes import PromptHashes, page_hashes, root
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.schemes import Schemes

PARTS = 8
"""Where answers do not grow, one without `max_tokens` reserves at most one of this many parts of a
pool, so that several can run at once."""


class Submissions:
    """Describes submitted requests.

    Args:
        model: identifies the model in page hashes, since KV of other models is different.
    """

    def __init__(self, config: Cluster, schemes: Schemes, model: str) -> None:
        self._config = config
        self._schemes = schemes
        self._model = model

    def bounded(self, submit: Submit, fleet: Fleet) -> Submit:
        """Limit an answer without `max_tokens` to what the pools can hold."""
        sampling = submit.sampling
        given = len(submit.prompt) // 4 - sampling.answered
        shards = submit.options.sp_degree if fleet.in_place else None
        parts = 1 if self._config.kv.growth_tokens else PARTS
        room = fleet.answer_room(given, shards, parts)
        if not submit.open_ended or not room:
            return submit
        most = max(room, sampling.min_tokens, sampling.answered + 1)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, most))
        return replace(submit, sampling=sampling)

    def work(self, submit: Submit) -> tuple[Work, PromptHashes]:
        """What a policy needs to know of a request, and the hashes of its pages."""
        hashes = self._hashes(submit)
        sampling = submit.sampling  # all tokens must be computed of one with scores, or a mean
        is_scored = sampling.prompt_logprobs is not None or sampling.pooling == "mean"
        work = Work(
            submit.request,
            len(submit.prompt) // 4,
            submit.sampling.left,
            submit.options,
            () if is_scored else hashes.hashes,
            bool(submit.sampling.answered),
            submit.priority,
            submit.max_ttft_s,
            submit.caller,
            self._first_tokens(submit),
        )
        return work, hashes

    def _first_tokens(self, submit: Submit) -> int | None:
        """See `Work.reserved_tokens`."""
        growth = self._config.kv.growth_tokens
        return max(growth, submit.room_tokens) if growth else None

    def _hashes(self, submit: Submit) -> PromptHashes:
        """The hashes of the prompt's pages; none if the prefix cache is off."""
        if not self._config.kv.prefix_cache:
            return PromptHashes()
        first = root(self._model, submit.cache_salt, *self._schemes.computed(submit.options))
        return PromptHashes(first, page_hashes(first, submit.prompt, self._config.kv.page_tokens))
