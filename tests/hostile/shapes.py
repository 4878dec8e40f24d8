"""What becomes of real files: all that pydicom's wheel ships, and the sample. Run as a module it prints the page.

PYTHONPATH=tests .venv/bin/python -m hostile.shapes > docs/shapes.md
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pydicom.data
from hostile.bench import Life

from sorter.take.filing import Filed

SHIPPED = Path(pydicom.data.__file__).parent
FOLDERS = ("test_files", "charset_files", "palettes")

HEAD = """# What becomes of real files

Each of these files was dropped into `incoming/` and left alone for twelve minutes. *Taken* means that it is in the
store (several are one SOP instance in other transfer syntaxes: the first to be read is delivered, the others are kept),
*set aside* that it is in quarantine with this reason. `python -m hostile.shapes` in `tests/` makes this page, and
a test holds it.
"""


def outcomes(files: dict[str, Path]) -> dict[str, str]:
    """What became of these files, by the names that they are given, dropped together."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) / "spool")
        for name, path in files.items():
            life.drop(f"x/{name}", path.read_bytes())
        news = [each for each in life.settle(720) if isinstance(each, Filed)]
        found = dict.fromkeys(files, "left where it is")
        origins = {f"incoming/x/{name}": name for name in files}
        for each in news:
            origin = each.candidate.origin or os.path.relpath(each.candidate.path, life.spool.root)
            name = next((origins[o] for o in origins if origin == o or origin.startswith(f"{o}/")), None)
            if name is not None and each.outcome in ("new", "same"):
                found[name] = "taken"
            elif name is not None and each.outcome == "aside":
                found[name] = f"set aside: {each.why}"
        return found


def pydicoms() -> dict[str, str]:
    """Every file in pydicom's own folders."""
    paths = [path for folder in FOLDERS for path in sorted((SHIPPED / folder).rglob("*"))]
    files = {
        str(path.relative_to(SHIPPED)): path for path in paths if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    return outcomes(files)


def samples(sample: Path) -> dict[str, str]:
    """The sample, counted by folder."""
    files = {str(path.relative_to(sample)): path for path in sorted((sample / "data").rglob("*")) if path.is_file()}
    counts = Counter((str(Path(name).parent), what) for name, what in outcomes(files).items())
    return {f"{folder} ({count} files)": what for (folder, what), count in sorted(counts.items())}


def table(found: dict[str, str]) -> str:
    rows = [f"| `{name}` | {what} |" for name, what in found.items()]
    return "\n".join(["| file | what becomes of it |", "|---|---|", *rows]) + "\n"


def page(sample: Path) -> str:
    of_pydicom, of_sample = pydicoms(), samples(sample)
    taken = sum(what == "taken" for what in of_pydicom.values())
    return (
        f"{HEAD}\n## pydicom {pydicom.__version__}\n\n{taken} of {len(of_pydicom)} files are taken.\n\n"
        f"{table(of_pydicom)}\n## The sample\n\n{table(of_sample)}"
    )


if __name__ == "__main__":
    sys.stdout.write(page(Path(os.environ["SORTER_SAMPLE"])))
