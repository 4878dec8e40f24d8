"""What both sides of an association have in common: PDUs, messages, and the data sets of storage commitment.

`upper_layer` and `dimse` hold the encodings (PS3.8, PS3.7), `wire` moves an association's bytes, `commitment` reads and
writes the lists of PS3.4 annex J, from `elements`. Nothing here knows a file, and nothing but the standard library is
imported: the worker of a node (`sorter.scu`) is to be small.
"""
