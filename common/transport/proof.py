"""Mutual authentication of two processes that open a link, by the control plane's introduction.

Every plane has a random token, which is sent over the control bus as part of `messages.Peer`. It is
the key of a MAC over each side's messages, beginning with a nonce that the other side chose, so
that a recorded handshake cannot be replayed.
"""

import hmac
import secrets

from sps2.common.errors import Invalid

TOKEN_BYTES = 16
NONCE_BYTES = 16
MAC_BYTES = 32


def new_token() -> bytes:
    """A token for a new plane."""
    return secrets.token_bytes(TOKEN_BYTES)


def new_nonce() -> bytes:
    """A nonce for the other side's MAC."""
    return secrets.token_bytes(NONCE_BYTES)


class Proof:
    """The MAC of one side's messages in one handshake.

    Args:
        token: of the plane that is dialled.
        nonce: chosen by the receiving side.
    """

    def __init__(self, token: bytes, nonce: bytes) -> None:
        self._token = token
        self._nonce = nonce

    def mac(self, body: bytes) -> bytes:
        """The MAC that follows `body` on the wire."""
        return self._digest(b"said", body)

    def check(self, body: bytes, mac: bytes) -> None:
        """Raise Invalid unless `mac` belongs to `body`, in constant time."""
        if not hmac.compare_digest(self.mac(body), mac):
            raise Invalid("it was not introduced by the control plane of this cluster")

    def mask(self, token: bytes) -> bytes:
        """Encrypt the dialler's own token for the network, or decrypt it again."""
        pad = self._digest(b"token")
        return bytes(a ^ b for a, b in zip(token, pad, strict=False))

    def _digest(self, label: bytes, text: bytes = b"") -> bytes:
        return hmac.digest(self._token, label + self._nonce + text, "sha256")
