"""`rename --from-now-on` and `rules`: what flags say becomes a rule, is listed, tried, applied and removed."""

from __future__ import annotations

import getpass
import threading
from pathlib import Path

import pytest
import tomli
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from sorter.cli import standing
from sorter.cli.main import sorter
from sorter.config import load
from sorter.config.rewriting import with_rule, without_rule
from sorter.daemon.requests import answer_requests
from sorter.testing.waiting import wait_until
from tests.crash.scenario import data_set
from tests.unit.test_fix import site as site
from tests.unit.test_fix import started, tree
from tests.unit.test_withdraw import Site

NEW = ["--series", "*T1*", "--from-now-on"]
USUAL = [f"memory/P1/20260102_1011/{name}" for name in
         ("001_T1/000-0001-000001.dcm", "001_T1/000-0001-000002.dcm", "002_T1/000-0002-000001.dcm")]  # fmt: skip


@pytest.fixture(autouse=True)
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of tests are of one day in January."""
    monkeypatch.setattr(standing, "LOOK_BACK", "2026-01-01")


def say(site: Site, *arguments: str, answer: str = "") -> Result:
    where = ["-c", str(site.root / "sorter.toml"), "--root", str(site.root)]
    return CliRunner().invoke(sorter, [*arguments, *where], input=answer)


def own(site: Site) -> Path:
    return site.root / "labs/memory/.sorter/lab.toml"


def heed(site: Site) -> None:
    """What the lab's worker does when it next looks."""
    assert site.parts.take_lab_file("memory", own(site).read_bytes()) == ()


def test_what_flags_say_becomes_a_rule_if_a_person_agrees(site: Site) -> None:
    dest = str(site.root / "labs/memory/pilots")
    said = say(site, "rename", "P*", dest, *NEW, answer="n\n")
    assert said.exit_code == 0, said.output
    assert "for lab memory: Series of subject P*, called *T1*, come into pilots/{subject}/" in said.output
    assert "it fits 2 series, which would have come into:" in said.output
    assert "pilots/P1/20260102_1011/001_T1/" in said.output
    assert "Nothing was changed" in said.output
    assert not own(site).exists()
    assert say(site, "rename", "P*", dest, *NEW, answer="y\n").exit_code == 0
    [rule] = tomli.loads(own(site).read_text())["rules"]
    assert (rule["subject"], rule["series"], rule["author"]) == ("P*", "*T1*", getpass.getuser())
    heed(site)
    site.receive(data_set(1, series=3), data_set(1, series=4, description="rest"))
    site.turns(80)
    assert tree(site) == sorted([
        *USUAL, "memory/P1/20260102_1011/004_rest/000-0004-000001.dcm",
        "memory/pilots/P1/20260102_1011/003_T1/000-0003-000001.dcm",
    ])  # fmt: skip


def test_rules_are_listed_tried_applied_and_removed(site: Site) -> None:
    own(site).write_text('# ours\n[[rules]]\nseries = "2"\nproducts = []\n')
    dest, pattern = str(site.root / "labs/memory/a"), "{subject}_{SeriesNumber}/"
    flags = ["--name", pattern, "--modality", "MR", "--from-now-on", "--yes"]
    assert say(site, "rename", "P1", dest, *flags).exit_code == 0
    listed = say(site, "rules", "--lab", "memory").output
    assert "Lab memory: 2 rules in" in listed
    assert "1  Series of subject P1, of modality MR, come into a/{subject}_{SeriesNumber}" in listed
    assert f"By {getpass.getuser()}, 20" in listed
    assert "2  Series numbered 2, are not delivered." in listed
    heed(site)
    site.turns(20)
    assert tree(site) == USUAL  # what was delivered stays
    tried = say(site, "rules", "try", "2026-01-01", "--lab", "memory").output
    assert "2 series of what came since 2026-01-01 would lie elsewhere" in tried
    assert "dicom in memory: P1/20260102_1011/001_T1 goes to a/P1_1" in tried
    assert "Nothing was changed" in tried
    assert (
        "2 series of what came since" in say(site, "rules", "try").output
    )  # 30 days: it came today, though of January
    assert say(site, "rules", "apply", answer="n\n").exit_code == 0
    site.turns(20)
    assert tree(site) == USUAL
    assert say(site, "rules", "apply", "--yes").exit_code == 0
    site.turns(20)
    assert tree(site) == ["memory/a/P1_1/000-0001-000001.dcm", "memory/a/P1_1/000-0001-000002.dcm",
                          "memory/a/P1_2/000-0002-000001.dcm"]  # fmt: skip
    assert "No series would lie elsewhere" in say(site, "rules", "apply").output
    assert say(site, "rules", "remove", "1", "--lab", "memory").exit_code == 0
    assert own(site).read_text() == '# ours\n[[rules]]\nseries = "2"\nproducts = []\n'
    assert say(site, "rules", "remove", "2", "--lab", "memory").exit_code == 1


def test_what_rules_stop_is_said_and_stays(site: Site) -> None:
    own(site).write_text('[[rules]]\nseries = "2"\nproducts = []\n')
    tried = say(site, "rules", "try").output
    assert "1 series of what came since" in tried
    assert "would not be delivered by the rules of now; what was delivered of them stays where it is:" in tried
    assert "P1 20260102 002 T1: lab memory wants nothing of it" in tried
    assert "No series of what came since" in tried.splitlines()[-1]
    heed(site)
    assert say(site, "rules", "apply", "--yes").output.splitlines()[-1].startswith("No series would lie elsewhere")
    site.turns(20)
    assert tree(site) == USUAL


def test_a_labs_python_is_asked_by_the_sorter_that_runs(site: Site) -> None:
    text = (site.root / "sorter.toml").read_text()
    text = text.replace(
        "[labs.memory]", f'[labs.memory]\nuser = "{getpass.getuser()}"\nroot = "{site.root}/labs/memory"'
    )
    (site.root / "sorter.toml").write_text(text)
    site.parts.reload(load(site.root / "sorter.toml", site.root), site.spool.files)
    place = site.root / "labs/memory/.sorter/plugins/names.py"
    place.parent.mkdir()
    place.write_text(
        "from sorter import *\n@hookimpl\ndef sorter_name(series):\n    return Name('python/{subject}', '{Modality}')\n"
    )

    def turn() -> bool:
        site.now += 1
        answer_requests(site.spool, site.parts)
        site.parts.turn(site.now)
        return site.parts.lab_python.ask("memory", "sorter_identify", {"series": None}).failures == ()

    wait_until(turn, 60, "the lab's plugins to be loaded")
    said = say(site, "rules", "try").output
    assert "Lab memory has Python of its own: only a sorter that runs can ask that, and none does" in said
    assert "No series of what came since" in said
    lock, results = site.spool.lock(), list[Result]()
    asking = threading.Thread(target=lambda: results.append(say(site, "rules", "try")))
    asking.start()
    wait_until(lambda: turn() and bool(results), 60, "the answer of the sorter that runs")
    asking.join()
    site.spool.files.close(lock)
    assert "by the configuration that it has read" in results[0].output
    assert "2 series of what came since" in results[0].output
    assert "dicom in memory: P1/20260102_1011/001_T1 goes to python/P1" in results[0].output
    site.parts.lab_python.close()


def test_file_names_follow_in_the_same_folder(site: Site) -> None:
    own(site).write_text('[naming]\nfile = "{InstanceNumber}.dcm"\n')
    heed(site)
    assert say(site, "rules", "apply", "--yes").exit_code == 0
    site.turns(20)
    assert tree(site) == [
        f"memory/P1/20260102_1011/{name}" for name in ("001_T1/1.dcm", "001_T1/2.dcm", "002_T1/1.dcm")
    ]
    again = started(site.root)
    again.turns(40)
    assert tree(again) == tree(site)


def test_a_list_with_new_names_becomes_rules_and_names_follow(site: Site) -> None:
    (site.root / "list.csv").write_text("P1,new1\nQ2\n")
    flags = [f"@{site.root}/list.csv", str(site.root / "labs/memory/study"), "--from-now-on", "--yes"]
    said = say(site, "rename", *flags).output
    assert "for lab memory: Series of subject P1, come into study/new1/{StudyDate}" in said
    assert "        Series of subject Q2, come into study/{subject}/" in said
    assert "it fits 2 series" in said
    assert "study/new1/20260102_1011/002_T1/" in said
    assert [each["subject"] for each in tomli.loads(own(site).read_text())["rules"]] == ["P1", "Q2"]
    heed(site)
    assert say(site, "rules", "apply", "--yes").exit_code == 0
    site.turns(20)
    assert tree(site) == [each.replace("memory/P1", "memory/study/new1") for each in USUAL]
    (site.root / "list.csv").write_text("\n".join(f"P{number}" for number in range(101)))
    assert "100 are the most" in str(say(site, "rename", *flags).exception)


def test_nifti_from_now_on(site: Site) -> None:
    done = say(site, "rename", "P1", str(site.root / "labs/memory/nii"), "--nifti", "--from-now-on", "--yes")
    assert "come into nii, below it as usual and are delivered as nifti, in place of their images." in done.output
    assert "But nifti was made of none of these" in done.output
    [rule] = tomli.loads(own(site).read_text())["rules"]
    assert (rule["below"], rule["products"]) == ("nii", ["nifti"])


def test_a_lab_finds_its_rules_from_its_own_folder(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    own(site).write_text('[[rules]]\nsubject = "P1"\nbelow = "x"\nsays = "the pilots"\n')
    (site.root / "labs/memory/P1").mkdir(exist_ok=True)
    monkeypatch.chdir(site.root / "labs/memory/P1")
    listed = CliRunner().invoke(sorter, ["rules"]).output
    assert "Series of subject P1, come into x, below it as usual. (the pilots)" in listed
    assert CliRunner().invoke(sorter, ["rules", "remove", "1"]).exit_code == 0
    assert own(site).read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["P1", "{root}/elsewhere"], "is in no folder that sorter delivers to"),
        (["P1", "{root}/labs/unassigned"], "is no lab's folder"),
        (["P1", "{root}/labs/memory", "--lab", "vision"], "is the folder of lab memory, not of vision"),
        (["P1", "{root}/labs/memory/my pilots"], "cannot be named in a rule"),
        (["P1", "{root}/labs/memory/{{x}}"], "cannot be named in a rule"),
        (["P1", "{root}/labs/memory", "--since", "30d"], "what is there already"),
        (["P1", "{root}/labs/memory", "--study", "2026-01-02"], "one that is there already"),
        (["P1", "{root}/labs/memory", "--force"], "a rule copies nothing"),
        (["P*", "{root}/labs/memory", "--as", "P7"], "P7 is for one subject, and P* may fit several"),
        (["P1", "{root}/labs/memory", "--as", "my P7"], "cannot stand in a rule"),
        (["P1", "{root}/labs/memory", "--nifti", "--name", "flat"], "leave out --name"),
        (["P1", "{root}/labs/memory", "--nifti", "--as", "P7"], "keeps its usual names"),
        (["One Patient", "{root}/labs/memory"], "give P1 in place of One Patient"),
        (["P[1", "{root}/labs/memory"], "a [ is never closed"),
        (["P1", "{root}/labs/memory", "--name", "{{subjct}}/"], "subjct"),
    ],
)
def test_what_no_rule_can_say(site: Site, arguments: list[str], says: str) -> None:
    done = say(site, "rename", *(each.format(root=site.root) for each in arguments), "--from-now-on", "--yes")
    assert done.exit_code == 1
    assert says in str(done.exception)
    assert not own(site).exists()


def test_a_file_with_a_mistake_is_mended_first(site: Site) -> None:
    own(site).write_text("[naming]\nfoldr = 1\n")
    done = say(site, "rename", "P1", str(site.root / "labs/memory/x"), "--from-now-on", "--yes")
    assert done.exit_code != 0
    assert "lab.toml:2" in str(done.exception)
    assert own(site).read_text() == "[naming]\nfoldr = 1\n"


def test_a_file_that_is_no_toml_is_said_before_anything_is_asked(site: Site) -> None:
    own(site).write_text("[naming\n")
    done = say(site, "rename", "P1", str(site.root / "labs/memory/x"), "--from-now-on", answer="y\n")
    assert done.exit_code != 0
    assert "lab.toml:1: this is not TOML" in str(done.exception)
    assert done.output == ""


def test_one_labs_mistake_is_no_others(site: Site) -> None:
    own(site).write_text("[naming\n")
    other = site.root / "labs/vision/.sorter/lab.toml"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text('[[rules]]\nsubject = "V1"\nbelow = "x"\n')
    for words in (["rules"], ["rules", "try", "2026-01-01"], ["rules", "apply", "--yes"]):
        done = say(site, *words)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert "Lab memory: its own file cannot be used now" in done.output
        assert "lab.toml:1: this is not TOML" in done.output
        assert done.exit_code == (1 if words == ["rules"] else 0)
        one = say(site, *words, "--lab", "memory")
        assert "lab.toml:1: this is not TOML" in str(one.exception)
    assert "Series of subject V1, come into x" in say(site, "rules").output


def test_no_subject_is_not_every_subject(site: Site) -> None:
    done = say(site, "rename", " ", str(site.root / "labs/memory/x"), "--from-now-on", "--yes")
    assert "say whom" in str(done.exception)
    assert not own(site).exists()


def test_what_somebody_wrote_while_a_person_was_asked_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def agree(_text: str) -> bool:
        own(site).write_text("# of a colleague\n[deliver]\nproducts = []\n")
        return True

    monkeypatch.setattr(standing.click, "confirm", agree)
    assert say(site, "rename", "P1", str(site.root / "labs/memory/x"), "--from-now-on").exit_code == 0
    assert own(site).read_text().startswith("# of a colleague\n")
    assert len(tomli.loads(own(site).read_text())["rules"]) == 1


# --- the text that a person wrote -------------------------------------------------------------------------------------

_COMMENT = st.sampled_from(["", "# a comment\n", "\n", "# [[rules]]\n", "# ä\u2028b\n"])
_TABLE = st.sampled_from([
    '[naming]\nfolder = "{subject}"  # here\n', '[[rules]]\nsubject = "A*"\nbelow = "a"\n',
    '[[rules]]\nmatch = [\n  "Modality=MR", # two\n]\nproducts = []\n', '[deliver]\nproducts = ["dicom"]\n',
    '[[rules]]\nsays = """\n[[rules]]\n"""\nbelow = "b"\n',
])  # fmt: skip
_VALUE = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@given(
    st.lists(st.tuples(_COMMENT, _TABLE), max_size=5), st.dictionaries(st.sampled_from(["subject", "below"]), _VALUE)
)
def test_a_rule_comes_first_and_goes_again_and_nothing_else_changes(
    parts: list[tuple[str, str]], rule: dict[str, str]
) -> None:
    text, seen = "", set[str]()
    for comment, table in parts:
        if table.startswith("[[") or table not in seen:
            text += comment + table
            seen.add(table)
    new = with_rule(text, rule)
    assert new is not None
    was, now = tomli.loads(text), tomli.loads(new)
    assert now["rules"] == [rule, *was.get("rules", [])]
    back = without_rule(new, 1)
    assert back is not None
    assert tomli.loads(back) == was
    assert [line for line in text.split("\n") if line] == [line for line in back.split("\n") if line]


def test_what_only_a_person_should_change() -> None:
    text = 'rules = [{subject = "A", below = "x"}]\n'
    assert with_rule(text, {"subject": "B"}) is None
    assert without_rule(text, 1) is None
    with pytest.raises(IndexError):
        without_rule(text, 2)
