"""The certificate of a process on the data plane, and the TLS contexts that check those of others.

Links are encrypted by TLS 1.3 (RFC 8446) as OpenSSL has it, by Python's `ssl`: fresh keys for every
connection, which nobody learns who records it and steals `cluster.key` later; records that are
changed, left out, repeated or moved do not decrypt; and AES in hardware. The alternative, an AEAD
of each frame with keys from the plane's token, would need a key exchange and a record layer of our
own for the same.

Each process makes itself a key pair when it starts. Its certificate has the name of its plane, and
is signed by a certificate authority that all services of a cluster derive from `cluster.key`
(HKDF-SHA256 to the seed of an Ed25519 key), so that none has to be handed out. Both sides show and
check certificates: an acceptor, which may not have heard of the dialler before, learns so that the
cluster's key vouches for the name. A process's private key leaves its memory once, encrypted with a
random password, in a file that is deleted at once: `ssl` loads keys from files alone.

Certificates are valid at any time, since clocks of hosts differ; they end with their process.
AES-GCM's margin shrinks with the bytes of one connection: after 400 GB an attack succeeds with a
probability of 2^-57 at most (RFC 8446, 5.5), after 4 TB of 2^-50.
"""

import secrets
import ssl
from datetime import UTC, datetime
from tempfile import NamedTemporaryFile
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from zmq.utils import z85

from sps2.common.keys import Key
from sps2.common.transport.connection import SCHEME

_PURPOSE = b"SPS2: certificate authority of the data plane"
_ALWAYS = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_AUTHORITY = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "SPS2 cluster")])
_PROCESS = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "SPS2 process")])


class Identity:
    """The certificate of the plane `name`, in the cluster of `key`, as a pair of TLS contexts."""

    def __init__(self, name: str, key: Key) -> None:
        authority = Ed25519PrivateKey.from_private_bytes(
            HKDF(hashes.SHA256(), 32, None, _PURPOSE).derive(z85.decode(key.secret.encode()))
        )
        trusted = _authority_certificate(authority).public_bytes(Encoding.PEM).decode()
        own = Ed25519PrivateKey.generate()
        certificate = _certificate(name, own.public_key(), authority)
        password = secrets.token_bytes(32).hex().encode()
        with NamedTemporaryFile() as file:  # nobody else may read it
            file.write(
                own.private_bytes(
                    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password)
                )
            )
            file.write(certificate.public_bytes(Encoding.PEM))
            file.flush()
            self.dialling, self.accepting = (
                _context(protocol, trusted, file.name, password)
                for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
            )
        self.accepting.num_tickets = 0  # every connection has a handshake with fresh keys


def _context(protocol: int, trusted: str, chain: str, password: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are of planes, not hosts: `hello` checks them
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusted)
    context.load_cert_chain(chain, password=password)
    return context


def _authority_certificate(authority: Ed25519PrivateKey) -> x509.Certificate:
    public = authority.public_key()
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(_AUTHORITY, public, 1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(authority, None)
    )


def _certificate(
    name: str, public: Ed25519PublicKey, authority: Ed25519PrivateKey
) -> x509.Certificate:
    uri = x509.UniformResourceIdentifier(SCHEME + quote(name))
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return (
        _builder(_PROCESS, public, x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority, None)
    )


def _builder(subject: x509.Name, public: Ed25519PublicKey, serial: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_AUTHORITY)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_ALWAYS[0])
        .not_valid_after(_ALWAYS[1])
    )
