"""Pins prompts: the KV directory has their pages kept on disk."""

from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.messages import Pin, Pinned, PinPages
from sps2.common.words import counted
from sps2.services.scheduler.submissions import Submissions

DIRECTORY_S = 5.0
"""How long the directory may take."""


class Pins:
    """The handler of `Pin`.

    Args:
        directory: the KV directory on the bus.
    """

    def __init__(self, config: Cluster, submissions: Submissions, directory: Peer) -> None:
        self._config = config
        self._submissions = submissions
        self._directory = directory

    async def pin(self, request: Pin) -> Pinned:
        """Raises Invalid if the prompt has no full page, or see `PageCache.pin`."""
        _, prompt = self._submissions.work(request.submit)
        if not prompt.hashes:
            tokens = counted(len(request.submit.prompt) // 4, "token")
            page = f"a page of KV has {self._config.kv.page_tokens} (kv.page_tokens)"
            why = page if self._config.kv.prefix_cache else "the prefix cache is off"
            raise Invalid(f"the prompt has {tokens}, and no page that is cached: {why}", "prompt")
        return await self._directory.call(PinPages(prompt.hashes, request.keep), DIRECTORY_S)
