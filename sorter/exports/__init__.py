"""What a person pulls: `sorter rename` copies chosen series under names a person can read. The originals stay.

    source = Store(spool)                       # or a `sorter.door.Door`: the same for who may not read the store
    found = source.candidates(list(source.units()))
    found = source.complete([each for each in found if Choice(series="3,5-7").fits(each)])
    copies = plan_copies(found, naming("pretty"))
    report = copy_all(source, copies, dest, progress)

Of any folder of DICOM: `found = in_folder(path)`, and `Disk(Files())` gives the files. What is there and equal is left,
so a rerun changes nothing, and an interrupted run goes on where it stopped. What is copied out of a store is remembered
there first (`remembered`), for the day that it is withdrawn.
"""

from sorter.exports.choosing import Choice
from sorter.exports.copying import Copy, Giver, Report, copy_all
from sorter.exports.finding import Found, Left, Made, in_folder, in_store
from sorter.exports.naming import PRESETS, Naming, naming, plan_copies, plan_products
from sorter.exports.source import Disk, Source, Store, Told

__all__ = [
    "PRESETS", "Choice", "Copy", "Disk", "Found", "Giver", "Left", "Made", "Naming", "Report", "Source", "Store",
    "Told", "copy_all", "in_folder", "in_store", "naming", "plan_copies", "plan_products",
]  # fmt: skip
