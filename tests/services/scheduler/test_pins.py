"""Prompts are pinned by the hashes that their requests would have."""

import pytest

from sps2.common.errors import Invalid
from sps2.common.messages import OnDisk, Pin, Pinned

from .test_core import PAGE
from .test_service import Play, finished, stage, submit


async def test_the_pages_of_a_request_are_pinned() -> None:
    play = Play()
    prompt = submit("a", 4 * PAGE + 3)
    async with stage(play) as peer:
        with pytest.raises(Invalid, match="none of the 2 full pages"):
            await peer.call(Pin(prompt, True))
        await finished(peer, prompt)
        with pytest.raises(Invalid, match="decode-0 keeps no pages on disk"):
            await peer.call(Pin(prompt, True))
        play._directory.report("decode-0", "decode-0/1", (), on_disk=OnDisk((), (), 1.0, (), 9))
        assert await peer.call(Pin(prompt, True)) == Pinned({"decode-0": 2}, 2)
        assert await peer.call(Pin(prompt, False)) == Pinned({"decode-0": 2}, 2)
        with pytest.raises(Invalid, match="3 tokens, and no page that is cached"):
            await peer.call(Pin(submit("b", 3), True))
