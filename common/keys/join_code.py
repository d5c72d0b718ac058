"""The code by which a machine joins a cluster: short enough to read out, and safe against typing
errors.

It has the address and port where the cluster is asked, a secret, and a fingerprint of the cluster's
public key, so that nobody else can answer in its place. The alphabet is Crockford's base 32, which
has no letters that look like digits: https://www.crockford.com/base32.html
"""

import hashlib
import socket
import struct

import msgspec
import zmq
from zmq.utils import z85

from sps2.common.errors import Invalid

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LOOKALIKES = str.maketrans("OIL", "011", " -\t\r\n")
LAYOUT = 1
"""The first byte: another would be another form of code."""
SECRET_BYTES = 10
PRINT_BYTES = 10
CHECK_BYTES = 3
BODY_BYTES = 1 + 4 + 2 + SECRET_BYTES + PRINT_BYTES
CHARACTERS = 8 * (BODY_BYTES + CHECK_BYTES) // 5
GROUP = 4


class JoinCode(msgspec.Struct, frozen=True):
    """What a code says."""

    address: str
    """An IPv4 address of the machine that was started first."""
    port: int
    secret: bytes
    fingerprint: bytes

    def __repr__(self) -> str:
        return f"JoinCode({self.address}:{self.port})"


def fingerprint(public: str) -> bytes:
    """The fingerprint of a public CURVE key in Z85. Raises Invalid if it is none."""
    try:
        key = z85.decode(public.encode())
    except (KeyError, ValueError, struct.error):
        raise Invalid(f"{public!r} is no CURVE key in Z85") from None
    return hashlib.blake2b(key, digest_size=PRINT_BYTES, person=b"sps2 cluster").digest()


def pair_of(secret: bytes) -> tuple[str, str]:
    """The CURVE key pair that a code's secret stands for, public and secret, in Z85."""
    seed = hashlib.blake2b(secret, digest_size=32, person=b"sps2 joining").digest()
    own = z85.encode(seed)
    return zmq.curve_public(own).decode(), own.decode()


def encode(code: JoinCode) -> str:
    """The code as text, in groups of four characters."""
    body = (
        bytes([LAYOUT])
        + socket.inet_aton(code.address)
        + code.port.to_bytes(2, "big")
        + code.secret
        + code.fingerprint
    )
    number = int.from_bytes(body + _check(body), "big")
    digits = "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(CHARACTERS)))
    return "-".join(digits[at : at + GROUP] for at in range(0, CHARACTERS, GROUP))


def decode(text: str) -> JoinCode:
    """Read a code, in upper or lower case, with or without blanks and hyphens.

    Raises:
        Invalid: it is no code, or has a typing error; the message says where, if that is certain.
    """
    digits = text.upper().translate(LOOKALIKES)
    for place, digit in enumerate(digits):
        if digit not in ALPHABET:
            where = digits[place // GROUP * GROUP :][:GROUP]
            raise Invalid(f"no code has the character {digit!r}, as {where!r} does: {_AGAIN}")
    if len(digits) != CHARACTERS:
        raise Invalid(
            f"a code has {CHARACTERS} characters, and this has {len(digits)}, without hyphens: "
            f"{_AGAIN}"
        )
    if not _is_sound(digits):
        raise Invalid(f"the code has a typing error{_where(digits)}: {_AGAIN}")
    body = _bytes(digits)[:BODY_BYTES]
    if body[0] != LAYOUT:
        raise Invalid(
            "the code is of another version of SPS2: install the cluster's version on this machine"
        )
    secret = body[7 : 7 + SECRET_BYTES]
    address, port = socket.inet_ntoa(body[1:5]), int.from_bytes(body[5:7], "big")
    return JoinCode(address, port, secret, body[7 + SECRET_BYTES :])


_AGAIN = "copy it again from where `spsctl` printed it"


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECK_BYTES, person=b"sps2 code").digest()


def _bytes(digits: str) -> bytes:
    number = 0
    for digit in digits:
        number = number << 5 | ALPHABET.index(digit)
    return number.to_bytes(BODY_BYTES + CHECK_BYTES, "big")


def _is_sound(digits: str) -> bool:
    data = _bytes(digits)
    return _check(data[:BODY_BYTES]) == data[BODY_BYTES:]


def _where(digits: str) -> str:
    """The group with the only wrong character, in words; empty if more than one is wrong."""
    for place, wrong in enumerate(digits):
        for digit in ALPHABET:
            if digit != wrong and _is_sound(digits[:place] + digit + digits[place + 1 :]):
                group = place // GROUP
                found = digits[group * GROUP :][:GROUP]
                return f" in its {_ordinal(group + 1)} group, {found}"
    return ""


def _ordinal(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"
