"""What people look at: the page of a run, its map, and how far a run is.

Everything is read from the run folder, by sampling, so that memory and the size of the page do not
grow with the pool; nothing in the folder changes but ``report.html`` and ``map.parquet``.
"""
