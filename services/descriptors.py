"""How many files and connections this process may have open at once."""

import logging
import resource

MOST = 1 << 20
"""The limit to set where the hard limit is infinite."""

log = logging.getLogger(__name__)


def allow_all() -> int:
    """Raise the soft limit, which shells set to 1,024, to the hard one; returns the limit in force.

    A connection that finds no free descriptor just waits: neither side gets an error.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:  # macOS has another limit, which it does not report
        log.warning("this process may open %d files at once, no more: %s", soft, error)
        return soft
    return wanted
