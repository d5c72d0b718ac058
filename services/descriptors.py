"""How many files and connections this process may have open at once."""

import logging
import resource

MOST = 1 << 20
"""More is not asked for, where there is no limit."""

log = logging.getLogger(__name__)


def allow_all() -> int:
    """Raise the soft limit to the hard one, which shells leave at 1,024; what is in force now.

    A connection that finds no descriptor waits in silence: neither side is told.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:  # macOS has another limit, which it does not tell
        log.warning("this process may open %d files at once, no more: %s", soft, error)
        return soft
    return wanted
