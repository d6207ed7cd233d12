"""The place of a run folder: whether it is one, whose it is, and who works in it."""

from __future__ import annotations

import errno
import glob
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from pyids.errors import ConfigError
from pyids.parsing import check_on_disk
from pyids.store.files import FORMAT, atomic_write, naming, read_json

# Lies in every run folder, from its first moment on.
MARK = ".pyids"

_LOCK = ".lock"

# Options that may name a folder, or files by a pattern, of which none is to be replaced.
_FOLDERS = {"data", "target", "exclude", "already", "model", "proxy_model", "encoder"}

# What a file system answers that knows no locks.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


def is_run_folder(path: Path) -> bool:
    """Whether pyids made this folder: by its mark, or by what every run writes."""
    whole = all(_is_file(path / name) for name in ("identity.json", "config.yaml"))
    return whole or _is_file(path / MARK)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def check_writable_place(path: Path | str) -> None:
    """Check that something that is to be written would lie on a disk, before the work for it.

    Raises
    ------
    ConfigError
        It is the address of a bucket, or another URL.
    """
    try:
        check_on_disk(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_destination(
    path: Path | str,
    inputs: Iterable[str | Path] = (),
    *,
    run: Path | None = None,
    own: Iterable[Path] = (),
    same_kind: Callable[[Path], bool] | None = None,
) -> None:
    """Check that a file may be written there, before the work for it: nothing else is lost by it.

    Every output of a command that the user names comes through here.

    Parameters
    ----------
    path
        The file.
    inputs
        What the command reads, or a run was made of: files, folders and globs, as they were given.
        What names nothing on this machine is passed over.
    run
        A run folder, which may not be there yet.
    own
        Files of a run folder that this command writes there anyway.
    same_kind
        Whether a file that lies there is an earlier output of the same command, which may be
        replaced. An empty file is anyone's.

    Raises
    ------
    ConfigError
        It is no name, no file, not on a disk, among the files of a run, one of `inputs`, or a
        file that pyids has not written.
    """
    if not Path(path).name:
        given = str(path) if str(path) != "." else "''"
        raise ConfigError(f"{given}: not the name of a file: name one to write to")
    check_writable_place(path)
    path = Path(path)
    if _place(path) in {_place(file) for file in own}:
        return
    if (folder := _run_around(path, run)) is not None:
        raise ConfigError(
            f"{path}: among the files of the run in {folder}: name a place outside of it, "
            "or selected-... at its top"
        )
    check_no_input(path, inputs)
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: not a file, and it is in the way: choose another place")
    try:
        foreign = same_kind and path.exists() and path.stat().st_size and not same_kind(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: it cannot be read what lies there ({error.strerror}): choose another place"
        ) from None
    if foreign:
        raise ConfigError(
            f"{path}: holds something else, which would be lost: choose another place, or move "
            "that away"
        )


def _place(path: Path) -> Path:
    """Return where a name lies; what it links to does not matter, for it is the link that goes."""
    path = Path(os.path.abspath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def _run_around(path: Path, run: Path | None) -> Path | None:
    """Return the run folder among whose files this would lie."""
    place = _place(path)
    known = None if run is None else Path(os.path.realpath(run))
    for folder in place.parents:
        if folder == known or is_run_folder(folder):
            free = place.relative_to(folder).parts[0].startswith("selected-")
            return None if free else folder
    return None


def check_no_input(path: Path, inputs: Iterable[str | Path]) -> None:
    """Check that a file to write is none of those that are read; see `check_destination`.

    Raises
    ------
    ConfigError
        It is.
    """
    if not os.path.lexists(path):
        return
    for name in inputs:
        if any(_is_within(path, there) for there in _named(str(name))):
            raise ConfigError(
                f"{path}: an input of this command or of its run, which would be lost: choose "
                "another place"
            )


def _is_within(path: Path, there: str) -> bool:
    """Whether a file that exists is `there`, or inside the folder `there`, where data may be."""
    if os.path.isdir(there):
        folder = Path(os.path.realpath(there))
        # A page is no data: it may lie beside them, and be written again.
        return path.suffix.lower() != ".html" and folder in _place(path).parents
    same = path.exists() and os.path.samefile(path, there)
    return same or _place(path) == _place(Path(there))


def _named(name: str) -> Iterator[str]:
    """Yield what a name of data or vectors stands for here: ``FILE:COLUMN``, ``FOLDER@X:Y``."""
    forms, rest = [name], name
    while mark := max(rest.rfind(":"), rest.rfind("@")) + 1:
        rest = rest[: mark - 1]
        forms.append(rest)
    for form in forms:
        if form and "\0" not in form:
            if _exists(form):
                yield form
            elif glob.has_magic(form) and "://" not in form:
                yield from filter(_exists, glob.iglob(form, recursive=True))


def _exists(name: str) -> bool:
    try:
        return os.path.exists(name)
    except (OSError, ValueError):
        return False


def inputs_of(fields: Mapping[str, Any]) -> list[str]:
    """Collect what the fields of a configuration name: files in any of them, folders in some.

    Of the others the words, such as ``rows``, may be the name of some folder by chance.
    """
    found: list[str] = []

    def collect(value: object, folders: bool) -> None:
        if isinstance(value, str | Path):
            if folders or os.path.isfile(value):
                found.append(str(value))
        elif isinstance(value, Mapping):
            for inner in value.values():
                collect(inner, folders)
        elif isinstance(value, list | tuple):
            for inner in value:
                collect(inner, folders)

    for name, value in fields.items():
        if name != "output_dir":
            collect(value, name in _FOLDERS or name.endswith("_file"))
    return found


def check_place(path: Path) -> None:
    """Check that nothing lies there but what a run has made: other files are not ours to lose.

    Raises
    ------
    ConfigError
        There is; or a link, through which we would read and write somewhere else; or the folder of
        another version of pyids.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path}: a name that is no UTF-8: choose another --output-dir") from None
    # A lock alone is what a process leaves that had its files taken back (`pyids.store.bucket`).
    names = (entry for entry in path.iterdir() if not entry.name.startswith(_LOCK))
    stranger = next(names, None) if path.exists() else None
    # The mark is looked for last: another process may be making the folder.
    if stranger and not is_run_folder(path):
        raise ConfigError(
            f"{path}: holds {stranger.name}, which no run has made: name a new or an empty folder "
            "as --output-dir"
        )
    if stranger:
        check_links(path)
        _check_format(path / "identity.json")


def _check_format(identity: Path) -> None:
    try:
        content = read_json(identity)
    except (FileNotFoundError, orjson.JSONDecodeError):
        return
    if isinstance(content, dict) and not {"_format", "_xxh3"} & content.keys():
        raise ConfigError(
            f"{identity.parent}: a run folder of format 1, and this pyids reads format {FORMAT}: "
            "use the version of pyids that made it (0.1.0 or older), or choose another --output-dir"
        )


def check_links(path: Path) -> None:
    """Check that a run folder holds nothing but files and folders: no link is followed.

    Raises
    ------
    ConfigError
        It holds a link, or a pipe or the like, which may keep a reader waiting for ever.
    """
    for file, problem in find_strange(path):
        raise ConfigError(f"{file}: {problem}")


def find_strange(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the links and special files inside a folder, and what is wrong with them."""
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            file = os.path.join(folder, name)
            if os.path.islink(file):
                yield (
                    Path(file),
                    "a link, and links inside a run folder are not followed: put what it names in "
                    "its place, or remove it",
                )
            elif name in files:
                try:
                    mode = os.lstat(file).st_mode
                except FileNotFoundError:  # a file that another process has renamed meanwhile
                    continue
                if not stat.S_ISREG(mode):
                    yield Path(file), "a pipe or device, which no run has made: remove it"


# ---- one process at a time -----------------------------------------------------------------------


def take_lock(path: Path) -> BaseFileLock:
    """Take the lock of a run folder.

    Where the file system has no locks that end with their process, a file that names the process
    stands for it; that of a process of this machine which has ended is taken over.

    Raises
    ------
    ConfigError
        Another process works there.
    OSError
        The folder cannot be written.
    """
    soft = soft_lock(path)
    try:
        try:
            # Left to itself the library would take the lock file, which stays where a lock was
            # given back, for the lock of a process that works.
            lock: BaseFileLock = FileLock(path / _LOCK, timeout=0, fallback_to_soft=False)
            lock.acquire()
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            lock = SoftFileLock(soft, timeout=0.2)  # the first look removes, the second takes
            lock.acquire()
    except Timeout:
        # One that was killed on another machine, or before it could write who it is.
        ended = f"; if there is none any more, remove {soft}" if soft.exists() else ""
        raise ConfigError(
            f"{path}: another process works in this run folder: wait for it, or choose another "
            f"--output-dir{ended}"
        ) from None
    return lock


def soft_lock(path: Path) -> Path:
    """Name the file that stands for the lock of a run folder where there are none."""
    return path / f"{_LOCK}-soft"


# ---- whose it is ---------------------------------------------------------------------------------


def write_mark(path: Path, named: Mapping[str, Any] | None = None) -> None:
    """Mark a folder as a run's and, with what its configuration names, as this user's own.

    Parameters
    ----------
    path : Path
        The run folder.
    named : mapping, optional
        The data, endpoints and models that its saved configuration names, as JSON values. None:
        mark it as a run's only, unless it has a mark.
    """
    file = path / MARK
    if named is None:
        if not file.exists():
            with naming(file):
                file.write_bytes(orjson.dumps({"format": FORMAT}) + b"\n")
        return
    with atomic_write(file) as temporary:
        owner = _signature(named)
        temporary.write_bytes(orjson.dumps({"format": FORMAT, "owner": owner}) + b"\n")


def is_ours(path: Path, named: Mapping[str, Any]) -> bool:
    """Whether this user has told pyids to use what the folder's configuration names.

    A stranger's folder may name files, servers and models that its user never meant to read, or to
    send anything to.
    """
    try:
        mark = read_json(path / MARK)
    except (OSError, orjson.JSONDecodeError):
        return False
    owner, signature = mark.get("owner") if isinstance(mark, dict) else None, _signature(named)
    return (
        isinstance(owner, str)
        and signature is not None
        and hmac.compare_digest(owner.encode(), signature.encode())
    )


def _signature(named: Mapping[str, Any]) -> str | None:
    """Sign with this user's own key; None where no key can be kept."""
    key = _key()
    if key is None:
        return None
    content = orjson.dumps(dict(named), option=orjson.OPT_SORT_KEYS)
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Read the key of this user, made when it is first needed; it never leaves the machine."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(state, "pyids", "key")
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = file.with_name(f"key.{secrets.token_hex(4)}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as new:
                new.write(secrets.token_bytes(32))
            try:
                os.link(temporary, file)  # the first of two processes wins
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        key = file.read_bytes()
    except OSError:
        return None
    return key if len(key) == 32 else None
