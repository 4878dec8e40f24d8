"""Series that are one: the built-in rules, and that what was decided with the first image stays so."""

from __future__ import annotations

import io
import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from sorter.builtin.grouping import Settings, sorter_group
from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.model import Instance, Source, UnitKind, unit_key
from sorter.plugins import Plugins
from sorter.spool import Spool, Unit
from sorter.take.filing import Candidate, Filed, Filing
from sorter.take.groups import REMEMBERED, Groups

MR, ENHANCED = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
STEM = "1.2.392.200036.9116.4.2.9106.366.10001.0.0.1"
ALL = Settings(merge=("canon-slices", "siemens-mfsplit"))
NONE = Settings()


def canon(volumes: int = 3, slices: int = 4, **more: Any) -> list[dict[str, Any]]:
    """As the issue says: the last number of the UID is the slice; SeriesNumber is that of the whole."""
    return [
        {"series": f"{STEM}.{slice_ + 1}", "sop": f"{STEM}.{slice_ + 1}.{volume}", "Manufacturer": "CANON_MEC",
         "SeriesNumber": 10000, "InstanceNumber": volume + 1, "SoftwareVersions": "V6.0SP2001*M", **more}
        for volume in range(volumes) for slice_ in range(slices)
    ]  # fmt: skip


def siemens(run: int = 1, volumes: int = 3, slices: int = 4, **more: Any) -> list[dict[str, Any]]:
    """Each volume with a series UID and number of its own; the time of the series is the run's."""
    return [
        {"series": f"1.3.12.{run}.{volume + 1}", "sop": f"1.3.12.{run}.{volume + 1}.{slice_}",
         "Manufacturer": "Siemens Healthineers", "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE", "MFSPLIT"],
         "SeriesNumber": 10 * run + volume, "InstanceNumber": slice_ + 1, "SeriesDate": "20260314",
         "SeriesTime": f"1012{run:02d}.123000", "FrameOfReferenceUID": "1.3.12.9", "ProtocolName": "rest",
         "SeriesDescription": "rest", "EchoTime": 30.0, **more}
        for volume in range(volumes) for slice_ in range(slices)
    ]  # fmt: skip


def instance(series: str, sop: str, sop_class: str = MR, study: str = "1.2.3", **header: Any) -> Instance:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in header.items()}
    return Instance(study, series, sop, sop_class, "1.2.840.10008.1.2.1", "", 1, "", sop, "", "", header=plain)


def groups_of(images: list[dict[str, Any]], settings: Settings = ALL) -> set[str | None]:
    return {sorter_group(instance(**each), settings) for each in images}


# --- the rules ------------------------------------------------------------------------------------------------------


def test_nothing_is_merged_unless_asked_for() -> None:
    assert groups_of([*canon(), *siemens()], NONE) == {None}
    assert groups_of(canon(), Settings(merge=("siemens-mfsplit",))) == {None}
    with pytest.raises(ConfigError, match=r"plugins.grouping.merge"):
        Plugins.load({"grouping": {"merge": ["canon"]}}, None, Files(), {})


def test_the_slices_of_a_canon_series_are_one() -> None:
    [key] = groups_of(canon())
    assert key == f"canon-slices 10000 {STEM}"


def test_the_volumes_of_a_siemens_run_are_one() -> None:
    [key] = groups_of(siemens())
    assert key is not None


@pytest.mark.parametrize(
    "change",
    [
        {"SeriesNumber": 11000},
        {"SeriesNumber": None},
        {"SeriesNumber": "10000a"},
        {"sop_class": ENHANCED},
        {"Manufacturer": "SIEMENS"},
        {"Manufacturer": None},
    ],
)
def test_no_other_series_joins_canon_slices(change: dict[str, Any]) -> None:
    [mine] = groups_of(canon())
    assert mine not in groups_of([{**each, **change} for each in canon()])


@pytest.mark.parametrize(
    "series", [STEM + "0.1", "1.2.392.200036.9116.4.2.9106.366.10002.0.0.1.1", "12345", "1.", f"{STEM}.20260314101233"]
)
def test_a_canon_series_of_another_stem_stays_apart(series: str) -> None:
    [mine] = groups_of(canon())
    assert groups_of([{**canon()[0], "series": series}]) != {mine}


@pytest.mark.parametrize(
    "change",
    [
        {"SeriesTime": "101202.5"},
        {"SeriesDate": "20260315"},
        {"ProtocolName": "task"},
        {"SeriesDescription": "rest_MoCo"},
        {"FrameOfReferenceUID": "1.3.12.10"},
        {"EchoTime": 60.0},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P", "NONE", "MFSPLIT"]},
    ],
)
def test_another_siemens_series_of_the_study_stays_apart(change: dict[str, Any]) -> None:
    [mine], [other] = groups_of(siemens()), groups_of(siemens(**change))
    assert other is not None
    assert mine != other


@pytest.mark.parametrize(
    "change",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"]},
        {"ImageType": "MFSPLIT"},
        {"ImageType": None},
        {"sop_class": ENHANCED},
        {"Manufacturer": "GE MEDICAL SYSTEMS"},
        *({each: None} for each in ("SeriesTime", "SeriesDate", "FrameOfReferenceUID", "ProtocolName")),
        {"SeriesTime": ""},
    ],
)
def test_a_siemens_series_that_lacks_anything_stays_by_itself(change: dict[str, Any]) -> None:
    images = [{name: value for name, value in {**each, **change}.items() if value is not None} for each in siemens()]
    assert groups_of(images) == {None}


# --- what was decided stays -----------------------------------------------------------------------------------------


class Bench:
    """A spool with filing and the built-in grouping on it, as one life of the sorter sees it."""

    def __init__(self, root: Path, settings: Settings = ALL) -> None:
        self.spool = Spool(root, Files())
        self.spool.create()
        self.settings, self.asked, self.count = settings, 0, 0
        self.units: dict[str, Unit] = {}
        self.filing = Filing(self.spool, self, self.unit, lambda key: self.units.pop(key, None))

    def unit(self, key: str) -> Unit:
        if key not in self.units:
            self.units[key] = Unit.load(self.spool, key)
        return self.units[key]

    def group(self, instance: Instance) -> str | None:
        self.asked += 1
        return sorter_group(instance, self.settings)

    def may_correct(self, first: Source, newer: Source) -> bool:
        return True

    def take(self, *images: dict[str, Any]) -> list[Filed]:
        candidates = []
        for each in images:
            self.count += 1
            path = self.spool.received / f"{os.getpid()}-{id(self)}-{self.count}"
            path.write_bytes(written(**each))
            candidates.append(Candidate(path, Source("SCANNER")))
        return self.filing.take(candidates)

    def series(self) -> list[int]:
        """Images of each unit in the store."""
        return sorted(len(Unit.load(self.spool, key).instances) for key in self.spool.keys())  # noqa: SIM118


def written(series: str, sop: str, sop_class: str = MR, study: str = "1.2.3", **header: Any) -> bytes:
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, sop
    data.StudyInstanceUID, data.SeriesInstanceUID = study, series
    data.Rows, data.Columns, data.BitsAllocated, data.PixelData = 1, 2, 16, b"\1\2\3\4"
    data["PixelData"].VR = "OW"
    for keyword, value in header.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    assert MRImageStorage == MR
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_cut_series_become_one_unit_each(root: Path) -> None:
    """Two runs, a Canon series and a plain one, interleaved: four units, whatever the order."""
    plain = [{"series": "1.9", "sop": f"1.9.{each}", "Manufacturer": "SIEMENS"} for each in range(5)]
    images = [*canon(), *siemens(1), *siemens(2), *plain]
    random.Random(3).shuffle(images)
    bench = Bench(root)
    for some in itertools.batched(images, 7) if hasattr(itertools, "batched") else [images]:
        bench.take(*some)
    assert bench.series() == [5, 12, 12, 12]
    assert bench.asked == 4 + 3 + 3 + 1, "asked once a series"
    [merged] = {each.key for each in bench.take(*canon())}
    assert len(Unit.load(bench.spool, merged).series_uids) == 4


def test_images_that_come_after_the_rule_is_gone_still_join(root: Path) -> None:
    first, rest = canon()[:5], canon()
    Bench(root).take(*first)
    later = Bench(root, NONE)
    filed = later.take(*rest)
    assert [each.outcome for each in filed] == ["same"] * 5 + ["new"] * 7
    assert later.series() == [12]


def test_a_series_that_is_here_by_itself_stays_by_itself(root: Path) -> None:
    """Slices 1 and 2 came before the rule; 3 and 4 are put together; nothing is doubled."""
    before = [each for each in canon() if each["series"][-1] in "12"][:3]
    Bench(root, NONE).take(*before)
    later = Bench(root)
    assert [each.outcome for each in later.take(*canon())].count("same") == 3
    assert later.series() == [3, 3, 6]
    assert [each.outcome for each in Bench(root).take(*canon())] == ["same"] * 12


def test_studies_are_never_merged(root: Path) -> None:
    bench = Bench(root)
    bench.take(*canon(), *({**each, "study": "1.2.4", "sop": each["sop"] + ".9"} for each in canon()))
    assert bench.series() == [12, 12]


def test_a_damaged_record_loses_no_image(root: Path) -> None:
    bench = Bench(root)
    bench.take(*canon()[:1])
    [record] = bench.spool.groups.rglob("*.json")
    record.write_text("{")
    later = Bench(root)
    with pytest.raises(OSError, match="damaged"):
        later.take(canon()[4])
    assert len(list(later.spool.received.iterdir())) == 1, "it waits where it was"


def test_what_is_kept_in_memory_is_bounded(root: Path) -> None:
    spool = Spool(root, Files())
    spool.create()
    groups = Groups(spool, lambda instance: None)
    for each in range(REMEMBERED + 10):
        groups.group(instance(f"1.{each}", "1"))
    assert len(groups._known) == REMEMBERED
    assert groups.key(instance("1.0", "1")) == unit_key(UnitKind.SERIES, "1.2.3", "1.0")
