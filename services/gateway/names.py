"""Random names of answers, files and batches, which say which of several gateways gave them."""

import secrets

from sps2.common.api.answer_ids import NAME_CHARS, name_in

NUMBER_CHARS = 2
"""Hexadecimal digits of a gateway's number."""
LONG = 24
"""Digits of the name of a file or a batch."""


class Names:
    """Makes names of hexadecimal digits.

    Args:
        number: of the gateway, whose digits they begin with; None where there is only one.
    """

    def __init__(self, number: int | None = None) -> None:
        self._prefix = "" if number is None else f"{number:0{NUMBER_CHARS}x}"

    def __call__(self, chars: int = NAME_CHARS) -> str:
        return self._prefix + secrets.token_hex((chars - len(self._prefix)) // 2)


RANDOM = Names()


def number_in(answer_id: str) -> int:
    """The number of the gateway that gave an id, where there are several; -1 if it says none."""
    try:
        return int(name_in(answer_id)[:NUMBER_CHARS], 16)
    except ValueError:
        return -1
