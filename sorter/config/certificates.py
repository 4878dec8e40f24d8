"""What `[receive.tls]` names: certificates and a key, read and checked, as a context to speak TLS with.

Not read with the configuration, as the key is for the receiver's account alone: `check`, `serve` and `receive` ask.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

from sorter.config.config import Config
from sorter.config.models import Tls
from sorter.errors import ConfigError

# PS3.15 B.12 and B.13, which follow BCP 195 (RFC 9325 4.2): TLS 1.2 with forward secrecy and AEAD alone, and TLS 1.3,
# whose own suites are all of that kind.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


_SOON = 30  # days


class _Passphrase(Exception):
    """OpenSSL asked for one."""


def server_context(config: Config) -> ssl.SSLContext | None:
    """The TLS of the second port, None where there is none. ConfigError names each file that cannot be used."""
    tls = config.receive.tls
    if tls is None:
        return None
    faults = [
        f"{config.locate('receive', 'tls', key)}: receive.tls.{key}: {path} {says}" for key, path, says in _faults(tls)
    ]
    if faults:
        raise ConfigError(faults)
    context = tls_profile()
    context.load_cert_chain(tls.cert, tls.key)
    if tls.ca is not None:
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def remark(config: Config, now: float) -> str:
    """What will soon, or already does, keep senders from trusting the certificate; empty where all is well.

    `now` is in seconds since the epoch. A sentence and no fault: who does not look may send all the same.
    """
    tls = config.receive.tls
    if tls is None:
        return ""
    where = f"{config.locate('receive', 'tls', 'cert')}: receive.tls.cert: {tls.cert}"
    do = "senders that look will refuse it; put a new one there, then SIGHUP"
    try:
        until = _valid_until(tls)
    except ssl.SSLCertVerificationError as error:
        return f"{where}: {error.verify_message}; {do}"
    days = (until - now) / 86400
    return f"{where} expires in {max(0, days):.0f} days: from then on {do}" if days < _SOON else ""


def _valid_until(tls: Tls) -> float:
    """Seconds since the epoch; SSLCertVerificationError where it is not valid now. Shakes hands with ourselves."""
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_cert_chain(tls.cert, tls.key)
    theirs.load_verify_locations(tls.cert)
    theirs.check_hostname = False
    theirs.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it: that is the senders' affair
    to_us, to_them = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(to_them, to_us)
    server = ours.wrap_bio(to_us, to_them, server_side=True)
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = client.getpeercert()
    assert shown is not None
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))


def tls_profile() -> ssl.SSLContext:
    """Versions and cipher suites that are spoken, before any certificate is known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _faults(tls: Tls) -> Iterator[tuple[str, Path, str]]:
    """(key, path, what is wrong with it)"""
    found = [("cert", tls.cert, _no_certificates(tls.cert))]
    if tls.ca is not None:
        found.append(("ca", tls.ca, _no_certificates(tls.ca)))
    found.append(("key", tls.key, _unreadable(tls.key)))
    faulty = [each for each in found if each[2]]
    yield from faulty
    if not faulty:
        says = _no_key(tls)
        if says:
            yield "key", tls.key, says


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb"):
            return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _no_certificates(path: Path) -> str:
    says = _unreadable(path)
    if says:
        return says
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError:
        return f'holds no certificate in PEM, which begins "-----BEGIN CERTIFICATE-----"{_but(path)}'
    return ""


def _but(path: Path) -> str:
    """What a file holds in place of a certificate, and what to do about it, as far as it can be told."""
    with path.open("rb") as file:
        begin = file.read(4096)
    if b"PRIVATE KEY-----" in begin:
        return ", but a private key; were cert and key exchanged?"
    if begin[:2] == b"\x30\x82":
        return f"; if it is one in DER: openssl x509 -inform der -in {path} -out {path.with_suffix('.pem')}"
    return ""


def _no_key(tls: Tls) -> str:
    def ask() -> str:
        raise _Passphrase

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password=ask)
    except _Passphrase:
        return "is locked by a passphrase, which nobody could type at the start; take it off: openssl pkey -in … -out …"
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"is not the key of the certificate in {tls.cert}"
        if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            return f"or the certificate is too weak for today's TLS ({error.reason}); make one of 2048 bits or more"
        return 'holds no private key in PEM, which begins "-----BEGIN PRIVATE KEY-----"'
    return ""
