"""Labs, growth and reload, in a sorter that really runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pydicom
import pytest

from sorter.scu.storage import send
from sorter.spool import Unit
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.sample

LABS = """
[labs.pe]
match = ["SeriesDescription=EPI PE=*", "CalledAE=PE"]
products = ["dicom"]

[labs.rest]
match = ["CalledAE=REST"]
"""


def give(sorter: RunningSorter, path: Path, called: str = "SORTER") -> None:
    report = send([path], "127.0.0.1", sorter.port, called=called, calling="SCANNER", progress=lambda _: None)
    assert report.sent
    assert not report.refused


def test_each_lab_gets_its_own_by_attribute_or_ae_title_and_the_rest_is_kept(tmp_path: Path, sample: Path) -> None:
    with RunningSorter(tmp_path, config=LABS) as sorter:
        give(sorter, sample / "data/nih-siemens/mr_0003")
        give(sorter, sample / "data/siemens-xa10", called="REST")
        give(sorter, sample / "data/multiecho-qt2")
        found = {each.description: each for each in sorter.wait_delivered(13)}
        assert found["EPI PE=AP"].lab == "pe"
        assert [each.product for each in found["EPI PE=AP"].deliveries] == ["dicom"]
        assert found["REST1 w SMS PF7-8"].lab == "rest"
        assert (sorter.labs / "pe/DEV/20180918_1212/003_EPI_PE_AP").is_dir()
        assert (sorter.labs / "unassigned/phantom").is_dir()
        assert not (sorter.labs / "pe/DEV/20180918_1212/nifti").exists()


def test_a_late_image_grows_the_delivered_folder_and_a_resend_changes_nothing(tmp_path: Path, sample: Path) -> None:
    first, second = sorted((sample / "data/nih-siemens/mr_0003").glob("*.dcm"))
    with RunningSorter(tmp_path) as sorter:
        give(sorter, first)
        sorter.wait_delivered(1)
        folder = sorter.labs / "unassigned/DEV/20180918_1212/003_EPI_PE_AP"
        [name] = [path.name for path in folder.glob("*.dcm")]
        inode = (folder / name).stat().st_ino
        give(sorter, second)
        [series] = sorter.wait_delivered(2)
        assert series.revision == 2
        assert len(list(folder.glob("*.dcm"))) == 2
        assert (folder / name).stat().st_ino == inode
        give(sorter, second)
        wait_until(lambda: not list(sorter.spool.received.rglob("*.dcm")), 10)
        assert [each.revision for each in sorter.wait_delivered(2)] == [2]


def test_a_reload_is_taken_up_whole_or_not_at_all(tmp_path: Path, sample: Path) -> None:
    with RunningSorter(tmp_path) as sorter:
        sorter.reload('[labs.pe]\nmatch = ["SeriesDescripton=x"]\n')
        wait_until(lambda: "did you mean" in sorter.log.read_text(), 10, "the fault to be said")
        sorter.reload(LABS)
        wait_until(lambda: "configuration reloaded" in sorter.log.read_text(), 10, "the reload")
        give(sorter, sample / "data/nih-siemens/mr_0003")
        [series] = sorter.wait_delivered(2)
        assert series.lab == "pe"


def test_a_plugin_that_fails_holds_the_series_until_it_is_mended(tmp_path: Path, sample: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir(mode=0o755)
    plugin = plugins / "mine.py"
    start = "from sorter import Identity, hookimpl\n\n@hookimpl\ndef sorter_identify(series):\n"
    plugin.write_text(start + "    return Identity(subject=series.PatientID + 1)\n")
    plugin.chmod(0o644)
    config = f'[sorter]\nplugins = "{plugins}"\n'
    with RunningSorter(tmp_path / "root", config=config) as sorter:
        give(sorter, sample / "data/nih-siemens/mr_0003")
        held = wait_until(
            lambda: [each for each in sorter.series() if each.state == "held"], 20, "the series to be held"
        )
        assert "plugin mine: sorter_identify failed" in held[0].why
        assert not list(sorter.labs.rglob("*.dcm"))
        plugin.write_text(start + "    return Identity(subject='sub-' + series.PatientID)\n")
        sorter.reload(config)
        sorter.wait_delivered(2)
        assert (sorter.labs / "unassigned/sub-DEV").is_dir()
    shutil.rmtree(plugins)


def corrected(folder: Path, into: Path, **changes: str) -> Path:
    """Copies of all images below `folder` with other attributes, as a scanner sends them after a correction."""
    into.mkdir()
    for path in sorted(folder.glob("*.dcm")):
        data = pydicom.dcmread(path)
        for keyword, value in changes.items():
            setattr(data, keyword, value)
        data.save_as(into / path.name)
    return into


def files(folder: Path) -> list[str]:
    """Relative paths of all files below, without the hidden ones."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def test_a_corrected_patient_and_study_move_the_series_and_what_the_lab_edited_stays(
    tmp_path: Path, sample: Path
) -> None:
    sent = sample / "data/nih-siemens/mr_0003"
    with RunningSorter(tmp_path / "site", config='[labs.memory]\nmatch = ["StudyDescription=Memory*"]\n') as sorter:
        give(sorter, sent)
        sorter.wait_delivered(2)
        unassigned, memory = sorter.labs / "unassigned", sorter.labs / "memory"
        old = files(unassigned)
        assert [each for each in old if each.endswith(".dcm")]
        (unassigned / "DEV/20180918_1212/nifti/003_EPI_PE_AP.json").write_text("the lab's own")

        give(sorter, corrected(sent, tmp_path / "again", PatientID="S007", StudyDescription="Memory^Two"))
        [series] = wait_until(
            lambda: [each for each in sorter.wait_delivered(2) if each.revision == 2], 60, "a revision"
        )
        assert (series.lab, series.subject) == ("memory", "S007")
        assert files(memory) == [each.replace("DEV/", "S007/") for each in old]
        assert files(unassigned) == [f"DEV/20180918_1212/nifti/{each}" for each in ("003_EPI_PE_AP.json", "MOVED.txt")]
        assert {str(pydicom.dcmread(path).PatientID) for path in memory.rglob("*.dcm")} == {"S007"}
        [story] = [Unit(sorter.spool, key).story() for key in sorter.spool.keys()]  # noqa: SIM118  (no mapping)
        assert any("before a correction" in event["says"] for event in story)

        give(sorter, sent)  # the first copies again, from an archive say: they were corrected, and stay so
        wait_until(lambda: not list(sorter.spool.received.rglob("*.dcm")), 10)
        [series] = sorter.wait_delivered(2)
        assert (series.lab, series.revision) == ("memory", 2)


def test_a_correction_of_some_images_alone_moves_nothing(tmp_path: Path, sample: Path) -> None:
    sent = sample / "data/nih-siemens/mr_0003"
    with RunningSorter(tmp_path / "site") as sorter:
        give(sorter, sent)
        sorter.wait_delivered(2)
        before = files(sorter.labs)
        again = corrected(sent, tmp_path / "again", PatientID="S007")
        first, second = sorted(again.glob("*.dcm"))
        give(sorter, first)
        wait_until(lambda: [each for each in sorter.wait_delivered(2) if each.revision == 2], 60, "a revision")
        assert [each for each in files(sorter.labs) if each.endswith(".dcm")] == [
            e for e in before if e.endswith(".dcm")
        ]
        give(sorter, second)
        wait_until(lambda: (sorter.labs / "unassigned/S007").is_dir(), 60, "the new subject")
        sorter.wait_delivered(2)
        assert not (sorter.labs / "unassigned/DEV").exists()
