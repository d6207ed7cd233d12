"""Rows in and rows out: sources, readers, duplicates, vectors, exports."""
