"""Is a dropped folder complete? Read from its times, which a restart does not lose.

A rename sets the ctime of the folder that is moved, and nothing else: so a folder that came by one rename has a ctime
after its own mtime and after every time below it. A folder that is made and filled in place has ctime equal to mtime
(the last entry set both), or something newer below. `cp -a`, rsync, tar and scp -p end by setting the folder's mtime to
an earlier time: then all its folders have ctime after mtime, and nothing below is later than its own ctime.

This is evidence, not proof: a chmod of the folder in the middle of filling it, with a pause of several seconds after
it, looks the same. Whoever fills a folder slowly should end with `.done`.
"""

from __future__ import annotations

from collections.abc import Iterator

from sorter.watch.state import Drop, Folder

_CLEARLY = 2_000_000_000  # nanoseconds; the coarsest clock of a file system ticks so


def came_whole(drop: Drop, top: Folder) -> bool:
    """To be asked when every file of the drop stands still and none was taken yet."""
    if top.ctime_ns <= top.mtime_ns or not drop.ever:
        return False
    latest = max(_times(top), default=0)
    if not drop.grew and top.ctime_ns > latest:
        return True
    folders = list(_folders(top))
    copied = all(each.ctime_ns > each.mtime_ns and (each.files or each.folders) for each in folders)
    return copied and top.ctime_ns >= latest and (drop.set_back or _was_set_back(top))


def _times(top: Folder) -> Iterator[int]:
    """The ctime of everything below."""
    for folder in _folders(top):
        if folder is not top:
            yield folder.ctime_ns
        for file in folder.files.values():
            yield file.info[3]


def _folders(top: Folder) -> Iterator[Folder]:
    rest = [top]
    while rest:
        folder = rest.pop()
        yield folder
        rest += folder.folders.values()


def _was_set_back(top: Folder) -> bool:
    """Is its mtime clearly before everything in it? Each entry that was made in it set that mtime."""
    entries = [file.info[3] for file in top.files.values()] + [each.ctime_ns for each in top.folders.values()]
    return bool(entries) and top.mtime_ns + _CLEARLY < min(entries)
