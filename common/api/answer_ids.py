"""The ids of answers: a prefix, then a name."""

import re

NAME_CHARS = 12
"""Hexadecimal digits of an answer's name."""


def name_in(answer_id: str) -> str:
    """The name in an answer's id, or in that of one of its requests."""
    return re.split("[-_]", answer_id)[-1][:NAME_CHARS]
