"""Files in object stores and on the web, read by ranges through fsspec (extra ``remote``)."""

from __future__ import annotations

import io
import os
import re
import time
from functools import lru_cache
from typing import Any, BinaryIO

from pyids.errors import DataError

_REMOTE = re.compile(r"(s3|gs|gcs|hf|https?)://")


# Bytes that one request asks for.
_RANGE_BYTES = 8 << 20


# Bytes that are kept for small reads.
_BUFFER_BYTES = 1 << 20


# Seconds between tries after a broken connection.
_PAUSES = (0.5, 2.0, 5.0)


def is_remote(path: str) -> bool:
    """Whether a name is the address of a remote file."""
    return _REMOTE.match(path) is not None


@lru_cache(maxsize=8)
def _filesystem(scheme: str) -> Any:
    try:
        import fsspec
    except ImportError:
        raise DataError(
            f"{scheme}:// needs the package fsspec: pip install 'pyids-select[remote]'"
        ) from None
    if scheme == "s3":
        # Arrow brings a client for S3: no further package is needed.
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import S3FileSystem

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return ArrowFSWrapper(S3FileSystem(endpoint_override=endpoint, region=region))
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{scheme}:// cannot be read here ({reason}): install it") from None


def _split(path: str) -> tuple[Any, str]:
    scheme, _, rest = path.partition("://")
    return _filesystem(scheme), path if scheme in ("http", "https") else rest


def _tried(path: str, action: Any) -> Any:
    """Do something with a remote file; once more after each pause, then an error in one line."""
    for pause in (*_PAUSES, None):
        try:
            return action()
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such remote file: check its name and your access"
            ) from None
        except (OSError, TimeoutError) as error:
            if pause is None:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                raise OSError(f"the connection breaks off: {reason}") from None
            time.sleep(pause)
    raise AssertionError("the last try ends the loop")


def _range(system: Any, name: str, start: int, stop: int) -> Any:
    """Ask for some bytes of a file."""
    if hasattr(system, "fs"):  # through the wrapper of Arrow's client no file can be sought in
        with system.fs.open_input_file(name) as file:
            return file.read_at(stop - start, start)
    return system.cat_file(name, start=start, end=stop)


def remote_files(path: str) -> list[str]:
    """Give the files that an address, a folder or a pattern of a store stands for, sorted."""
    system, name = _split(path)
    scheme = path.partition("://")[0]
    if scheme in ("http", "https"):
        return [path]
    try:
        if "*" in name:
            found = _tried(path, lambda: system.glob(name))
        elif _tried(path, lambda: system.isdir(name)):
            found = _tried(path, lambda: system.find(name))
        else:
            return [path]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}): check the address") from None
    return [f"{scheme}://{file}" for file in sorted(found)]


def remote_facts(path: str) -> tuple[int, str]:
    """Give the bytes of a remote file, and what changes when it does: its ETag, or a date.

    Raises
    ------
    DataError
        There is no such file, or no connection.
    """
    system, name = _split(path)
    try:
        info = _tried(path, lambda: system.info(name))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}): check the address") from None
    mark = next((info[k] for k in ("ETag", "etag", "sha256", "mtime") if info.get(k)), "")
    if hasattr(system, "fs"):  # Arrow's clients say it of an open file alone
        with system.fs.open_input_stream(name, compression=None) as stream:
            mark = (stream.metadata() or {}).get("ETag", mark)
    if info.get("size") is None:
        raise DataError(f"{path}: the server does not say how long it is: get the file first")
    return int(info["size"]), str(mark)


def open_remote(path: str) -> BinaryIO:
    """Open a remote file for reading by ranges."""
    return io.BufferedReader(_Ranges(path), _BUFFER_BYTES)


class _Ranges(io.RawIOBase):
    """A remote file; each range is asked for again when the connection breaks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._size = remote_facts(path)[0]
        self._position = 0
        self._start, self._block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        inside = self._position - self._start
        if not 0 <= inside < len(self._block):
            stop = min(self._size, self._position + max(_RANGE_BYTES, len(buffer)))
            system, name = _split(self._path)
            position = self._position
            block = _tried(self._path, lambda: _range(system, name, position, stop))
            self._start, self._block, inside = position, bytes(block), 0
        piece = self._block[inside : inside + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
