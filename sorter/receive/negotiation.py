"""Which presentation contexts are accepted, and with which transfer syntax (PS3.8 9.3.3, PS3.4 B)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from pydicom._uid_dict import UID_dictionary
from pynetdicom import sop_class

from sorter.protocol import upper_layer
from sorter.protocol.uids import IMPLICIT, NATIVE, STORAGE_COMMITMENT, VERIFICATION, is_uid
from sorter.protocol.upper_layer import (
    ABSTRACT_NOT_SUPPORTED,
    ACCEPTED,
    TRANSFER_NOT_SUPPORTED,
    Context,
    Proposal,
    Rejection,
    Request,
)

_NO_TRANSFER = IMPLICIT  # not significant where a context is refused, but must be a UID

_STORAGE = frozenset(sop_class._STORAGE_CLASSES.values()) | frozenset(sop_class._NON_PATIENT_OBJECT_CLASSES.values())
_OTHER_SERVICES = frozenset(
    uid
    for name, group in vars(sop_class).items()
    if name.endswith("_CLASSES") and name.startswith("_") and name not in ("_STORAGE_CLASSES", "_SERVICE_CLASSES")
    for uid in group.values()
) - frozenset(sop_class._NON_PATIENT_OBJECT_CLASSES.values())

_REFERENCED = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.4.205")
"""JPIP: the pixels stay at the sender. Taken only when the sender offers nothing else."""

_NOT_FOR_STORAGE = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7.")
"""MIME and XML encodings, and live video (PS3.22): not how a data set is sent by C-STORE."""

_CACHED_ITEMS = 32 << 10  # bytes of a proposal that may be remembered


def known_storage_classes() -> dict[str, str]:
    """The SOP classes that objects are taken of and that have a name, by UID; others are taken too."""
    listed = {uid: UID_dictionary[uid][0] if uid in UID_dictionary else "" for uid in {*_STORAGE, *UID_dictionary}}
    return {uid: listed[uid] for uid in sorted(listed, key=_by_number) if is_storage(uid)}


def known_transfer_syntaxes() -> dict[str, str]:
    """The transfer syntaxes that are taken and have a name, by UID; private ones are taken too."""
    listed = {uid: entry[0] for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    return {uid: listed[uid] for uid in sorted(listed, key=_by_number) if choose_transfer_syntax((uid,)) == uid}


def _by_number(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def is_storage(uid: str) -> bool:
    """Whether objects of this SOP class may be stored: yes for whatever is not known to be something else.

    Private classes and those younger than our tables cannot be listed, and refusing them loses images. So the tables
    are asked what a UID is *not*: pynetdicom's other services (verification, query, worklist, print, ...), and what
    pydicom's dictionary of the standard knows by a name without "Storage" (retired print and management classes, meta
    classes, service classes, transfer syntaxes).
    """
    return is_uid(uid) and _is_storage(uid)  # in this order: what is remembered is short


@functools.lru_cache(maxsize=1024)
def _is_storage(uid: str) -> bool:
    if uid in _OTHER_SERVICES:
        return False
    if uid in _STORAGE or uid not in UID_dictionary:
        return True
    name, kind = UID_dictionary[uid][:2]
    return kind == "SOP Class" and (not name or "Storage" in name) and "Storage Commitment" not in name


def choose_transfer_syntax(offered: tuple[str, ...]) -> str | None:
    """The first the sender lists that carries a whole data set; None when there is none. Private ones are taken."""
    usable = [uid for uid in offered if _is_transfer_syntax(uid)]
    whole = [uid for uid in usable if uid not in _REFERENCED]
    return next(iter(whole or usable), None)


def _is_transfer_syntax(uid: str) -> bool:
    if not is_uid(uid) or uid.startswith(_NOT_FOR_STORAGE):
        return False
    return uid not in UID_dictionary or UID_dictionary[uid][1] == "Transfer Syntax"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What an association request leads to: accepted contexts by number, our encoded answer, the peer's limit."""

    contexts: dict[int, Context]
    answers: bytes
    max_length: int  # bytes of the longest P-DATA-TF the peer takes, 0 for any


def negotiate(request: Request, max_pdu: int, commitment: bool = False) -> Agreement:
    """Raises Rejection where the association cannot be, ProtocolError where the request does not parse.

    `commitment` says whether Storage Commitment is served.
    """
    if not request.version & 1:
        raise Rejection(*upper_layer.VERSION_NOT_SUPPORTED)
    if len(request.items) > _CACHED_ITEMS:
        return _agree.__wrapped__(request.items, max_pdu, commitment)
    return _agree(request.items, max_pdu, commitment)


@functools.lru_cache(maxsize=64)
def _agree(items: bytes, max_pdu: int, commitment: bool) -> Agreement:
    """A scanner proposes the same thing each time, some for each image: the answer is remembered."""
    asked = upper_layer.decode_items(items)
    if asked.application_context != upper_layer.APPLICATION_CONTEXT:
        raise Rejection(*upper_layer.APPLICATION_CONTEXT_NOT_SUPPORTED)
    results: dict[int, tuple[int, str]] = {}
    contexts: dict[int, Context] = {}
    for proposal in asked.proposals:
        result, transfer = _answer(proposal, commitment)
        results[proposal.number] = (result, transfer)
        if result == ACCEPTED:
            contexts[proposal.number] = Context(proposal.number, proposal.abstract, transfer)
    return Agreement(contexts, upper_layer.encode_answers(results, max_pdu), asked.max_length)


def _answer(proposal: Proposal, commitment: bool) -> tuple[int, str]:
    if proposal.abstract == STORAGE_COMMITMENT and commitment:
        transfer = next((uid for uid in proposal.transfers if uid in NATIVE), None)
    elif proposal.abstract == VERIFICATION or is_storage(proposal.abstract):
        transfer = choose_transfer_syntax(proposal.transfers)
    else:
        return ABSTRACT_NOT_SUPPORTED, _NO_TRANSFER
    return (TRANSFER_NOT_SUPPORTED, _NO_TRANSFER) if transfer is None else (ACCEPTED, transfer)
