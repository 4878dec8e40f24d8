"""A session as a part of a dataset: its labels, and what stands at the top of a BIDS dataset."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sorter import Identity, Job

BIDS_VERSION = "1.10.0"
MISSING = "n/a"

IGNORED = ("*.new-rev*", "*.damaged*", "MOVED*.txt", "*__dup-*")
"""Names that are none of BIDS: what sorter lays beside files that the lab edited, and what ReproIn makes of a scan that
was repeated, until a person has decided."""

README = """\
This dataset grows: sorter adds each session once its study has settled, and again what came late.

All of it is yours. What you edit is never overwritten, and what you remove is not brought back; a later version of an
edited file comes as NAME.new-rev2 beside it. Describe the dataset here and in dataset_description.json.
"""

_TEXT = (".json", ".tsv", ".txt", ".md", ".bval", ".bvec")


@dataclass(frozen=True, slots=True)
class Labels:
    """What BIDS calls subject and session: letters and digits of ASCII; a session may be "" for none."""

    subject: str
    session: str

    @classmethod
    def of(cls, identity: Identity, header: Mapping[str, Any], *, by_date: bool) -> Labels:
        """Those of a study. ValueError where there is nothing to call its subject by."""
        named = (identity.subject, header.get("PatientID"), header.get("PatientName"))
        subject = next((label for label in map(_label, named) if label), "")
        if not subject:
            raise ValueError("no letter or digit of ASCII is in what its subject is called: say another (`sorter fix`)")
        session = _label(identity.session) or (_label(header.get("StudyDate")) if by_date else "")
        return cls(subject, session)


def _label(text: object) -> str:
    plain = unicodedata.normalize("NFKD", "" if text is None else str(text))
    return re.sub(r"[^A-Za-z0-9]", "", plain)


def finish(folder: Path, made_up: Labels, real: Labels, job: Job) -> None:
    """Give what was made below `folder` its real names, and put beside it what all sessions have in common."""
    known = {made_up.subject: real.subject, **({made_up.session: real.session} if made_up.session else {})}
    _rename(folder, known)
    for name, text in _common(real, job).items():
        (folder / name).write_text(text)


def _rename(folder: Path, known: Mapping[str, str]) -> None:
    """The real labels for the made-up ones, which are like nothing else, in names and texts."""

    def real(text: str) -> str:
        for label, its in known.items():
            text = text.replace(label, its)
        return text

    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(place, name)
            if path.suffix in _TEXT:
                path.chmod(0o600)  # heudiconv takes the right to write away
                text = path.read_text(errors="surrogateescape")
                path.write_text(real(text), errors="surrogateescape")
            path.rename(path.with_name(real(name)))
        for name in folders:
            Path(place, name).rename(Path(place, real(name)))


def _common(real: Labels, job: Job) -> dict[str, str]:
    described = {
        "Name": job.identity.lab or "dataset",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "sorter-bids"}],
    }
    sex = job.header.get("PatientSex")  # (0010,0040), PS3.3 C.7.1.1: M, F or O
    row = {"participant_id": f"sub-{real.subject}", "sex": str(sex) if sex in ("M", "F", "O") else MISSING}
    return {
        "dataset_description.json": json.dumps(described, indent=2) + "\n",
        "README": README,
        ".bidsignore": "".join(f"{pattern}\n" for pattern in IGNORED),
        "participants.tsv": "\t".join(row) + "\n" + "\t".join(row.values()) + "\n",
    }
