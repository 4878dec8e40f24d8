"""The spool: one folder of one local file system, and the records in it. The folder is the database."""

from sorter.spool.layout import Spool
from sorter.spool.unit import Unit, UnitSummary

__all__ = ["Spool", "Unit", "UnitSummary"]
