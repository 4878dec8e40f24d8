"""`sorter why`: the story of a series in sentences; and what `status` shows of an open one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sorter.cli.main import sorter
from sorter.durable import Files
from sorter.exports.source import Told, lines
from sorter.model import Instance, Revision, Source, Standing, UnitKind, Verdict, unit_key
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.unit import DeliveryState, took
from sorter.story import sentences

KEY = unit_key(UnitKind.SERIES, "1.2", "1.2.3")


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    unit = Unit(spool, KEY, "1.2")
    spool.files.make_folders(unit.folder)
    return unit


def take(unit: Unit, number: int, source: Source, standing: Standing = Standing.CURRENT) -> None:
    instance = Instance(
        study_uid="1.2", series_uid="1.2.3", sop_uid=f"1.2.3.{number}", sop_class="1.2", transfer_syntax="1.2",
        file=f"00/{number}-{standing}.dcm", size=1, sha256="a", dataset=f"{number}{standing}", pixels="b",
        arrived=f"2026-01-02T10:00:{number:02d}", source=source, standing=standing, header={"PatientID": "P1"},
    )  # fmt: skip
    unit.add_evidence([took(instance)])
    unit.admit(instance)


def summary(**values: Any) -> UnitSummary:
    given = {"state": "delivered", "images": 3, "subject": "P1", **values}
    return UnitSummary(KEY, UnitKind.SERIES, "1.2", ("1.2.3",), **given)


def test_what_came_from_whom_and_what_became_of_it(unit: Unit) -> None:
    for number in (1, 2):
        take(unit, number, Source("GE750", "SORTER", "dicom://10.1.2.3:4711", association=f"a{number}"))
    take(unit, 2, Source(uid=1000, drop="disk"), Standing.CONFLICT)
    unit.end_association("a1", "released")
    unit.end_association("a2", "aborted")
    unit.drop_is_whole("disk")
    unit.add_list("commitment", "GE750@10.1.2.3", ["1.2.3.1", "1.2.3.2"])
    reasons = ("images 3–4 are missing",)
    instances = tuple(unit.instances.values())
    unit.write_revision(
        Revision(KEY, UnitKind.SERIES, 1, "2026-01-02T10:30:00+01:00", Verdict.INCOMPLETE, reasons, instances, ("9",))
    )
    deliveries = (
        DeliveryState("dicom", "memory", "delivered", folder="P1/x"),
        DeliveryState("nifti", "memory", "failed", "it could not be made"),
        DeliveryState("dicom", "backup", "owed", "the mount is away"),
    )
    said = list(sentences(Unit.load(unit.spool, KEY), summary(deliveries=deliveries)))
    assert said == [
        (
            "2 images came from 2026-01-02 10:00:01 to 10:00:02 from GE750@10.1.2.3, calling SORTER, "
            "in 2 associations (1 released, 1 aborted)."
        ),
        "1 image came on 2026-01-02 10:00:02 in disk, dropped by the account 1000, which is known to be whole.",
        "1 image with the SOP Instance UID of another and other pixels: both are kept, and both delivered.",
        "A storage commitment request of GE750@10.1.2.3 names 2 images of it.",
        (
            "Revision 1 of 2026-01-02 10:30:00 has 3 images and is incomplete: images are missing "
            "(images 3–4 are missing). Named, and not here: 1 image."
        ),
        "dicom at memory: delivered to P1/x.",
        "nifti at memory: failed, it could not be made. `sorter retry` tries again at once.",
        "dicom at backup: owed, the mount is away.",
    ]


def test_an_open_series_says_what_it_waits_for_and_how_far_it_is(unit: Unit) -> None:
    take(unit, 1, Source("GE750", "SORTER", "10.1.2.3", association="a1"))
    why = "if nothing more comes it is delivered at 10:01:00 as quiet (no image for 30 s)"
    open_ = summary(state="open", images=1, expected=4, why=why, evidence=unit.evidence_size())
    unit.write_summary(open_)
    said = list(sentences(unit, open_))
    assert said[0].endswith("in 1 association (1 open).")
    assert said[1] == f"It is still open. 1 of 4 images are here. {why[0].upper()}{why[1:]}."
    shown = CliRunner().invoke(sorter, ["status", "--root", str(unit.spool.root.parent)])
    assert shown.exit_code == 0, shown.output
    assert "█████░░░░░░░░░░░░░░░ 1 of 4 images" in shown.output
    told = CliRunner().invoke(sorter, ["why", "P1", "--root", str(unit.spool.root.parent)])
    assert "1 of 4 images are here" in told.output


def test_what_failed_often_shows_its_last_log_alone() -> None:
    failed = {"at": "2026-01-02T10:11:12", "says": "nifti could not be made: x", "log": "first\nlast"}
    story = ({**failed, "log": "of before"}, failed, {"at": "2026-01-02T10:11:13", "says": "released"})
    said = [each.strip() for each in lines(summary(state="owed"), Told(story=story))]
    assert said == [
        f"P1 ({KEY[:8]}): being delivered", "2026-01-02 10:11:12  nifti could not be made: x",
        "2026-01-02 10:11:12  nifti could not be made: x", "first", "last", "2026-01-02 10:11:13  released",
    ]  # fmt: skip


def test_a_series_whose_images_are_there_is_not_on_its_way_for_a_product_that_fails(unit: Unit) -> None:
    take(unit, 1, Source("GE750", "SORTER", "10.1.2.3", association="a1"))
    images = DeliveryState("dicom", "memory", "delivered", folder="P1/x")
    nifti = DeliveryState("nifti", "memory", "failed", "nifti could not be made: x")
    stands = summary(state="owed", why=nifti.why, images=1, evidence=unit.evidence_size(), deliveries=(images, nifti))
    unit.write_summary(stands)
    shown = CliRunner().invoke(sorter, ["status", "--root", str(unit.spool.root.parent)]).output
    assert "1 series delivered but for a product that fails" in shown
    assert "being delivered" not in shown
    assert "delivered but for nifti; nifti could not be made: x" in shown
    backup = DeliveryState("dicom", "backup", "owed", "the mount is away")
    nothing = DeliveryState("report", "memory", "nothing")
    for deliveries in ((images, nifti, backup), (nifti,), (nothing, nifti)):  # of the last two nothing is there at all
        unit.write_summary(replace(stands, deliveries=deliveries))
        shown = CliRunner().invoke(sorter, ["status", "--root", str(unit.spool.root.parent)]).output
        assert "1 series being delivered" in shown
        assert "delivered but for" not in shown
