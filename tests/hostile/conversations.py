"""Conversations with a receiver that are nearly right: PDUs, items, PDVs, command sets and what a commitment asks for,
with something wrong at one or a few places.

Each case is made from a seed and its number alone, so that both together repeat it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sorter.testing.peer import IMPLICIT, MR_IMAGE, VERIFICATION

COMMITMENT = b"1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = b"1.2.840.10008.1.20.1.1"
PLAIN, TLS, NO_TLS = "plain", "TLS", "plain on the port for TLS"

ESCAPED = "sorter-fuzz-has-escaped"
"""What a file is called that a received value has led out of the spool."""

# --- what is sent ---------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A PDU, an item, a PDV or an element: a head that says how long the rest is, and the rest. The head may lie."""

    head: Callable[[Node, int], bytes]
    fields: list[int]  # of the head: type, number, flags
    parts: list[Node] = field(default_factory=list)
    value: bytes = b""
    length: int | None = None  # what the head says; None: the truth
    tail: bytes = b""  # behind it, and counted by nobody

    def encoded(self) -> bytes:
        rest = self.value + b"".join(part.encoded() for part in self.parts)
        return self.head(self, len(rest) if self.length is None else self.length) + rest + self.tail

    def all(self) -> Iterator[Node]:
        yield self
        for part in self.parts:
            yield from part.all()


def _pdu(node: Node, length: int) -> bytes:
    return struct.pack(">BBI", node.fields[0] & 255, node.fields[1] & 255, length & 0xFFFFFFFF)


def _item(node: Node, length: int) -> bytes:
    return struct.pack(">BBH", node.fields[0] & 255, node.fields[1] & 255, length & 0xFFFF)


def _pdv(node: Node, length: int) -> bytes:
    return struct.pack(">IBB", (length + 2) & 0xFFFFFFFF, node.fields[0] & 255, node.fields[1] & 255)


def _element(node: Node, length: int) -> bytes:
    return struct.pack("<HHI", node.fields[0] & 0xFFFF, node.fields[1] & 0xFFFF, length & 0xFFFFFFFF)


def pdu(kind: int, *parts: Node, value: bytes = b"") -> Node:
    return Node(_pdu, [kind, 0], list(parts), value)


def item(kind: int, *parts: Node, value: bytes = b"") -> Node:
    return Node(_item, [kind, 0], list(parts), value)


ABSTRACTS = (MR_IMAGE, MR_IMAGE, VERIFICATION, COMMITMENT, b"1.3.46.670589.2.4.1.1")
TRANSFERS = (IMPLICIT, IMPLICIT, b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.4.70")
LIMITS = (0, 16384, 16384, 64, 7, 1 << 31)  # of the longest PDU that is taken


def a_request(rng: random.Random, proposed: list[bytes]) -> Node:
    contexts = []
    for number, abstract in enumerate(proposed):
        syntaxes = item(0x30, value=abstract), item(0x40, value=rng.choice(TRANSFERS))
        contexts.append(item(0x20, *syntaxes, value=bytes((2 * number + 1, 0, 0, 0))))
    user = [item(0x51, value=struct.pack(">I", rng.choice(LIMITS))), item(0x52, value=b"1.2.3")]
    extras = [
        item(0x53, value=b"\0\5\0\5"),
        item(0x54, value=b"\0\x19" + MR_IMAGE + b"\1\1"),
        item(0x55, value=b"FUZZ"),
        item(0x56, value=b"\0\x19" + MR_IMAGE + b"\2\0\0\0"),
        item(0x58, value=b"\2\1\0\4user\0\4pass"),
    ]
    user += rng.sample(extras, rng.randrange(len(extras)))
    head = b"\0\1\0\0" + b"SORTER".ljust(16) + b"FUZZER".ljust(16) + bytes(32)
    application = item(0x10, value=b"1.2.840.10008.3.1.1.1")
    return pdu(1, application, *contexts, item(0x50, *user), value=head)


C_STORE, C_ECHO, C_FIND, C_CANCEL, N_ACTION, C_STORE_RESPONSE = 0x0001, 0x0030, 0x0020, 0x0FFF, 0x0130, 0x8001


def a_message(rng: random.Random, proposed: list[bytes]) -> list[Node]:
    """The PDUs of a request, its data set in pieces."""
    kind = rng.choice((C_STORE,) * 6 + (C_ECHO, C_ECHO, C_FIND, N_ACTION, N_ACTION, C_CANCEL, C_STORE_RESPONSE))
    abstract = {C_STORE: MR_IMAGE, N_ACTION: COMMITMENT}.get(kind, VERIFICATION)
    numbers = [2 * at + 1 for at, each in enumerate(proposed) if each == abstract]
    context = rng.choice(numbers) if numbers and rng.random() < 0.95 else rng.choice((1, 3, 5))
    with_data = kind == C_STORE or (kind in (C_FIND, N_ACTION) and rng.random() < 0.8)
    elements = a_command(rng, kind, abstract, with_data)
    at = rng.randrange(len(elements)) if rng.random() < 0.1 else 0
    commands = [Node(_pdv, [context, 1], elements[:at])] if at else []
    found = [pdu(4, each) for each in [*commands, Node(_pdv, [context, 3], elements[at:])]]
    if not with_data:
        return found
    if kind == N_ACTION and rng.random() < 0.8:
        return [*found, pdu(4, Node(_pdv, [context, 2], what_to_commit(rng)))]
    size = rng.choice((0, 2, 300, 300, 2000, 20_000)) if rng.random() < 0.98 else 300_000
    data, step = rng.randbytes(size), rng.choice((1, 100, 1000, 16_000, 130_000))
    step = max(step, size // 40, 1)
    pieces = [data[at : at + step] for at in range(0, size, step)] or [b""]
    last = len(pieces) - 1
    pdvs = [Node(_pdv, [context, 2 if at == last else 0], value=piece) for at, piece in enumerate(pieces)]
    while pdvs:
        together = rng.choice((1, 1, 2, 5))
        found.append(pdu(4, *pdvs[:together]))
        del pdvs[:together]
    return found


def a_command(rng: random.Random, kind: int, abstract: bytes, with_data: bool) -> list[Node]:
    """The elements of a command set (PS3.7 E.1); seldom the SOP instance is called what no file may be called."""
    instance = b"1.2.826.0.1.%d" % rng.randrange(1000) if rng.random() < 0.97 else rng.choice(STRANGE)[:200]
    action = kind == N_ACTION
    values = {
        0x0000: struct.pack("<I", 90),
        0x0003 if action else 0x0002: abstract + b"\0" * (len(abstract) % 2),
        0x0100: struct.pack("<H", kind),
        0x0110: struct.pack("<H", rng.randrange(1 << 16)),
        0x0700: b"\0\0",
        0x0800: struct.pack("<H", 0 if with_data else 0x0101),
        0x1001 if action else 0x1000: COMMITMENT_INSTANCE if action else instance,
    }
    if action:
        values[0x1008] = b"\1\0"
    return [Node(_element, [0, number], value=value) for number, value in values.items()]


def what_to_commit(rng: random.Random) -> list[Node]:
    """A Transaction UID and references to instances (PS3.4 table J.3-1)."""
    references = [
        Node(_element, [0xFFFE, 0xE000], [
            Node(_element, [0x0008, 0x1150], value=MR_IMAGE + b"\0"),
            Node(_element, [0x0008, 0x1155], value=b"1.2.826.0.1.%d" % rng.randrange(1000)),
        ])
        for _ in range(rng.choice((0, 1, 2, 30)))
    ]  # fmt: skip
    transaction = Node(_element, [0x0008, 0x1195], value=b"1.2.826.0.9.%d" % rng.randrange(1 << 40))
    return [transaction, Node(_element, [0x0008, 0x1199], references)]


def a_conversation(rng: random.Random) -> Node:
    proposed = [rng.choice(ABSTRACTS) for _ in range(rng.choice((1, 2, 3, 3, 10, 128)))]
    said = [a_request(rng, proposed)]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        said += a_message(rng, proposed)
    said += rng.choice(([pdu(5, value=bytes(4))], [pdu(5, value=bytes(4))], [pdu(7, value=bytes(4))], []))
    return Node(lambda *_: b"", [], said)


# --- what is wrong with it ------------------------------------------------------------------------------------------


STRANGE = (
    b"", b"\0", b" " * 16, b"../../../../" + ESCAPED.encode(),
    b"/tmp/" + ESCAPED.encode(), b"1.2.\0.3", b"%s%n", b"\xff" * 64, b"1." * 60,
    "Ä\u202eexe".encode(), b"\n\x1b[2J", b"9" * 65, b"A" * 70_000,
)  # fmt: skip


LENGTHS = (0, 1, 0xFFFF, 0x10000, 131_072, 0x7FFFFFFF, 0xFFFFFFFD, 0xFFFFFFFF)
FIELDS = (*range(9), 0x10, 0x20, 0x30, 0x40, 0x50, 0x7F, 0x80, 0xFF)


def wrong_length(rng: random.Random, node: Node, _: Node) -> None:
    true = len(node.value) + sum(len(part.encoded()) for part in node.parts)
    node.length = max(0, rng.choice((*LENGTHS, true - 1, true + 1, true // 2, true * 2)))


def wrong_field(rng: random.Random, node: Node, _: Node) -> None:
    if node.fields:
        node.fields[rng.randrange(len(node.fields))] = rng.choice((*FIELDS, rng.randrange(1 << 16)))


def twice(rng: random.Random, node: Node, above: Node) -> None:
    at = rng.randrange(len(above.parts) + 1)
    above.parts[at:at] = [node] * (rng.choice((1, 1, 2, 50)) if len(node.encoded()) < 20_000 else 1)


def missing(rng: random.Random, node: Node, above: Node) -> None:
    above.parts = [part for part in above.parts if part is not node]


def out_of_order(rng: random.Random, node: Node, above: Node) -> None:
    rng.shuffle(above.parts)


def inside_itself(rng: random.Random, node: Node, above: Node) -> None:
    inner = Node(node.head, list(node.fields), list(node.parts), node.value)
    node.parts = [inner]


def flipped(rng: random.Random, node: Node, _: Node) -> None:
    if node.value:
        data = bytearray(node.value)
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        node.value = bytes(data)


def strange_value(rng: random.Random, node: Node, _: Node) -> None:
    node.value = rng.choice(STRANGE)


def cut(rng: random.Random, node: Node, _: Node) -> None:
    node.value = node.value[: rng.randrange(len(node.value) + 1)]


def junk_behind(rng: random.Random, node: Node, _: Node) -> None:
    node.tail = rng.randbytes(rng.choice((1, 3, 6, 100, 3000)))


MUTATIONS = (
    wrong_length, wrong_length, wrong_field, wrong_field, twice, missing, out_of_order, inside_itself, flipped,
    strange_value, cut, junk_behind,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Bytes in the pieces in which they are sent, where they are said, and how the sender ends."""

    pieces: list[bytes]
    door: str  # PLAIN, TLS or NO_TLS
    end: str  # "closes its side", "breaks", "waits"


def a_case(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed}/{number}")
    said = a_conversation(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        if not said.parts:  # one mutation has left nothing for the next
            break
        around = rng.choice(said.parts)  # a request of 128 contexts must not have all the mistakes
        above = rng.choice([said, *(each for each in around.all() if each.parts)])
        rng.choice(MUTATIONS)(rng, rng.choice(above.parts), above)
    data = said.encoded()[: 2 << 20]
    if rng.random() < 0.15:
        data = data[: rng.randrange(len(data) + 1)]
    ends = ("closes its side",) * 45 + ("breaks",) * 4 + ("waits",)
    doors = (PLAIN,) * 45 + (TLS,) * 4 + (NO_TLS,)
    return Case(list(_segments(rng, data)), rng.choice(doors), rng.choice(ends))


def _segments(rng: random.Random, data: bytes) -> Iterator[bytes]:
    most = rng.choice((1 << 30, 1 << 30, 1 << 30, 5000, 100, 7))
    at = 0
    while at < len(data):
        left = len(data) - at
        size = min(left, rng.randrange(1, most + 1) if most < 1 << 30 and at < 4000 else left)
        yield data[at : at + size]
        at += size
