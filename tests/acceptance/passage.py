"""What the acceptance scripts share."""

import inspect
import pkgutil
import sys


def passage(tokens: int) -> str:
    """English text of more than `tokens` tokens: the docstrings of Python's own library."""
    words: list[str] = []
    for module in sorted(each.name for each in pkgutil.iter_modules() if not each.ispkg):
        if module.startswith(("_", "this", "antigravity")) or module not in sys.stdlib_module_names:
            continue
        try:
            words += (inspect.getdoc(__import__(module)) or "").split(" ")
        except Exception:  # a module of another platform
            continue
        if len(words) > 2 * tokens:
            break
    return " ".join(words)
