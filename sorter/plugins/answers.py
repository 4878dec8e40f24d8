"""What a hook may answer: checked, bounded, and made plain, so that nothing of the plugin stays inside it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from sorter.errors import SorterError
from sorter.model import (
    DICOM,
    MERGES,
    Add,
    Expectation,
    Hold,
    Identity,
    Name,
    Only,
    Product,
    Skip,
    TargetKind,
    build,
    plain,
)
from sorter.naming import Pattern, safe_component

MAX_ANSWER = 4 << 20  # characters of JSON; room for a list of every SOP Instance UID of a long run
MAX_TEXT = 4096  # characters of one text
MAX_TARGETS = 100

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MAKE = re.compile(r"(/[^\0:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")  # a single file is named by its path

T = TypeVar("T")


def check(hook: str, answer: Any) -> Any:
    """The answer of `hook` as a new plain value; ValueError is a sentence that says what it may not be."""
    if answer is None or hook in ("sorter_event", "sorter_config"):
        return None
    return _CHECKS[hook](answer)


def frozen(value: T) -> T:
    """`value` with its mappings made read-only: what one plugin is given, it cannot change for the next."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changes: dict[str, Any] = {}
    for each in dataclasses.fields(value):
        item = getattr(value, each.name)
        if isinstance(item, Mapping):
            changes[each.name] = MappingProxyType(dict(item))
        elif isinstance(item, Identity):
            changes[each.name] = frozen(item)
    return dataclasses.replace(value, **changes) if changes else value


def _rebuilt(kind: type[T], answer: Any) -> T:
    if not isinstance(answer, kind):
        raise ValueError(f"it answered {_a(type(answer).__name__)}, not {_a(kind.__name__)}")
    return build(kind, _through_json(plain(answer)))


def _through_json(value: Any) -> Any:
    """Also turns subclasses (pydicom's UID, IS, DSfloat) into plain text and numbers."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its answer is not made of plain values: {error}") from None
    if len(text) > MAX_ANSWER:
        raise ValueError(f"its answer is {len(text)} characters long; {MAX_ANSWER} are allowed")
    again = json.loads(text)
    _check_texts(again)
    return again


def _check_texts(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("its answer contains a NUL character")
        if len(value) > MAX_TEXT:
            raise ValueError(f"its answer contains a text of {len(value)} characters; {MAX_TEXT} are allowed")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("its answer contains text that cannot be written as UTF-8") from None
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_texts(name)
            _check_texts(item)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)


def _identity(answer: Any) -> Identity:
    found = _rebuilt(Identity, answer)
    return dataclasses.replace(  # an empty part means the same as None: the next plugin may know it
        found, lab=found.lab or None, subject=found.subject or None, session=found.session or None
    )


def _group(answer: Any) -> str:
    if not isinstance(answer, str):
        raise ValueError(f"it answered {_a(type(answer).__name__)}, not text or None")
    key = _through_json(answer)
    if not key:
        raise ValueError("it answered an empty key; answer None for the usual rule")
    return str(key)


def _expectation(answer: Any) -> Expectation:
    found = _rebuilt(Expectation, answer)
    if not 0 <= found.confidence <= 1:
        raise ValueError(f"its confidence is {found.confidence}; it must lie between 0 and 1")
    if found.count is not None and found.count < 1:
        raise ValueError(f"it expects {found.count} instances; answer None where nothing is known")
    return found


def _route(answer: Any) -> Add | Only | Skip | Hold:
    if isinstance(answer, Skip | Hold):
        return _rebuilt(type(answer), answer)
    if not isinstance(answer, Add | Only):
        raise ValueError(f"it answered {_a(type(answer).__name__)}, not Add, Only, Skip or Hold")
    kind = type(answer).__name__
    if isinstance(answer.targets, str):
        raise ValueError(f'it answered {kind}("{answer.targets}"); the targets are a list: {kind}(("name",))')
    found = _rebuilt(type(answer), answer)
    if not found.targets:
        raise ValueError(f"it answered {kind} without a target; answer None for no opinion, Skip(why) for nowhere")
    if len(found.targets) > MAX_TARGETS:
        raise ValueError(f"it answered {kind} with {len(found.targets)} targets; {MAX_TARGETS} are allowed")
    return found


def _name(answer: Any) -> Name:
    found = _rebuilt(Name, answer)
    if not found.file:
        raise ValueError("its Name has no pattern for the file")
    try:
        Pattern(found.folder)
        Pattern(found.file, file=True)
    except SorterError as error:
        raise ValueError(f"of its Name, {error}") from None
    return found


def _listed(kind: type[T], answer: Any) -> tuple[T, ...]:
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise ValueError(f"it answered {_a(type(answer).__name__)}, not a list of {kind.__name__}")
    return tuple(_rebuilt(kind, item) for item in answer)


def _products(answer: Any) -> tuple[Product, ...]:
    found = _listed(Product, answer)
    for product in found:
        if product.name == DICOM or not _NAME.fullmatch(product.name):
            raise ValueError(
                f"a product cannot be named {product.name!r}: lower-case letters, digits, - and _, and not {DICOM}"
            )
        if not _MAKE.fullmatch(product.make):
            raise ValueError(f'product {product.name}: make is {product.make!r}; write it as "module:function"')
        if min(product.timeout, product.memory, product.cpus) < 1:
            raise ValueError(f"product {product.name}: timeout, memory and cpus must be at least 1")
        for name, how in product.merge.items():
            shown = name.removeprefix(".")  # hidden ones are merged too, but for sorter's own
            if how not in MERGES or not shown or safe_component(shown) != shown or name.startswith(".sorter"):
                said = f"{name!r} cannot be merged by {how!r}: a safe file name, and one of {', '.join(MERGES)}"
                raise ValueError(f"product {product.name}: {said}")
    return found


def _targets(answer: Any) -> tuple[TargetKind, ...]:
    found = _listed(TargetKind, answer)
    for kind in found:
        if not _NAME.fullmatch(kind.name):
            raise ValueError(f"a kind of target cannot be named {kind.name!r}: lower-case letters, digits, - and _")
        if not _CODE.fullmatch(kind.code):
            raise ValueError(f'kind of target {kind.name}: code is {kind.code!r}; write it as "module:Class"')
    return found


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "sorter_identify": _identity,
    "sorter_group": _group,
    "sorter_expect": _expectation,
    "sorter_route": _route,
    "sorter_name": _name,
    "sorter_products": _products,
    "sorter_targets": _targets,
}
