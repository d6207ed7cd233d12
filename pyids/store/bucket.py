"""A run folder in a bucket: a folder here to work in, and the bucket as what counts.

Files go to the bucket as they are finished; of a ledger entry and its files, the files first, so
that a bucket holds no entry whose files it lacks, whenever the process is killed. An object that is
put on a condition is the lock. For S3, and whatever speaks its language (extra ``remote``).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import orjson

from pyids.errors import STAND_FOR, ConfigError
from pyids.store.files import files_inside, stamp, write_json
from pyids.store.objects import ADDRESS, Bucket
from pyids.store.place import MARK

logger = logging.getLogger("pyids")

LOCK = ".bucket-lock"

# Seconds between signs of life, and after which a lock without one counts as left behind.
BEAT_S, STALE_S = 15.0, 60.0

# Seconds between looks for files that are finished.
PUSH_S = 5.0

# What belongs to the process that works here.
_OURS_ALONE = re.compile(
    r"(.*/)?(\.lock.*|\.scratch|\.scratch/.*|\..*\.tmp|\.training\.lock)|.*/training/.*"
    r"|.*/\.checkpoint\.[0-9a-f]{32}/.*"
)


# How much the clock of a file system may lag behind that of the machine.
_TICK_S = 0.05


class _Changes(NamedTuple):
    """Files by name: finished and yet to be pushed, younger ones, contents of entries, the gone."""

    ripe: dict[str, tuple[int, ...]]
    young: dict[str, tuple[int, ...]]
    entries: dict[str, bytes]
    gone: set[str]


@dataclass
class Lease:
    """The lock of a folder of a bucket: held as long as its object shows signs of life.

    Attributes
    ----------
    bucket
        The folder.
    lost
        Set when another process has taken it, which it may after `STALE_S` without a sign.
    """

    bucket: Bucket
    lost: threading.Event = field(default_factory=threading.Event, init=False)
    _etag: str = field(default="", init=False)
    _holder: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    _beats: int = field(default=0, init=False)
    _signed: float = field(default=0.0, init=False)
    _busy: threading.Lock = field(default_factory=threading.Lock, init=False)

    def take(self) -> None:
        """Take the lock.

        Raises
        ------
        ConfigError
            Another process holds it.
        """
        etag = self.bucket.put_if(LOCK, self._sign(), None)
        if etag is None and (found := self.bucket.age(LOCK)) is not None:
            age, old = found
            if age > STALE_S:
                etag = self.bucket.put_if(LOCK, self._sign(), old)
        if etag is None:
            raise ConfigError(
                f"{self.bucket.url}: another process works in this run folder, or was killed less "
                f"than {STALE_S:.0f} s ago: wait for it, or choose another --output-dir"
            )
        self._etag = etag

    def _sign(self) -> bytes:
        self._beats += 1
        self._signed = time.time()
        return orjson.dumps({"holder": self._holder, "beat": self._beats})

    def beat(self) -> None:
        """Give a sign of life, unless the last is younger than `BEAT_S`.

        The clock is the one that goes on while a machine sleeps.
        """
        with self._busy:
            if not self.lost.is_set() and not 0 <= time.time() - self._signed < BEAT_S:
                etag = self.bucket.put_if(LOCK, self._sign(), self._etag)
                self._etag = etag or ""
                if etag is None:
                    self.lost.set()

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if not self.lost.is_set():
            self.bucket.delete(LOCK)


@dataclass
class Mirror:
    """A folder here that is kept equal to one in a bucket.

    Attributes
    ----------
    bucket, folder
        The two.
    lease
        The lock, which is held.
    """

    bucket: Bucket
    folder: Path
    lease: Lease
    _there: dict[str, str] = field(default_factory=dict, init=False)  # name -> ETag or ""
    _pushed: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)
    _busy: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def _notes(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    def pull(self) -> None:
        """Make the folder here as the one in the bucket; what is equal is not fetched again."""
        there = self.bucket.list()
        there.pop(LOCK, None)
        try:
            known = orjson.loads(self._notes.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            known = {}
        self._notes.unlink(missing_ok=True)
        for name in there:
            check_name(self.bucket, name)
        for path in self._files():
            if str(path.relative_to(self.folder)) not in there:
                path.unlink()
        for folder, _, _ in os.walk(self.folder, topdown=False):
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(folder)
        self.folder.mkdir(exist_ok=True)
        for name, found in sorted(there.items()):
            path = self.folder / name
            had = known.get(name)
            if not (path.is_file() and had == [found.etag, list(stamp(path))]):
                self.bucket.get(name, path)
            self._there[name], self._pushed[name] = found.etag, stamp(path)

    def _files(self) -> Iterator[Path]:
        for path in files_inside(self.folder):
            if not _OURS_ALONE.fullmatch(str(path.relative_to(self.folder))):
                yield path

    def push(self) -> None:
        """Bring to the bucket what has changed here, files before the entries that speak of them.

        A killed process leaves the bucket as the folder stood at some moment, but for files that
        no entry speaks of yet.

        Raises
        ------
        ConfigError
            Another process has taken the lock, or the bucket cannot be written.
        """
        with self._busy:
            self._check_lease()
            self._push(self._changes())

    def _check_lease(self) -> None:
        self.lease.beat()
        if self.lease.lost.is_set():
            raise ConfigError(
                f"{self.bucket.url}: another process has taken this run folder, for this one gave "
                "no sign of life: what was not yet there is lost; give the command again"
            )

    def _changes(self) -> _Changes:
        """Find what has changed here, as it stood at one moment.

        What was finished before a moment is seen by a look that begins after it; so whatever a
        file that is seen rests on is seen as well. What is younger waits for the next look.
        """
        before = time.time_ns() - int(_TICK_S * 1e9)
        found = _Changes({}, {}, {}, set())
        for path in self._files():
            name = str(path.relative_to(self.folder))
            try:
                now = stamp(path)
                found.gone.add(name)  # for now: what is here
                if self._pushed.get(name) == now:
                    continue
                if path.suffix == ".json":
                    found.entries[name] = path.read_bytes()
                ripe = now[-1] < before and stamp(path) == now
            except FileNotFoundError:
                found.young[name] = ()
                continue
            (found.ripe if ripe else found.young)[name] = now
        return found._replace(gone=set(self._there) - found.gone)

    def _push(self, found: _Changes) -> None:
        if MARK in found.young and MARK not in self._there:
            return  # until it is old enough: other files would be a stranger's without it
        changed = {name for name in (*found.ripe, *found.young) if name not in found.entries}
        # An entry whose files are about to change holds no longer.
        stale = {
            name
            for name, content in found.entries.items()
            if name in self._there and _speaks_of(name, content) & changed
        }
        for name in sorted(found.gone | stale, key=lambda name: not name.endswith(".json")):
            self._check_lease()
            self.bucket.delete(name)
            self._there.pop(name, None)
            self._pushed.pop(name, None)
        # As they came about: each rests on those before it, an entry on its files, a round on all
        # of the one before. Clocks have ticks: within one, a folder at a time, entries last. The
        # mark comes first, although it is written anew: files without it would be a stranger's.
        in_order = sorted(
            found.ripe.items(),
            key=lambda file: (file[1][-1], *_place(file[0]), file[0] in found.entries, file[0]),
        )
        in_order.sort(key=lambda file: file[0] != MARK)
        for name, _ in in_order:
            self._check_lease()
            with contextlib.suppress(FileNotFoundError):
                content = found.entries.get(name, self.folder / name)
                self.bucket.put(name, content)
                self._there[name], self._pushed[name] = "", found.ripe[name]

    def keep_pushing(self) -> None:
        """Push until `end`; what fails is tried again."""
        warned = False
        while not self._ended.wait(PUSH_S):
            try:
                self.push()
                warned = False
            except (ConfigError, OSError) as error:
                if not warned:
                    logger.warning("%s; the work goes on, and it will be tried again", error)
                warned = True

    def keep_beating(self) -> None:
        """Give signs of life until `end`, also while a large file is on its way."""
        while not self._ended.wait(BEAT_S / 4):
            with contextlib.suppress(ConfigError):  # the push will say so
                self.lease.beat()

    def end(self) -> None:
        """Let `keep_pushing` end."""
        self._ended.set()

    def note(self) -> None:
        """Note what is equal, so that the next `pull` need not fetch it.

        Raises
        ------
        ConfigError
            What the store has said it had taken is not there: something else has answered.
        """
        there = self.bucket.list()
        if lost := sorted(self._pushed.keys() - there.keys()):
            raise ConfigError(
                f"{self.bucket.url}: does not hold {lost[0]}, which something at that address said "
                "it had taken: check AWS_ENDPOINT_URL, and give the same command again"
            )
        notes = {
            name: [there[name].etag, list(now)]
            for name, now in self._pushed.items()
            if name in there
        }
        write_json(self._notes, notes)


def _place(name: str) -> tuple[int, str]:
    """Order folders: as they are named, but rounds by their number."""
    folder = os.path.dirname(name)
    number = re.match(r"rounds/(\d+)", folder)
    return (int(number[1]) if number else 0, folder)


def _speaks_of(name: str, content: bytes) -> set[str]:
    """Return the files that a ledger entry speaks of."""
    try:
        files = orjson.loads(content).get("files", {})
    except (orjson.JSONDecodeError, AttributeError):
        return set()
    return {os.path.normpath(os.path.join(os.path.dirname(name), file)) for file in files}


def check_name(bucket: Bucket, name: str) -> None:
    """Refuse an object whose name would be a place outside the folder."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ConfigError(
            f"{bucket.url}: holds an object {name!r:.80}, which no run has made: name another "
            "folder"
        )


def work_folder(url: str) -> Path:
    """Return the folder here that a run folder in a bucket is worked in."""
    base = os.environ.get("PYIDS_WORK_DIR") or os.path.expanduser("~/.cache/pyids/work")
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return Path(base, f"{url.rstrip('/').rpartition('/')[2]}-{digest}")


@contextlib.contextmanager
def working_in(url: str) -> Iterator[Path]:
    """Give a folder to work in that is the one in the bucket: before, meanwhile and afterwards.

    Raises
    ------
    ConfigError
        The bucket cannot be read or written, or another process works in that folder.
    """
    bucket = Bucket(url)
    if not url.removeprefix("s3://").rstrip("/").partition("/")[2]:
        raise ConfigError(ADDRESS)
    folder = work_folder(url)
    lease = Lease(bucket)
    lease.take()
    STAND_FOR[str(folder)] = url.rstrip("/")
    mirror = Mirror(bucket, folder, lease)
    threads = [
        threading.Thread(target=target, name="bucket", daemon=True)
        for target in (mirror.keep_beating, mirror.keep_pushing)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        threads[0].start()
        mirror.pull()
        threads[1].start()
        try:
            yield folder
        finally:
            mirror.end()
            threads[1].join()
            time.sleep(2 * _TICK_S)  # until all is old enough
            mirror.push()
        mirror.note()
    finally:
        mirror.end()
        threads[0].join()
        STAND_FOR.pop(str(folder), None)
        lease.release()


@contextlib.contextmanager
def written_to(url: str) -> Iterator[Path]:
    """Give a path to write a file or folder to, which is then in the bucket.

    Raises
    ------
    ConfigError
        The bucket cannot be written: told before anything is.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    if parent in ("s3:", "s3:/"):
        raise ConfigError(ADDRESS)
    bucket = Bucket(parent)
    probe = f".pyids-{uuid.uuid4().hex}"
    bucket.put(probe, b"")
    bucket.delete(probe)
    place = work_folder(url).with_name(probe[1:])
    place.mkdir(parents=True)
    try:
        yield place / name
        for file in sorted(files_inside(place)):
            bucket.put(str(file.relative_to(place)), file)
    finally:
        shutil.rmtree(place)
