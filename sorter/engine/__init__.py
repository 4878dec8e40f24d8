"""Making products: each in a process of its own, from copies, inside limits; adopted only when it is whole.

`sorter.engine.work.Work` goes in, an `Outcome` comes out; `sorter.engine.local.LocalEngine` does it on this machine.
Nothing is imported here: every job is a fresh process that passes through this file.
"""
