"""The challenge's tasks behind one interface.

`task` is the interface. `choice` (with `formats` for the rows of each task's files), `reading`,
`aoa` and `glue` implement it. `catalogue` lists the tasks and reads those that are asked for,
`rows` reads files.
"""
