"""The house rules that a machine can hold: who imports whom, and that effects go through the file object alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sorter

PACKAGE = Path(sorter.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

FLOORS: list[set[str]] = [
    {"model", "errors", "words"},
    {"durable", "structure", "expected", "matching", "naming", "strays", "accounts", "processes", "wire", "protocol"},
    {"trust"},
    {"config", "hookspecs"},
    {"spool", "plugins"},
    {"receive", "watch", "take", "completion", "deliver", "engine", "builtin"},
    {"pipeline", "labs", "exports", "scu", "sessions", "importing", "verifying", "summaries", "story", "door"},
    {"daemon"},
    {"cli", "testing", "__main__"},
]
"""From the ground up. A room may import from lower floors, and from itself; rooms of floor 5 never from each other."""

APART = FLOORS[5]

ON_THE_WAY = {
    # (from, to): why it is allowed
    ("builtin", "deliver"): "a target kind keeps the contract of sorter.deliver.target",
}

EFFECTS = {
    "os": {
        *("open", "read", "write", "writev", "readv", "pread", "pwrite", "fsync", "fdatasync", "ftruncate", "truncate"),
        *("rename", "replace", "renames", "link", "symlink", "unlink", "remove", "removedirs", "mkdir", "makedirs"),
        *("rmdir", "chmod", "fchmod", "chown", "fchown", "lchown", "utime", "stat", "lstat", "listdir", "scandir"),
        *("walk", "mkfifo", "mknod", "sendfile", "copy_file_range", "sync", "statvfs"),
    },
    "shutil": {"*"},
    "tempfile": {"*"},
}

PATH_EFFECTS = {
    "write_bytes", "write_text", "read_bytes", "read_text", "touch", "rmdir", "symlink_to", "hardlink_to", "iterdir",
    "rglob", "lchmod",
}  # fmt: skip

MAY_TOUCH = {
    "durable.py": "it is the file object",
    "config": "the configuration is read before there is a spool",
    "scu/storage.py": "reads what a person sends, in the person's own name",
    "testing": "makes test data where a test says",
    "engine/child.py": "inside a job's own process and scratch folder",
    "engine/keeper.py": "forks those processes, and waits for them with a pipe",
    "engine/worker.py": "inside a job's own process and scratch folder",
    "processes.py": "looks at /proc, which is no file system of ours",
    "take/inflate.py": "a child process that is given one descriptor, and no path",
    "take/unpack.py": "a child process that is given descriptors, and no path",
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room of sorter) of every import that runs; those for type checkers alone do not count."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sorter":
            parts = node.module.split(".")
            if len(parts) > 1:
                yield node.lineno, parts[1]
            else:
                yield from ((node.lineno, alias.name) for alias in node.names if (PACKAGE / alias.name).exists())
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("sorter."):
                    yield node.lineno, alias.name.split(".")[1]


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    mine = room(path)
    if mine == "__init__":
        return
    wrong = [
        f"{path.name}:{line}: {mine} imports {other}"
        for line, other in imports(path)
        if other != mine
        and (mine, other) not in ON_THE_WAY
        and (floor(other) > floor(mine) or (floor(other) == floor(mine) and mine in APART))
    ]
    assert not wrong, "\n".join(wrong)


def effects(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            yield f"{path.name}:{node.lineno}: open()"
        if not (isinstance(node, ast.Attribute)):
            continue
        if isinstance(node.value, ast.Name):
            names = EFFECTS.get(node.value.id, set())
            if node.attr in names or "*" in names:
                yield f"{path.name}:{node.lineno}: {node.value.id}.{node.attr}"
        if node.attr in PATH_EFFECTS and not ast.unparse(node.value).endswith("files"):
            yield f"{path.name}:{node.lineno}: .{node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_effects_go_through_the_file_object(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    if any(relative == each or relative.startswith(f"{each}/") or relative == f"{each}.py" for each in MAY_TOUCH):
        return
    found = list(effects(path))
    assert not found, "use sorter.durable.Files:\n" + "\n".join(found)


def test_the_rule_would_notice(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import os\nfrom pathlib import Path\nos.unlink('x')\nPath('x').write_bytes(b'')\nopen('x')\n")
    assert len(list(effects(path))) == 3
