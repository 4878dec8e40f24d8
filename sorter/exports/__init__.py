"""What a person pulls: `sorter rename` copies chosen series under names a person can read. The originals stay.

    found = in_store(spool, summaries)          # or in_folder(path): the same of any folder of DICOM
    found = [each for each in found if Choice(series="3,5-7").fits(each)]
    copies = plan_copies(found, naming("pretty"))
    report = copy_all(Files(), copies, dest, progress)

What is there and equal is left, so a rerun changes nothing, and an interrupted run goes on where it stopped. That
something was copied out of a store is remembered there (`remembered`), for the day that it is withdrawn.
"""

from sorter.exports.choosing import Choice
from sorter.exports.copying import Copy, Report, copy_all
from sorter.exports.finding import Found, Left, in_folder, in_store
from sorter.exports.naming import PRESETS, Naming, naming, plan_copies

__all__ = [
    "PRESETS", "Choice", "Copy", "Found", "Left", "Naming", "Report", "copy_all", "in_folder", "in_store", "naming",
    "plan_copies",
]  # fmt: skip
