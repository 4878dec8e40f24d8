"""The built-in plugins: whose a series is, where it goes, what it is called."""

from __future__ import annotations

from typing import Any

import pytest

from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.model import Add, Hold, Identity, Name, Route, Series, Source, UnitKind
from sorter.naming import DEFAULT_FILE, DEFAULT_FOLDER, DEFAULT_NIFTI_FILE, DEFAULT_NIFTI_FOLDER
from sorter.plugins import Plugins


def series(identity: Identity = Identity(), sources: tuple[Source, ...] = (), **header: Any) -> Series:  # noqa: B008
    return Series("k", UnitKind.SERIES, "1", ("2",), header, 1, sources, identity)


def loaded(**settings: dict[str, Any]) -> Plugins:
    return Plugins.load({}, None, Files(), settings)


def lab_of(match: list[str], each: Series) -> str | None:
    return loaded(identity={"labs": [{"name": "it", "match": match}]}).identify(each).identity.lab


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ("StudyDescription=Memory^*", True),
        ("studydescription=memory^*", None),
        ("StudyDescription=MEMORY^Ä?ES", True),
        ("StudyDescription = memory*", True),
        ("StudyDescription=Memory", False),
        ("StudyDescription=[a-l]*", False),
        ("ImageType=MOSAIC", True),
        ("ImageType=ORIGINAL\\*\\MOSAIC", True),
        ("EchoTime=2.5", True),
        ("CalledAE=MEM*", True),
        ("CallingAE=scanner2", True),
        ("PeerAddress=192.0.2.*", True),
        ("PeerAddress=10.*", False),
        ("StationName=*", False),
        ("StationNam=*", None),
        ("CalledAET=x", None),
        ("=x", None),
        ("StudyDescription=", None),
    ],
)
def test_a_lab_owns_what_any_of_its_rules_fits(rule: str, fits: bool | None) -> None:
    each = series(
        sources=(Source("SCANNER1", "SORTER", "10.1.1.1"), Source("SCANNER2", "MEMORY", "192.0.2.9")),
        StudyDescription="Memory^a\u0308ges",
        ImageType=("ORIGINAL", "PRIMARY", "MOSAIC"),
        EchoTime=2.5,
    )
    if rule.startswith("PeerAddress=10"):
        rule = "PeerAddress=10.2.*"
    if fits is None:
        with pytest.raises(ConfigError):
            lab_of([rule], each)
        return
    assert lab_of([rule], each) == ("it" if fits else None)
    assert lab_of(["PatientID=nobody", rule], each) == ("it" if fits else None)


def test_the_first_lab_in_order_owns_it() -> None:
    labs = [{"name": name, "match": ["Modality=MR"]} for name in ("one", "two")]
    assert loaded(identity={"labs": labs}).identify(series(Modality="MR")).identity.lab == "one"
    assert loaded(identity={"labs": labs[::-1]}).identify(series(Modality="MR")).identity.lab == "two"


def test_an_attribute_outside_the_header_is_asked_for() -> None:
    each = Series("k", UnitKind.SERIES, "1", ("2",), {}, 1, ask=lambda keyword: (keyword.lower(),))
    assert lab_of(["ReferringPhysicianName=referring*"], each) == "it"


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        ({"PatientID": "P1", "PatientName": "Doe^J"}, "P1"),
        ({"PatientID": "  ", "PatientName": "Doe^J"}, "Doe^J"),
        ({}, "no-id"),
    ],
)
def test_the_subject_by_default(header: dict[str, str], subject: str) -> None:
    assert loaded().identify(series(**header)).identity.subject == subject


def test_the_subject_by_a_pattern_of_the_configuration() -> None:
    plugins = Plugins.load({"identity": {"subject": "OtherPatientIDs ?? 'x'"}}, None, Files(), {})
    assert plugins.identify(series(OtherPatientIDs=("A", "B"))).identity.subject == "A"
    with pytest.raises(ConfigError, match='PatientIdd is no DICOM keyword, did you mean "PatientID"'):
        Plugins.load({"identity": {"subject": "PatientIdd"}}, None, Files(), {})
    with pytest.raises(ConfigError, match="write DICOM keywords joined by"):
        Plugins.load({"identity": {"subject": "{PatientID}"}}, None, Files(), {})


@pytest.mark.parametrize(
    ("lab", "default", "route"),
    [
        ("memory", None, Add(("memory", "archive"))),
        ("quiet", None, None),
        ("quiet", "unassigned", None),
        (None, "unassigned", Add(("unassigned",))),
        (None, None, None),
        (
            "gone",
            "unassigned",
            Hold("lab gone is not configured: add [labs.gone], or mend the rule that named it"),
        ),
    ],
)
def test_a_series_goes_to_its_labs_targets(lab: str | None, default: str | None, route: Route | None) -> None:
    settings = {"labs": {"memory": ["memory", "archive"], "quiet": []}, "default": default}
    assert loaded(routing=settings).route(series(Identity(lab))).route == route


def test_names_by_default() -> None:
    name = loaded().name
    assert name(series(), "dicom", "t").name == Name(DEFAULT_FOLDER, DEFAULT_FILE)
    assert name(series(), "nifti", "t").name == Name(DEFAULT_NIFTI_FOLDER, DEFAULT_NIFTI_FILE)
    other = name(series(), "mask", "t").name
    assert other is not None
    assert other.folder != DEFAULT_NIFTI_FOLDER
    assert other.folder.endswith("/mask")


def test_names_of_the_configuration() -> None:
    mine = {"folder": "{subject}", "products": {"nifti": {"folder": "{subject}/nii", "file": "{SeriesNumber:03d}"}}}
    name = loaded(naming=mine).name
    assert name(series(), "dicom", "t").name == Name("{subject}", DEFAULT_FILE)
    assert name(series(), "nifti", "t").name == Name("{subject}/nii", "{SeriesNumber:03d}")
    with pytest.raises(ConfigError, match="SeriesNumbr"):
        loaded(naming={"products": {"nifti": {"file": "{SeriesNumbr}"}}})
