"""Reading the pool: sources, rows, validation, exact repeats, precomputed vectors."""

from pyids.data.intake import Intake, check, ingest
from pyids.data.sources import Source, fingerprint_sources, open_sources
from pyids.data.vectors import open_vectors, take_vectors, vectors_column

__all__ = [
    "Intake",
    "Source",
    "check",
    "fingerprint_sources",
    "ingest",
    "open_sources",
    "open_vectors",
    "take_vectors",
    "vectors_column",
]
