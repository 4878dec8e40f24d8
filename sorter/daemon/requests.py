"""What commands ask of the sorting process: a file each in spool/requests/, durable, answered in the order of names.

A request goes only when it was done, so after a crash it is done again: every one of them may come twice.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sorter.daemon.assembly import Parts
from sorter.labs.moving import Trial
from sorter.model import build
from sorter.spool import Spool
from sorter.spool.decisions import Decision
from sorter.spool.exports import Export
from sorter.spool.requests import request as request

log = logging.getLogger("sorter.sort")

_LARGEST = 64 << 20  # bytes: the names of a very large series
_AGAIN = 30.0  # seconds until what the disk did not allow is tried again
_IN_ORDER = "decide-"


def answer_requests(spool: Spool, parts: Parts) -> float:
    """Do what was asked since the last call; when to be called again at the latest, in the time of pipeline's turns.

    What the disk does not allow, as of a series whose records are damaged, is tried again, and holds up nothing else;
    but what people decide counts in its order.
    """
    now, waits, names = parts.pipeline.now, dict[str, float](), spool.files.names(spool.requests)
    for name in [name for name in names if name.endswith(".json")]:
        due = parts.put_off.get(name, now)
        if name.startswith(_IN_ORDER):
            due = max([due, *(each for other, each in waits.items() if other.startswith(_IN_ORDER))])
        if due <= now:
            try:
                _answer(spool.requests / name, spool, parts)
                continue
            except OSError as error:
                due = now + _AGAIN
                if name not in parts.put_off:
                    kind, why = name.partition("-")[0], error.strerror or "error"
                    log.error("a request (%s) cannot be done yet, and is tried again: %s", kind, why)
        waits[name] = due
    parts.put_off = waits
    return min(waits.values(), default=math.inf)


def _answer(path: Path, spool: Spool, parts: Parts) -> None:
    try:
        _do(json.loads(spool.files.read_file(path, limit=_LARGEST)), parts)
    except (ValueError, KeyError, TypeError):
        log.error("%s is no request that this sorter understands; it was removed", path.name)
    spool.files.unlink(path)


def _do(asked: Mapping[str, Any], parts: Parts) -> None:
    pipeline = parts.pipeline
    match asked["do"]:
        case "retry":
            parts.retry()
        case "reload":
            parts.reread()
        case "complete":
            pipeline.complete(str(asked["key"]))
        case "ask":
            pipeline.ask_sender(str(asked["key"]))
        case "hold":
            pipeline.hold(str(asked["key"]), str(asked["why"]))
        case "withdraw":
            keys, studies = ([str(each) for each in asked[name]] for name in ("keys", "studies"))
            pipeline.withdraw(keys, studies, str(asked["why"]), str(asked["by"]))
        case "decide":
            keys, studies = ([str(each) for each in asked[name]] for name in ("keys", "studies"))
            pipeline.deciding.decide(keys, studies, build(Decision, asked["decision"]))
        case "export":
            pipeline.exporting.begin(build(Export, asked["export"]))
        case "claim":
            keys = [str(each) for each in asked["keys"]]
            pipeline.deciding.claim(keys, str(asked["lab"]), str(asked["by"]), granted=bool(asked["granted"]))
        case "try rules":
            parts.trials.ask(build(Trial, asked["trial"]))
        case "answer claim":
            pipeline.deciding.answer(str(asked["code"]), granted=bool(asked["granted"]))
        case "mend":
            where = str(asked["product"]), str(asked["target"])
            pipeline.mend(str(asked["key"]), where, [str(each) for each in asked["names"]])
