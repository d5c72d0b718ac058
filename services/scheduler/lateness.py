"""The errors of requests that have waited, or are predicted to wait, for too long."""

from sps2.common.errors import PeerLost, Refused, ServiceError
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.request import Request


def too_late(what: str, most_s: float, retry_s: float = 0.0) -> Refused:
    """The error of a request whose first token comes too late; `what` says when it comes."""
    limit = f"max_ttft_ms is {1000 * most_s:g}"
    error = f"the first token {what}, and {limit}: retry later, or without it"
    return Refused(error, max(1.0, retry_s))


def overdue(request: Request, fleet: Fleet, patience_s: float, now_s: float) -> ServiceError | None:
    """The error of a queued request that has waited for too long.

    Args:
        patience_s: how long it may wait for absent shards.
    """
    most_s = request.work.max_ttft_s
    if most_s is not None and now_s - request.submitted_s >= most_s:
        return too_late(f"has not come for {1000 * most_s:g} ms", most_s)
    since_s, wait = request.absent_since_s, request.wait
    if wait is None or since_s is None or now_s - since_s < patience_s:
        return None
    missing = fleet.waiting_for() or "them"
    why = f"{wait.reason}, and it has waited {patience_s:g} s for {missing}"
    return PeerLost(fleet.keeping, f"{why}; retry later")
