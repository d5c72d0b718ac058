"""Ranks ahead of a slow one wait for it, and hold no more than their bounds."""

import asyncio

import pytest
import torch
from torch import Tensor

from sps2.common.messages import Scheme
from sps2.common.model.attend import inline
from sps2.common.model.share import Share
from sps2.common.spans import Span
from sps2.common.transport import credit
from sps2.common.transport.backends import BackendName
from sps2.services.prefill import backlog
from sps2.services.prefill.backlog import Backlog
from sps2.services.prefill.deposit import Deposit
from sps2.services.prefill.group import Group
from sps2.services.prefill.local_pages import NO_PAGES
from sps2.services.prefill.methods.registry import attend_by
from sps2.services.tasks import gather_all

from .ranks import Member, config, members, random_qkv, reference, rows_of

LAYERS = 24
SPANS = [(Span(0, 128),), (Span(128, 256),)]
CREDIT = 1 << 20
LAYER_BYTES = 2 * 128 * 2 * 64 * 4  # of a rank's keys and values: 128 KiB
FIT = 7
"""Layers that the credit has room for: eight, without their headers."""


class Rank:
    """A rank of two that attends to the same tensors in every layer."""

    def __init__(self, member: Member, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
        self.member = member
        self.layer = -1
        self.peaks = [0, 0, 0]
        """Of bytes: sent and unread, come and unread, held by work beside the layers."""
        rows = rows_of(SPANS[member.request.rank])
        self._q, self._k, self._v = (x[rows] for x in qkv)
        self._wanted = reference(*qkv)[rows]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as deposits, asyncio.TaskGroup() as sends:
            group = Group(config(4, 2, 64, layers=LAYERS), *self.member, inline, sends)
            spans = SPANS[group.rank]
            attend = Deposit(attend_by(group), group, deposits, spans, (), Share(0, 1), NO_PAGES)
            for self.layer in range(LAYERS):
                out = await attend(self.layer, self._q, self._k, self._v)
                torch.testing.assert_close(out.double(), self._wanted, rtol=1e-4, atol=1e-5)
                self.note(group.backlog)

    def note(self, work: Backlog) -> None:
        plane = self.member.plane
        now = plane.unread_bytes, plane.queued_bytes, work.nbytes
        self.peaks = list(map(max, self.peaks, now))


@pytest.mark.parametrize("backend", ["inproc", "tcp", "ucx"])
@pytest.mark.parametrize(
    ("ahead_bytes", "reached"),
    [(64 << 20, LAYERS - 1), (4 * LAYER_BYTES, FIT + 5)],
    ids=["twenty layers behind", "held back"],
)
async def test_gather_with_one_rank_far_behind(
    monkeypatch: pytest.MonkeyPatch, backend: BackendName, ahead_bytes: int, reached: int
) -> None:
    monkeypatch.setattr(credit, "CREDIT_BYTES", CREDIT)
    monkeypatch.setattr(backlog, "BYTES", ahead_bytes)
    qkv = random_qkv(256, config(4, 2, 64), 0)
    async with asyncio.timeout(120), members(SPANS, Scheme("gather"), backend) as both:
        first, second = (Rank(member, qkv) for member in both)

        async def late() -> None:
            while first.layer < reached or second.member.plane.queued_bytes < FIT * LAYER_BYTES:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            assert first.layer == reached
            assert second.member.plane.queued_bytes == FIT * LAYER_BYTES
            await second.run()

        await gather_all(first.run(), late())
    sent, _, held = first.peaks
    assert 0 < sent <= CREDIT
    assert held <= max(ahead_bytes, backlog.LAYERS * LAYER_BYTES) + LAYER_BYTES
    assert second.peaks[1] <= CREDIT


async def test_little_work_beside_the_layers_is_not_waited_for() -> None:
    work, never = Backlog(), asyncio.Event()
    task = asyncio.create_task(_wait(never))
    work.add(task, 0, 1000)
    await work.catch_up(100)
    never.set()
    await task
    await asyncio.sleep(0)
    assert work.nbytes == 0


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
