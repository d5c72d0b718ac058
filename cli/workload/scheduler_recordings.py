"""The requests of a recording of `spsctl scheduler record`."""

from collections.abc import Iterator
from pathlib import Path

from sps2.cli.workload.requests import Turn
from sps2.common.errors import Invalid
from sps2.services.scheduler.events import Decoded, Joined, Submitted
from sps2.services.scheduler.replay import Recording


def read_scheduler_recording(path: Path) -> tuple[list[Turn], int]:
    """The requests that came and were answered to their end, and the tokens of their blocks.

    A block is a page. An answer that was interrupted and resumed counts as one request.

    Raises:
        Invalid: it is no recording, or none of its requests came to its end.
        OSError: it cannot be read.
    """
    recording = Recording.read(path)
    page_tokens = max(
        (member.shard.page_tokens for member in recording.header.state.fleet.members), default=0
    )
    came: dict[str, tuple[float, Submitted]] = {}
    decoded: dict[str, int] = {}
    for entry in recording.entries:
        match entry.event:
            case Joined(shard):
                page_tokens = max(page_tokens, shard.page_tokens)
            case Submitted(work) as event if not work.resumes:
                came[work.request] = entry.at_s, event
            case Decoded(request, tokens):
                first = request if request in came else request.rpartition(".")[0]
                decoded[first] = tokens + decoded.get(first, 0)
    turns = [*_turns(came, decoded, max(1, page_tokens))]
    if not turns:
        raise Invalid(f"{path}: no request came and was answered while this was recorded")
    return turns, max(1, page_tokens)


def _turns(
    came: dict[str, tuple[float, Submitted]], decoded: dict[str, int], page_tokens: int
) -> Iterator[Turn]:
    start_s = min((at_s for at_s, _ in came.values()), default=0.0)
    for number, (request, (at_s, event)) in enumerate(came.items()):
        work = event.work
        if request not in decoded:
            continue
        blocks = [int.from_bytes(each[:7], "little") for each in work.hashes]
        if blocks and work.prompt_tokens % page_tokens:
            blocks.append(-1 - number)  # the last page is not full, and nobody shares it
        yield Turn(
            at_s - start_s,
            work.prompt_tokens,
            max(1, decoded[request]),
            tuple(blocks),
            caller=work.caller,
        )
