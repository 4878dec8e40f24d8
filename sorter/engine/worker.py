"""Inside the forked worker: set the limits, load the maker, run it, say how it went."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from sorter.errors import words_of
from sorter.model import Job, build
from sorter.processes import die_with, limit, yield_to_others

_BRAKE = 2  # times the processes of a job: where the kernel stops one that forks faster than anybody looks
_GRACE = 5  # seconds of processor between the signal that may be caught and the one that may not


def run(description: dict[str, Any], log: int, result: int) -> None:
    """Make the product; `log` and `result` are descriptors for what is printed and for how it went."""
    os.setsid()
    if not die_with(description["supervisor"], signal.SIGKILL):
        return
    yield_to_others()
    _redirect(log)
    os.set_inheritable(result, False)
    _limit(description)
    answer = _make(description)
    said = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace")
    os.write(result, said[:4000])  # below PIPE_BUF: written at once, whole


def _redirect(log: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _limit(description: dict[str, Any]) -> None:
    seconds = description["timeout"] * description["job"].get("cpus", 1)
    memory = description["memory"] << 20
    limits = description["limits"]
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, seconds, seconds + _GRACE),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, limits["bytes"], limits["bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
    ):
        limit(kind, soft, hard)
    if "tasks" in description:  # the kernel counts all that this account runs; the supervisor looks at this job alone
        most = description["tasks"] + _BRAKE * limits["processes"]
        limit(resource.RLIMIT_NPROC, most, most)


def _make(description: dict[str, Any]) -> dict[str, str]:
    """How it went: made, nothing, or failed with a sentence. The traceback goes to the log."""
    try:
        job = build(Job, description["job"])
        answer = _maker(description["make"])(job)
    except MemoryError:
        return _failed(f"more than {description['memory']} MiB of memory")
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a plugin)
        traceback.print_exc()
        return _failed(words_of(error)[:600])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if answer is None:
        return {"state": "made", "why": ""}
    if answer == "nothing":
        return {"state": "nothing", "why": "there is nothing to make of it"}
    return _failed(f'{description["make"]} answered {type(answer).__name__}; a maker answers None or "nothing"')


def _failed(why: str) -> dict[str, str]:
    return {"state": "failed", "why": why}


def _maker(make: str) -> Callable[[Job], object]:
    """The function named "module:function", or "/path/of/a/plugin.py:function"."""
    module, _, name = make.rpartition(":")
    importlib.invalidate_caches()
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    spec = importlib.util.spec_from_file_location("sorter_file_maker", module)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} cannot be loaded")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)  # type: ignore[no-any-return]
