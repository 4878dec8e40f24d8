"""The story of a series in sentences, from its records: what came, what is known, where it went, what is awaited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sorter.model import Instance, Revision, Standing, UnitKind, Verdict
from sorter.spool import Unit, UnitSummary
from sorter.spool.studies import StudyRecord
from sorter.words import counted

_LISTS = {"commitment": "A storage commitment request of {}", "query": "The list that {} answered with"}

_ASIDE = {
    Standing.CONFLICT: "{} with the SOP Instance UID of another and other pixels: both are kept, and both delivered",
    Standing.SUPERSEDED: "{} with another header than a copy that is current: kept, not delivered",
    Standing.TRANSCODED: "{} in another transfer syntax than a copy that is current: kept, not delivered",
    Standing.AGAIN: "{} once more after the first copies had left: kept until those are verified again",
}

_MEANS = {
    Verdict.LISTED: "listed: its sender, or a person, says that this is all",
    Verdict.COUNTED: "counted: as many as a count says that has been right here before",
    Verdict.QUIET: "quiet: nothing more came for a while, which does not prove that it is complete",
    Verdict.STOPPED: "stopped: the run seems to have been ended early",
    Verdict.INCOMPLETE: "incomplete: images are missing",
}


def sentences(unit: Unit, summary: UnitSummary) -> Iterator[str]:
    """What is to be told of a unit, one sentence after the other."""
    yield from _came(unit)
    yield from _evidence(unit)
    if summary.missing:
        yield _sentence(lacks(summary))
    revision = unit.latest_revision()
    if revision is not None:
        yield _verdict(revision)
    if summary.state == "open":
        counted = f"{summary.images} of {summary.expected} images are here. " if summary.expected else ""
        yield f"It is still open. {counted}{_sentence(summary.why[:1].upper() + summary.why[1:])}"
    elif summary.state in ("held", "kept"):
        yield f"It is {summary.state}: {_sentence(summary.why)}"
    yield from _decided(unit)
    if unit.withdrawn:
        yield f"It was withdrawn ({unit.withdrawn}). What became of each copy stands below."
    else:
        yield from _went(summary)
    if summary.left:
        yield (
            f"{_images(summary.left)} left the store after what lies at the targets was read again. "
            "It is taken from there where it is needed."
        )


def _came(unit: Unit) -> Iterator[str]:
    by_source: dict[tuple[str, ...], list[Instance]] = {}
    for each in unit.instances.values():
        source = each.source
        who: tuple[str, ...] = (
            ("drop", source.drop, str(source.uid)) if source.dropped else (source.sender, source.called)
        )
        by_source.setdefault(who, []).append(each)
    for who, images in by_source.items():
        yield f"{_images(len(images))} came {_span(images)} {_from(who, images, unit)}."
    for standing, words in _ASIDE.items():
        count = sum(each.standing is standing for each in unit.instances.values())
        if count:
            yield f"{words.format(_images(count))}."


def _from(who: tuple[str, ...], images: Sequence[Instance], unit: Unit) -> str:
    if who[0] == "drop":
        whole = ", which is known to be whole" if who[1] in unit.whole_drops else ""
        return f"in {who[1]}, dropped by the account {who[2]}{whole}"
    associations = dict.fromkeys(each.source.association for each in images if each.source.association)
    ends = Counter(unit.associations.get(each) or "open" for each in associations)
    how = ", ".join(f"{count} {end}" for end, count in ends.items())
    called = f", calling {who[1]}" if who[1] else ""
    count = "1 association" if len(associations) == 1 else f"{len(associations)} associations"
    return f"from {who[0] or 'an unknown sender'}{called}, in {count} ({how})"


def _span(images: Sequence[Instance]) -> str:
    times = sorted(each.arrived for each in images)
    first, last = times[0].replace("T", " ")[:19], times[-1].replace("T", " ")[:19]
    return f"on {first}" if first == last else f"from {first} to {last if last[:10] != first[:10] else last[11:]}"


def _evidence(unit: Unit) -> Iterator[str]:
    for (kind, sender), names in unit.lists.items():
        yield f"{_LISTS.get(kind, 'A list of {}').format(sender)} names {_images(len(names))} of it."
    for sender, asked in unit.asked.items():
        if asked.why:
            yield f"{sender} was asked what it has of it: {_sentence(asked.why)}"


def _verdict(revision: Revision) -> str:
    missing = f" Named, and not here: {_images(len(revision.missing))}." if revision.missing else ""
    made, count = revision.made[:19].replace("T", " "), _images(len(revision.deliverable))
    if revision.kind is not UnitKind.SERIES:
        count = f"{len(revision.members)} series"
    why = f"{_MEANS[revision.verdict]} ({'; '.join(revision.reasons)})"
    return f"Revision {revision.revision} of {made} has {count} and is {why}.{missing}"


def _decided(unit: Unit) -> Iterator[str]:
    said = unit.decided
    if said is None:
        return
    parts = [f"its subject is {said.subject}"] * bool(said.subject)
    parts += [f"it belongs to lab {said.lab}"] * bool(said.lab)
    yield (
        f"{said.by or 'A person'} said on {said.at[:10]} that {' and that '.join(parts)}; inside the images it stands "
        "as it was sent. `sorter fix … --undo` takes that back."
    )


def _went(summary: UnitSummary) -> Iterator[str]:
    for each in summary.deliveries:
        where = f"{each.product} at {each.target}"
        if each.state == "delivered":
            yield f"{where}: delivered to {each.folder}{f' ({each.why})' if each.why else ''}."
        elif each.state == "nothing":
            yield f"{where}: there was nothing to make{f' ({each.why})' if each.why else ''}."
        elif each.state == "failed":
            yield f"{where}: failed, {_sentence(each.why)} `sorter retry` tries again at once."
        else:
            yield f"{where}: owed, {_sentence(each.why or 'on its way')}"


def lacks(summary: UnitSummary) -> str:
    """What a sender has and sorter has not, and what to type about it."""
    uid = summary.series_uids[0] if len(summary.series_uids) == 1 else summary.key[:8]
    be = "is" if summary.missing == 1 else "are"
    return f"{_images(summary.missing)} that its sender has {be} not here; `sorter ask {uid}` fetches what is missing"


def _images(count: int) -> str:
    return counted(count, "images")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def of_study(record: StudyRecord | None, summary: UnitSummary) -> Iterator[str]:
    """Whether the study of this series has settled, and what it lacks. A subject has none of its own."""
    if summary.kind is UnitKind.SUBJECT:
        return
    if record is None or not record.study.revision:
        if summary.state == "open" or record is None or record.members.get(summary.key) != summary.revision:
            yield "Its study has not settled yet."
        return
    study = record.study
    at, again = record.at[:19].replace("T", " "), f", for the {_nth(study.revision)} time" if study.revision > 1 else ""
    yield f"Its study settled on {at}{again}, with {len(study.series)} series: {record.why}."
    for missing in study.missing:
        yield f"The lab {missing.lab} {missing.says}."
    seen = summary.kind is not UnitKind.SERIES or record.members.get(summary.key) == summary.revision
    if summary.state == "open" or not seen:
        yield "More of the study came since; it has not settled again yet."


def _nth(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
