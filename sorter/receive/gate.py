"""Who may come in. Decided twice: by address before a byte is read, by AE titles before an association costs a thread.

The decider knows nothing of sockets or time: it is told who asks and how many are there, and answers None or a
`Refusal`. Addresses are text as `plain_address` gives them.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

from sorter.protocol.upper_layer import (
    CALLED_NOT_RECOGNIZED,
    CALLING_NOT_RECOGNIZED,
    LOCAL_LIMIT_EXCEEDED,
    TEMPORARY_CONGESTION,
)
from sorter.receive.settings import ReceiveSettings


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks: an address, and AE titles once it has said them."""

    address: str
    calling: str = ""
    called: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why somebody may not come in, for people, and the A-ASSOCIATE-RJ (PS3.8 9.3.4) if there has been a request."""

    reason: str
    rejection: tuple[int, int, int] | None = None


UNKNOWN_ADDRESS = Refusal("unknown address")
UNKNOWN_SENDER = Refusal("unknown sender", CALLING_NOT_RECOGNIZED)
OTHER_CALLED = Refusal("calls another AE title", CALLED_NOT_RECOGNIZED)
ADDRESS_FULL = Refusal("too many associations at once from this address", LOCAL_LIMIT_EXCEEDED)
RESERVED = Refusal("the last places are kept for known senders", LOCAL_LIMIT_EXCEEDED)
FULL = Refusal("too many associations at once", LOCAL_LIMIT_EXCEEDED)
NO_SPACE = Refusal("no room on the disk of the spool", LOCAL_LIMIT_EXCEEDED)
NO_THREADS = Refusal("this machine gives no more threads", TEMPORARY_CONGESTION)

SILENT = Refusal("asked for no association in time")
CROWDED_OUT = Refusal("asked for nothing while others came")
NOT_DICOM = Refusal("does not speak DICOM")
SPEAKS_TLS = Refusal("speaks TLS on the port without it")
SPEAKS_NO_TLS = Refusal("speaks no TLS on the port for it")
NO_CERTIFICATE = Refusal("shows no certificate, or one that our ca did not sign")
UNTRUSTED = Refusal("does not trust our certificate")
OLD_TLS = Refusal("speaks only TLS that is too old")
NO_HANDSHAKE = Refusal("the TLS handshake failed")


class Gate:
    """What `settings` say about callers."""

    def __init__(self, settings: ReceiveSettings) -> None:
        self._settings = settings
        self._listed = [(each.ae, _network(each.address)) for each in settings.senders]
        self._titles_alone = any(network is None for _, network in self._listed)
        self.knows = functools.lru_cache(maxsize=4096)(self._knows)
        """Whether a listed sender has this address. A title alone makes no address known: anybody can say it."""

    def at_the_door(self, address: str) -> Refusal | None:
        """Somebody connected and has said nothing yet."""
        if self._settings.strangers or self._titles_alone or self.knows(address):
            return None
        return UNKNOWN_ADDRESS

    def at_the_request(self, caller: Caller, here: int, taken: int) -> Refusal | None:
        """`caller` asks for an association; its address has `here` of them, all together have `taken`."""
        settings, listed = self._settings, self._is_listed(caller)
        if not listed and not settings.strangers:
            return UNKNOWN_SENDER
        if settings.called is not None and caller.called not in settings.called:
            return OTHER_CALLED
        if here >= settings.per_address:
            return ADDRESS_FULL
        if taken >= settings.associations:
            return FULL
        if self._listed and not listed and taken >= settings.associations - settings.reserve:
            return RESERVED
        return None

    def _knows(self, address: str) -> bool:
        found = _address(address)
        return any(network is not None and found in network for _, network in self._listed)

    def _is_listed(self, caller: Caller) -> bool:
        found = _address(caller.address)
        return any(
            ae in (None, caller.calling) and (network is None or found in network) for ae, network in self._listed
        )


Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: str | None) -> Network | None:
    return None if text is None else ipaddress.ip_network(text)


@functools.lru_cache(maxsize=4096)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:  # a Unix socket of a test
        return None


@functools.lru_cache(maxsize=4096)
def plain_address(text: str) -> str:
    """A peer's address as people write it: an IPv4 peer of an IPv6 socket is an IPv4 address; no zone of a link."""
    text = text.partition("%")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return text
    return str(getattr(found, "ipv4_mapped", None) or found)


def admits_everybody(settings: ReceiveSettings) -> bool:
    """Whether any machine may send under any AE title, be it that a listed range is all addresses."""
    everywhere = any(each.ae is None and (each.address or "").endswith("/0") for each in settings.senders)
    return settings.strangers or everywhere


def is_loopback(host: str) -> bool:
    """Whether a socket that listens on `host` is reached from this machine alone."""
    found = _address(host)
    return host == "localhost" if found is None else found.is_loopback
