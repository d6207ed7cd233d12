"""Files written whole or not at all, what they are checked by, and room on the disk for them."""

from __future__ import annotations

import fnmatch
import os
import secrets
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import xxhash
from numpy.typing import ArrayLike, NDArray

from pyids.errors import ConfigError, DamagedError
from pyids.store.remedies import remedy

# What run folders hold, and in which form; to be raised when an older pyids would misread them.
FORMAT = 3
# Older forms that are read as they are: 2, whose seals knew the name of a file and not its folder.
_READABLE = (2, FORMAT)


def rename_folder(temporary: Path, folder: Path) -> None:
    """Make a finished folder appear under its name, or not at all; its files are on disk first."""
    for file in temporary.iterdir():
        fsync(file)
    fsync(temporary)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)
    fsync(folder.parent)


def files_inside(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield the files of such a name in a folder and its folders, links too, in no order.

    Another process may write, rename and remove there meanwhile: what vanishes is passed over.

    Raises
    ------
    OSError
        A folder cannot be read: nobody knows what it holds, and that is not nothing.
    """

    def unless_gone(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for here, _, names in os.walk(folder, onerror=unless_gone):
        for name in fnmatch.filter(names, pattern):
            yield Path(here, name)


def entries_of(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what stands in a folder under such a name, sorted; nothing, where there is no folder.

    Another process may remove the folder meanwhile.

    Raises
    ------
    OSError
        The folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(folder / name for name in names if fnmatch.fnmatchcase(name, pattern))


def fsync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of a new file to write; afterwards it is `path`, whole and on the disk.

    The file lies in the folder of `path` until the block ends without an exception; then it is
    fsynced, renamed, and the folder is fsynced. When the block raises, it is removed; when the
    process dies, `Store.open` removes it.

    Raises
    ------
    OSError
        The block's own, naming `path`: a write to a full disk names no file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path, temporary):
            yield temporary
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Name the file that is written in an error of the system, which of a full disk names none.

    Parameters
    ----------
    path : Path
        The file.
    temporary : Path, optional
        What it is called so far.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_npy(file: BinaryIO, array: ArrayLike) -> None:
    """Write an array to an open ``.npy`` file, never a pickled one.

    NumPy by itself writes past Python's file, and says of a full disk only how many numbers are
    missing.

    Raises
    ------
    OSError
        The system's own.
    """

    class Plain:  # no file to NumPy, which then hands over bytes
        write = staticmethod(file.write)

    np.lib.format.write_array(Plain(), np.asarray(array), allow_pickle=False)


def save_array(path: Path, array: ArrayLike) -> None:
    """Write an array to a new ``.npy`` file, or over one; see `write_npy`."""
    with path.open("wb") as file:
        write_npy(file, array)


def create_mapped(path: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Make a file of raw numbers and map it for writing; its room on the disk is taken first.

    A sparse file that is mapped kills its process (SIGBUS) where the disk is full.

    Raises
    ------
    OSError
        The disk is full, or the file cannot be made; names it.
    """
    return _mapped(path, shape, dtype, b"")


def create_npy(path: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Make a ``.npy`` file and map it for writing, as `create_mapped` does."""
    import io

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        },
    )
    return _mapped(path, shape, dtype, header.getvalue())


def _mapped(path: Path, shape: tuple[int, ...], dtype: Any, header: bytes) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        file.write(header)
        file.flush()
        if size:
            try:
                os.posix_fallocate(file.fileno(), 0, len(header) + size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
    if not size:  # what is empty cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r+", offset=len(header), shape=shape)


# ---- hashes --------------------------------------------------------------------------------------

# What this process has hashed: path -> (what stat said, hash). A file is read once.
_hashed: dict[str, tuple[tuple[int, ...], str]] = {}


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes whenever a file does: inode, size, times of change."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def hash_file(path: Path, limit_bytes: int | None = None) -> str:
    """xxh3-128 of a file's bytes (of its first `limit_bytes`), in hex."""
    digest = xxhash.xxh3_128()
    left = limit_bytes if limit_bytes is not None else sys.maxsize
    with path.open("rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def hash_once(path: Path) -> str:
    """Give `hash_file` of a file, read once a process as long as it does not change."""
    now = stamp(path)
    known = _hashed.get(str(path))
    if known is None or known[0] != now:
        known = _hashed[str(path)] = (now, hash_file(path))
    return known[1]


def known_hash(path: Path) -> str | None:
    """Give the hash of a file if this process knows it and the file has not changed since."""
    known = _hashed.get(str(path))
    return known[1] if known is not None and known[0] == stamp(path) else None


def remember_hash(path: Path, made: tuple[int, ...], xxh3: str) -> None:
    """Take the hash of a file that another process has read, and what `stamp` said of it then."""
    _hashed[str(path)] = (made, xxh3)


def fingerprint(value: object) -> str:
    """xxh3-128 of a JSON value, keys sorted, in hex."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def brief(value: object) -> str:
    """Show a JSON value in at most 80 characters."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- JSON ----------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    """Write a JSON value, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; what is no file, a pipe or a folder, holds no JSON."""
    regular = stat.S_ISREG(path.stat().st_mode)  # a pipe may keep a reader waiting for ever
    return orjson.loads(path.read_bytes() if regular else b"")


def write_sealed(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON object that a run decides by: with its format, and a hash of it and its place.

    Returns
    -------
    dict
        The object as `read_sealed` will give it.
    """
    content: dict[str, Any] = orjson.loads(orjson.dumps(dict(value)))
    write_json(path, {**content, "_format": FORMAT, "_xxh3": _seal(path, content, FORMAT)})
    return content


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    DamagedError
        Its content is not what was written.
    ConfigError
        Another version of pyids wrote it, in a form that this one does not read.
    """
    try:
        content = read_json(path)
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise DamagedError(
            f"{path}: damaged: no JSON object that pyids has written: {remedy(path)}"
        )
    seal, written_in = content.pop("_xxh3", None), content.pop("_format", None)
    if type(written_in) is not int:
        raise DamagedError(
            f"{path}: damaged: not of format {FORMAT}, as what pyids writes: {remedy(path)}"
        )
    if written_in not in _READABLE:
        raise ConfigError(
            f"{path}: of format {written_in}, or damaged: this pyids reads format {FORMAT}: use "
            f"the version of pyids that made the folder; if it was this one, {remedy(path)}"
        )
    if seal != _seal(path, content, written_in):
        raise DamagedError(f"{path}: damaged: it has changed since it was written: {remedy(path)}")
    return content


def _seal(path: Path, content: Mapping[str, Any], written_in: int) -> str:
    # With its place: another file of the folder that was copied here is no less damage.
    return fingerprint([written_in, path.name if written_in == 2 else _place(path), content])


def _place(path: Path) -> str:
    """Say where in its run folder a file lies; of one in no run folder, its name."""
    for folder in path.parents[:6]:
        if (folder / ".pyids").is_file() or (folder / "identity.json").is_file():
            parts = path.relative_to(folder).parts
            # What a folder had before it grew lies in grown/N/, and was written at the top.
            return "/".join(parts[2:] if parts[0] == "grown" and len(parts) > 2 else parts)
    return path.name


def remembered(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Read a sealed JSON object; where it is missing or cannot be used, make and keep it.

    Parameters
    ----------
    path : Path
        Where it is kept.
    make : callable
        Gives the same object whenever it is called.
    """
    try:
        return read_sealed(path)
    except (FileNotFoundError, DamagedError, ConfigError):
        return write_sealed(path, make())
