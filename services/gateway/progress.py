"""The prefill progress of a request; each of its choices is prefilled on its own."""

from collections.abc import Sequence

from sps2.common.api.progress import ChunkExtension, PrefillProgress
from sps2.common.messages import Progress
from sps2.services.gateway.generate import Job


class Prompts:
    """The latest prefill progress of each of a request's jobs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._last = [Progress(0, len(job.prompt), 0) for job in jobs]

    def add(self, index: int, progress: Progress) -> ChunkExtension:
        """Add one job's progress; returns that of all together, with the latest expected end."""
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
