"""The challenge's tasks, which share one interface.

`task` is the interface. `choice` (with `formats` for the rows of each task's files), `reading`,
`aoa` and `glue` implement it. `catalogue` lists the tasks and loads the requested ones, and
`rows` reads files.
"""
