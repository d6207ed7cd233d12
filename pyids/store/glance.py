"""A look at a run folder in a bucket, which takes no lock and leaves the objects where they are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyids.store import bucket as bucket_module
from pyids.store.bucket import LOCK, check_name
from pyids.store.objects import Bucket

# What a look reads; of other files it needs to know that they are there, their sizes and times.
_READ = ("config.yaml", "identity.json", ".pyids", "rows/index.json")


@contextmanager
def glance(url: str) -> Iterator[tuple[Path, bool]]:
    """Give a stand-in for a run folder in a bucket, and whether a process works in it.

    Files have their sizes and times; only those in `_READ` have their contents.

    Raises
    ------
    ConfigError
        The bucket cannot be read.
    """
    bucket = Bucket(url)
    there = bucket.list()
    sign = bucket.age(LOCK) if there.pop(LOCK, None) is not None else None
    working = sign is not None and sign[0] <= bucket_module.STALE_S
    with tempfile.TemporaryDirectory(prefix="pyids-") as folder:
        for name, found in there.items():
            check_name(bucket, name)
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in _READ:
                bucket.get(name, path)
            else:
                path.touch()
                os.truncate(path, found.size)  # takes no room
            os.utime(path, (found.time, found.time))
        yield Path(folder), working
