"""The progress of a request, whose choices are prefilled each for itself."""

from collections.abc import Sequence

from sps2.common.api.progress import ChunkExtension, PrefillProgress
from sps2.common.messages import Progress
from sps2.services.gateway.generate import Job


class Prompts:
    """What is known of the prefill of each of a request's jobs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._last = [Progress(0, len(job.prompt), 0) for job in jobs]

    def told(self, index: int, progress: Progress) -> ChunkExtension:
        """All of them together, once one has gone on; its end is the end of the last that began."""
        self._last[index] = progress
        etas = [each.eta_ms for each in self._last if each.eta_ms is not None]
        return ChunkExtension(
            PrefillProgress(
                sum(each.processed for each in self._last),
                sum(each.total for each in self._last),
                sum(each.cached for each in self._last),
                round(max(etas), 1) if etas else None,
            )
        )
