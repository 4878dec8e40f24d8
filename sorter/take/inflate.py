"""The limited child process that reads a deflated data set (PS3.5 A.5).

Run as `python -m sorter.take.inflate OFFSET TAG=BYTES,… < FILE` (TAG in hex, and the bytes to keep of its value), it
inflates piece by piece, keeps nothing but the window of the walk, and prints what that found as JSON: `values` (tag: VR
and bytes in hex), `pixels`, `order`; or `reason`, or `truncated`. Exit code 3: a limit was reached.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import zlib

from sorter.errors import Quarantine
from sorter.take import elements
from sorter.take.elements import Truncated

_MEMORY = 256 << 20  # bytes of address space
_SECONDS = 5  # of CPU
_RATIO = 200  # inflated to deflated bytes; images reach about ten
_ALWAYS = 64 << 20  # inflated bytes that are read whatever the ratio
_MOST = 8 << 30


class _Inflater:
    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.size = os.fstat(0).st_size
        self.most = min(max(_ALWAYS, (self.size - offset) * _RATIO), _MOST)
        self.made = 0
        self.machine = zlib.decompressobj(-zlib.MAX_WBITS)
        self.pending = b""

    def read(self, most: int) -> bytes:
        """At most `most` inflated bytes; b"" at the end of the stream. What follows it (padding) is not looked at."""
        while not self.machine.eof:
            if not self.pending:
                self.pending = os.pread(0, 64 << 10, self.offset)
                self.offset += len(self.pending)
            ended = not self.pending
            piece = self.machine.decompress(self.pending, most)  # of the last bytes some may be to come still
            self.pending = self.machine.unconsumed_tail
            if ended and not piece and not self.machine.eof:
                raise Truncated("truncated: the deflated data set has no end")
            self.made += len(piece)
            if self.made > self.most:
                raise Quarantine(f"its deflated data set is more than {_RATIO} times larger inflated: no image is")
            if piece:
                return piece
        return b""


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))


def main(offset: int, wanted: dict[int, int]) -> dict[str, object]:
    """Walk the data set that is deflated from `offset` on; what to print."""
    stream = elements.Stream(_Inflater(offset).read, None)
    try:
        walked = elements.walk(stream, elements.EXPLICIT, wanted)
    except Truncated as error:
        return {"truncated": str(error)}
    except Quarantine as error:
        return {"reason": str(error)}
    except zlib.error:
        return {"reason": "its deflated data set cannot be inflated"}
    found = {tag: (vr.hex(), raw.hex()) for tag, (vr, raw) in walked.values.items()}
    return {"values": found, "pixels": walked.pixels, "order": walked.order}


if __name__ == "__main__":
    _limit()
    try:
        asked = (each.split("=") for each in sys.argv[2].split(","))
        sys.stdout.write(json.dumps(main(int(sys.argv[1]), {int(tag, 16): int(most) for tag, most in asked})))
    except MemoryError:
        sys.exit(3)
