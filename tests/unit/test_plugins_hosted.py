"""Plugins of others run in a process of their own: whatever one does there, it costs its own answer and no more."""

from __future__ import annotations

import dataclasses
import functools
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.model import Event, Hold, Instance, Name, Series, UnitKind
from sorter.plugins import Plugins
from sorter.plugins.hosted import Hosted, Patience, _here
from sorter.processes import descendants
from sorter.testing.waiting import wait_until

PATIENT = Patience(answer=4.0, rest=0.0)

ROGUE = """
import contextlib, ctypes, os, signal, subprocess, sys
from pathlib import Path
from sorter import Identity, hookimpl

def leave(series): os._exit(7)
def crash(series): ctypes.string_at(0)
def raises(series): raise RuntimeError("boo")
class Mute(Exception):
    def __str__(self): raise RuntimeError
def mute(series): raise Mute
def much(series): raise ValueError("x" * 10_000_000)
def real_time(series): os.kill(os.getpid(), signal.SIGRTMIN + 6)
def leaves(series): sys.exit(3)
def hog(series): return Identity(subject=str(len(bytearray(8 << 30))))
def noise(series):
    print("x" * 1_000_000); os.write(2, b"PATIENT"); os.write(1, b"PATIENT" * 100_000)
    return Identity(session="noisy")
def daemon(series):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "3600"])
        os._exit(0)
    os._exit(1)
def hang(series):
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(sign, signal.SIG_IGN)
    for _ in range(50): subprocess.Popen(["sleep", "3600"], start_new_session=True)
    while True: signal.pause()
def drip(series):
    import socket, struct, time
    socks = []
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            socks.append(socket.socket(fileno=os.dup(fd)))
    for each in socks: each.send(struct.pack("!I", 1 << 20))
    while True:
        for each in socks: each.send(b" ")
        time.sleep(0.1)
def values(series): return Identity(session=",".join(map(str, series.values("EchoTime"))))
def nothing(series): return None

@hookimpl
def sorter_identify(series, settings):
    return globals()[series.PatientID](series)

@hookimpl
def sorter_event(event, settings):
    Path(settings["heard"]).write_text(event.kind)
"""

HONEST = """
from sorter import *

@hookimpl
def sorter_identify(series): return Identity(subject="honest")

@hookimpl
def sorter_route(series): return Hold(series.PatientID)
"""


def series(what: str) -> Series:
    return Series("key", UnitKind.SERIES, "1.2", ("1.2.3",), {"PatientID": what}, 1)


def put(folder: Path, **code: str) -> Path:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for name, body in code.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(body))
        (folder / f"{name}.py").chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def others() -> set[int]:
    """Processes below this one that were there before."""
    return lives()


@pytest.fixture(scope="module")
def hosted(others: set[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    base = tmp_path_factory.mktemp("hosted")
    folder = put(base / "plugins", a_honest=HONEST, m_rogue=ROGUE, z_honest=HONEST)
    found = Hosted(folder, {"m_rogue": {"heard": str(base / "heard")}}, PATIENT)
    assert (found.unloadable, found.faults()) == ([], [])
    yield found
    found.close()


def lives() -> set[int]:
    """Processes below this one that the plugins run in, or that came of them."""
    return set(descendants(os.getpid()))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("hang", "it did not answer within 4 s, and its process was ended"),
        ("drip", "it did not answer within 4 s, and its process was ended"),
        ("leave", "its process ended before it answered (exit code 7)"),
        ("crash", "its process ended before it answered (SIGSEGV)"),
        ("daemon", "its process ended before it answered (exit code 1)"),
        ("raises", "RuntimeError: boo"),
        ("leaves", "SystemExit: 3"),
        ("mute", "Mute: nobody can say what"),
        ("much", f"ValueError: {'x' * 1000}…"),
        ("real_time", "its process ended before it answered (signal 40)"),
        ("hog", "MemoryError"),
    ],
)
def test_what_a_plugin_does_costs_its_own_answer(others: set[int], hosted: Hosted, what: str, said: str) -> None:
    asked = hosted.ask("sorter_identify", {"series": series(what)})

    assert [name for name, _ in asked.answers] == ["a_honest", "z_honest"]
    assert [each.plugin for each in asked.failures] == ["m_rogue"]
    assert said in str(asked.failures[0])
    # nothing of it lives: the keeper and one life are all there is, whatever the plugin started
    wait_until(lambda: len(lives() - others) <= 2, 20, "what the plugin started to be gone")


def test_a_labs_plugin_that_says_without_end_that_it_loads_is_not_waited_for(tmp_path: Path) -> None:
    folder = put(
        tmp_path / "plugins",
        endless="""
            import contextlib, os, socket, struct, time
            said = b'{"loading":"endless.py"}'
            while True:
                for fd in range(3, 64):
                    with contextlib.suppress(OSError):
                        socket.socket(fileno=os.dup(fd)).send(struct.pack("!I", len(said)) + said)
                time.sleep(0.1)
            """,
    )
    launch = functools.partial(_here, False)
    hosted = Hosted(folder, {}, Patience(load=3.0), launch=launch)
    assert [each for each in hosted.unloadable if "it did not load within 3 s" in each]
    hosted.close()


def test_what_a_plugin_prints_goes_nowhere(hosted: Hosted, capfd: pytest.CaptureFixture[str]) -> None:
    asked = hosted.ask("sorter_identify", {"series": series("noise")})
    assert (asked.answers[1].value.session, asked.failures) == ("noisy", ())
    assert capfd.readouterr() == ("", "")


def test_values_are_asked_of_this_side(hosted: Hosted) -> None:
    asked_for: list[str] = []

    def ask(keyword: str) -> tuple[float, ...]:
        asked_for.append(keyword)
        return (2.5, 5.0)

    found = hosted.ask("sorter_identify", {"series": dataclasses.replace(series("values"), ask=ask)})
    assert (found.answers[1].value.session, asked_for) == ("2.5,5.0", ["EchoTime"])

    def unreadable(keyword: str) -> tuple[float, ...]:
        raise OSError(5, "Input/output error")

    found = hosted.ask("sorter_identify", {"series": dataclasses.replace(series("values"), ask=unreadable)})
    assert "Input/output error" in str(found.failures[0])


def test_the_first_answer_may_be_enough(hosted: Hosted) -> None:
    asked = hosted.ask("sorter_identify", {"series": series("leave")}, first=True)
    assert ([name for name, _ in asked.answers], asked.failures) == (["a_honest"], ())


def test_each_hook_crosses(hosted: Hosted, tmp_path: Path) -> None:
    assert [value for _, value in hosted.ask("sorter_route", {"series": series("x")}).answers] == [Hold("x")] * 2
    assert hosted.ask("sorter_event", {"event": Event("published")}) == ((), ())
    assert Path(hosted._tables["m_rogue"]["heard"]).read_text() == "published"
    code = """
        from sorter import *
        @hookimpl
        def sorter_group(instance): return instance.header["Modality"]
        @hookimpl
        def sorter_name(series, product, target): return Name(product, target)
        @hookimpl
        def sorter_products(): return [Product("one", "own:make"), Product("two", "json:dumps")]
        @hookimpl
        def sorter_expect(series): return Expectation(count=series.count)
    """
    instance = Instance("1", "2", "3", "4", "5", "f", 1, "0", "1", "", "now", header={"Modality": "MR"})
    folder = put(tmp_path / "plugins", own=code)
    plugins = Plugins.start({}, folder, Files(), {})
    try:
        assert plugins.group(instance) == ((("own", "MR"),), ())
        assert plugins.name(series("x"), "p", "t") == (Name("p", "t"), "own", ())
        made = {answer.value.name: answer.value.make for answer in plugins.products().answers if answer.plugin == "own"}
        assert made == {"one": f"{folder / 'own.py'}:make", "two": "json:dumps"}
        assert [answer.value.count for answer in plugins.expect(series("x")).answers if answer.plugin == "own"] == [1]
        assert plugins.listing()[0].name == "own"
    finally:
        plugins.close()


def test_a_plugin_that_fails_again_and_again_rests_and_is_asked_again(tmp_path: Path) -> None:
    folder = put(tmp_path / "plugins", m_rogue=ROGUE, z_honest=HONEST)
    hosted = Hosted(folder, {}, Patience(answer=20.0, rest=3600.0))
    try:
        for _ in range(3):
            assert "exit code 7" in str(hosted.ask("sorter_identify", {"series": series("leave")}).failures[0])
        before = lives()
        asked = hosted.ask("sorter_identify", {"series": series("leave")})
        assert "failed 3 times in a row; it is asked again in" in str(asked.failures[0])
        assert [name for name, _ in asked.answers] == ["z_honest"]
        assert lives() == before, "nobody asked it"
        assert hosted.refresh() == ()
        hosted._trouble["m_rogue"].until = 0.0
        assert hosted.refresh() == ("m_rogue",), "what it held is asked for again"
        assert hosted.ask("sorter_identify", {"series": series("nothing")}).failures == ()
        assert hosted.refresh() == ()
    finally:
        hosted.close()


def test_a_life_runs_the_code_that_was_checked_and_the_rows_that_were_good(tmp_path: Path) -> None:
    code = """
        import os
        from pydantic import BaseModel
        from sorter import *
        class Settings(BaseModel):
            subjects: Table
        @hookimpl
        def sorter_config(): return Settings
        @hookimpl
        def sorter_identify(series, settings):
            if series.PatientID == "leave": os._exit(7)
            return Identity(subject=settings.subjects[0]["subject"])
    """
    folder = put(tmp_path / "plugins", names=code)
    table = folder / "subjects.csv"
    table.write_text("subject\none\n")
    hosted = Hosted(folder, {"names": {"subjects": "subjects.csv"}}, Patience(answer=20.0))
    try:
        assert hosted.settings("names") == {"subjects": [{"subject": "one"}]}
        table.write_text("subject\nthe second\n")
        assert hosted.refresh() == ("names",)
        assert hosted.settings("names") == {"subjects": [{"subject": "the second"}]}
        table.write_text('subject\n\'a\tb"\n"')
        (folder / "names.py").write_text("1 / 0")
        assert hosted.refresh() == ()
        assert hosted.table_faults()[0].key == ("names", "subjects")
        assert len(hosted.ask("sorter_identify", {"series": series("leave")}).failures) == 1
        asked = hosted.ask("sorter_identify", {"series": series("x")})
        assert ([each.value.subject for each in asked.answers], asked.failures) == (["the second"], ())
    finally:
        hosted.close()


def test_what_cannot_be_loaded_is_a_fault_with_its_place(tmp_path: Path) -> None:
    folder = put(tmp_path / "plugins", a="import os\nos._exit(9)\n", b=HONEST)
    with pytest.raises(ConfigError) as caught:
        Plugins.start({}, folder, Files(), {})
    assert caught.value.faults == [f"{folder / 'a.py'}: its process ended while it loaded (exit code 9)"]

    put(folder, a="1 / 0", b=HONEST)
    with pytest.raises(ConfigError) as caught:
        Plugins.start({"x": {}, "b": {}}, folder, Files(), {}, lambda *_: "sorter.toml:3")
    assert caught.value.faults[0].startswith(f"{folder / 'a.py'}:1: ZeroDivisionError")
    assert caught.value.faults[1] == "sorter.toml:3: plugins.x: no plugin x is installed"


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    before = lives()
    hosted = Hosted(put(tmp_path / "plugins", z_honest=HONEST), {})
    begun = lives() - before
    assert len(begun) == 2
    del hosted
    wait_until(lambda: not lives() & begun, 20, "its processes to be gone")
