"""The keys that a terminal sends, by name."""

_NAMED = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "pageup",
    b"\x1b[6~": "pagedown",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
}


def names(data: bytes) -> list[str]:
    """Keys in `data`, which was read at once: characters as they are, others by name.

    Unknown sequences are left out. An escape is a key at the end of the data, and else begins a
    sequence.
    """
    found = []
    while data:
        for raw in sorted(_NAMED, key=len, reverse=True):
            if data.startswith(raw) and (raw != b"\x1b" or len(data) == 1):
                found.append(_NAMED[raw])
                data = data[len(raw) :]
                break
        else:
            if data.startswith(b"\x1b"):
                data = _after_sequence(data)
                continue
            size = next((n for n in (1, 2, 3, 4) if _is_character(data[:n])), 0)
            if size and data[:size].decode().isprintable():
                found.append(data[:size].decode())
            data = data[size or 1 :]
    return found


def _after_sequence(data: bytes) -> bytes:
    """The data after an unknown escape sequence."""
    if data[1:2] not in (b"[", b"O"):
        return data[2:]
    for place, byte in enumerate(data[2:], 2):
        if 0x40 <= byte <= 0x7E:
            return data[place + 1 :]
    return b""


def _is_character(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
