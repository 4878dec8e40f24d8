"""The lab users' door: a unix socket at which `sort` answers accounts that may not read the spool.

The kernel says who asks (`SO_PEERCRED`), the account database in which groups the account is *now*, and the
configuration what these groups may see (`terms`). One connection carries one request (`requests`) and its answer
(`wire`), so that whoever left a group is a stranger at his next request. Images go out as read-only descriptors; the
user's own process writes the copies, as its own account. What was read stands in an access log.

The process that answers (`python -m sorter.door`) reads the spool and decides nothing; it is started by the first who
knocks, and ends when nobody has for a while. `client` is the other side.
"""

from sorter.door.client import Door
from sorter.door.terms import Members, Sight, Terms, sight_of

__all__ = ["Door", "Members", "Sight", "Terms", "sight_of"]
