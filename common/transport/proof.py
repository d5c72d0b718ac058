"""How two processes prove, when a link opens, that the control plane introduced one to the other.

Every plane has a random token, which travels over the control bus as part of `messages.Peer`. It is
the key of a MAC over what either says, beginning with a random number that the other chose, so that
what was recorded of one handshake is of no use in another.
"""

import hmac
import secrets

from sps2.common.errors import Invalid

TOKEN_BYTES = 16
NONCE_BYTES = 16
MAC_BYTES = 32


def new_token() -> bytes:
    """The token of one life of one plane."""
    return secrets.token_bytes(TOKEN_BYTES)


def new_nonce() -> bytes:
    """A number for the other side to begin with."""
    return secrets.token_bytes(NONCE_BYTES)


class Proof:
    """What one side says in one handshake.

    Args:
        token: of the plane that is dialled.
        nonce: chosen by whoever hears it.
    """

    def __init__(self, token: bytes, nonce: bytes) -> None:
        self._token = token
        self._nonce = nonce

    def mac(self, body: bytes) -> bytes:
        """Goes after `body` on the wire."""
        return self._digest(b"said", body)

    def check(self, body: bytes, mac: bytes) -> None:
        """Raises Invalid unless `mac` belongs to `body`; takes the same time whatever is wrong."""
        if not hmac.compare_digest(self.mac(body), mac):
            raise Invalid("it was not introduced by the control plane of this cluster")

    def mask(self, token: bytes) -> bytes:
        """Hide the dialler's own token from the network, or show it to the other side again."""
        pad = self._digest(b"token")
        return bytes(a ^ b for a, b in zip(token, pad, strict=False))

    def _digest(self, label: bytes, text: bytes = b"") -> bytes:
        return hmac.digest(self._token, label + self._nonce + text, "sha256")
