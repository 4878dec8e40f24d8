"""The kinds of target that sorter itself brings."""

from __future__ import annotations

from sorter import TargetKind, hookimpl


@hookimpl
def sorter_targets() -> list[TargetKind]:
    return [
        TargetKind("path", "sorter.builtin.path_target:PathTarget"),
        TargetKind("dicom", "sorter.scu.target:DicomTarget"),
        TargetKind("rclone", "sorter.builtin.rclone_target:RcloneTarget"),
    ]
