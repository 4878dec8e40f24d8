"""`sorter demo`: a synthetic session through the real receiver, and the tree that comes out."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import click
from rich.tree import Tree

from sorter.cli.common import console
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.scu.storage import send
from sorter.spool import Spool
from sorter.summaries import summaries
from sorter.testing.synthetic import write_session

PATIENCE = 120.0


@click.command("demo")
@click.option("--root", type=click.Path(path_type=Path), default="sorter-demo", show_default=True)
def demo_command(root: Path) -> None:
    """Make a synthetic session, send it to a sorter of its own, and show the folders that come out."""
    if root.exists():
        raise SorterError(f"{root} is there already; remove it, or give another --root")
    files = Files()
    made = root / "made"
    files.make_folders(made, 0o755)
    count = len(write_session(made))
    console.print(f"{count} synthetic images in {made}")
    server = subprocess.Popen(
        [sys.executable, "-m", "sorter", "serve", "--root", str(root), "--port", "0", "--quiet", "2"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = _port(server)
        console.print(f"sorter receives on 127.0.0.1:{port}; sending …")
        report = send([made], "127.0.0.1", port, called="SORTER", calling="DEMO", progress=lambda *_: None)
        console.print(f"{report.sent} images were sent and accepted. Two quiet seconds later:")
        _wait(Spool(root / "spool", files))
    finally:
        server.terminate()
        server.wait()
    console.print(_tree(files, root / "labs", Tree(f"{root}/labs")))
    console.print(
        f"\nAsk it:   sorter status --root {root}\n          sorter why 'DEMO*' --root {root}", soft_wrap=True
    )


def _port(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.startswith("ready"):
        raise SorterError("the demo's sorter did not start; what it said stands above")
    return int(line.split(":")[2].split(",")[0])


def _wait(spool: Spool) -> None:
    """Until everything is delivered; its summaries say so."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.25)):
        found = list(summaries(spool))
        if found and all(each.state == "delivered" for each in found):
            return
        pause.wait(0.25)
    raise SorterError(
        f"not everything was delivered within {PATIENCE:.0f} s; see `sorter status --root {spool.root.parent}`"
    )


def _tree(files: Files, folder: Path, tree: Tree) -> Tree:
    """Folders with their files; of many files of one kind the first two."""
    plain: list[str] = []
    for name, _ in files.scan(folder):
        if name.startswith("."):
            continue
        if files.is_folder(folder / name):
            _tree(files, folder / name, tree.add(f"[bold]{name}/[/bold]"))
        else:
            plain.append(name)
    many = [name for name in plain if name.endswith(".dcm")]
    for name in [name for name in plain if name not in many] + many[:2]:
        tree.add(name)
    if len(many) > 2:
        tree.add(f"… {len(many) - 2} more images")
    return tree
