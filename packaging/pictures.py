"""Records two pictures of the docs from a sorter that runs: `.venv/bin/python packaging/pictures.py docs/pictures`.

Two labs get synthetic sessions. The folder of one of them is no folder to be trusted (its marker is gone, as when a NAS
is not mounted), so that `sorter status` has something to say. What is drawn is what the commands print.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, session
from sorter.testing.waiting import wait_until

WIDTH = 112

CONFIG = """
[labs.memory]
match = ["PatientID=MEM*"]
[labs.vision]
match = ["PatientID=VIS*"]
"""

NAMES = ("localizer", "T1_MPRAGE", "rest_bold", "gre_field_mapping")


def printed(sorter: RunningSorter, *words: str) -> str:
    """What a command prints on a terminal that is `WIDTH` wide."""
    told = {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "sorter", *words, "--root", str(sorter.root)]
    return subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False).stdout


def draw(path: Path, sorter: RunningSorter, *words: str) -> None:
    """The command and what it prints, as a terminal shows it."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(f"$ sorter {' '.join(words)}", style="bold", highlight=False)
    console.print(Text.from_ansi(printed(sorter, *words).replace(str(sorter.root), "/srv/sorter")))
    drawn = console.export_svg(title="sorter", unique_id=path.stem)
    path.write_text(re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL))  # nothing is fetched from elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description="Records status.svg and why.svg from a sorter that runs.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as place, RunningSorter(Path(place) / "sorter", config=CONFIG) as sorter:
        for made in session(Plan(seed=1, patient_id="MEM01"), NAMES):
            sorter.send(made, calling="PRISMA")
        sorter.wait_delivered(sum(len(each.files) for each in session(Plan(seed=1, patient_id="MEM01"), NAMES)))
        (sorter.labs / "vision" / ".sorter" / "id").unlink()
        for made in session(Plan(seed=2, patient_id="VIS07"), NAMES[:3]):
            sorter.send(made, calling="SKYRA")
        wait_until(lambda: "marker" in printed(sorter, "status"), 60, "what is wrong with the folder to be said")
        draw(folder / "status.svg", sorter, "status")
        one = next(each for each in sorter.series() if each.description == "T1_MPRAGE")
        draw(folder / "why.svg", sorter, "why", one.key[:8])


if __name__ == "__main__":
    main()
