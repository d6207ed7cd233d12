"""Files in object stores and on the web, read by ranges through fsspec (extra ``remote``)."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import parse_qsl, urlsplit

import xxhash

from pyids.errors import DataError

_REMOTE = re.compile(r"(s3|gs|gcs|hf|https?)://")


# Bytes that one request asks for.
_RANGE_BYTES = 8 << 20


# Bytes that are kept for small reads.
_BUFFER_BYTES = 1 << 20


# Seconds between tries after a broken connection.
_PAUSES = (0.5, 2.0, 5.0)


# For how long the client of Google's store tries again by itself.
_GOOGLE_TRIES = timedelta(seconds=10)


# What a server that is there says only for now: too slow, too many requests.
_FOR_NOW = {408, 425, 429}


# Parameters of an address that let whoever knows it in.
_SECRET = re.compile(r"(.*[-_.])?(signature|sig|token|credential|key|apikey|password|auth)", re.I)


# What the stores call a hash of a file's content, or what stands for one; the first that is there.
_MARKS = ("ETag", "etag", "xet_hash", "blob_id", "Content-MD5", "Digest", "sha256")


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
    if scheme in ("s3", "gs", "gcs"):
        # Arrow brings clients for these: no further package is needed.
        from fsspec.implementations.arrow import ArrowFSWrapper

        return ArrowFSWrapper(_amazon() if scheme == "s3" else _google())
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{scheme}:// cannot be read here ({reason}): install it") from None


def _amazon() -> Any:
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return S3FileSystem(endpoint_override=endpoint, region=region)


def _google() -> Any:
    """Make a client of Google's store; without an account's keys, for what is public."""
    from pyarrow.fs import GcsFileSystem

    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        scheme, _, host = emulator.rpartition("://")
        return GcsFileSystem(
            anonymous=True,
            scheme=scheme or "http",
            endpoint_override=host.strip("/"),
            retry_time_limit=_GOOGLE_TRIES,
        )
    keys = Path(
        os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        or "~/.config/gcloud/application_default_credentials.json"
    )
    product = Path("/sys/class/dmi/id/product_name")  # on Google's machines the network has keys
    on_google = product.is_file() and "Google" in product.read_text(errors="replace")
    known = on_google or keys.expanduser().is_file()
    return GcsFileSystem(anonymous=not known, retry_time_limit=_GOOGLE_TRIES)


def _split(path: str) -> tuple[Any, str]:
    """Return the client for an address, and the name that the client knows the file by."""
    _check_address(path)
    scheme, _, rest = path.partition("://")
    return _filesystem(scheme), path if scheme in ("http", "https") else rest


def _check_address(path: str) -> None:
    """Refuse an address that lets in whoever knows it: it would stand in the run folder."""
    if not path.startswith("http"):
        return
    try:
        parts = urlsplit(path)
        names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        keyed = parts.username is not None or any(map(_SECRET.fullmatch, names))
        where = f"{parts.scheme}://{parts.hostname}{parts.path}"
    except ValueError as error:
        raise DataError(f"an address that cannot be read ({error}): mend it") from None
    if keyed:
        raise DataError(
            f"{where}: the address holds a password or a key, which would stand in the run folder: "
            "get the file first, or name it by its store (s3://, gs://, hf://)"
        )


# ---- asking --------------------------------------------------------------------------------------


def _tried(path: str, action: Any) -> Any:
    """Do something with a remote file; once more after each pause, then an error in one line."""
    for pause in (*_PAUSES, None):
        try:
            return action()
        except _failures() as error:
            # fsspec's client for the web says of any failure that there is no such file.
            cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
            error = cause if isinstance(cause, Exception) else error
            _raise_if_for_good(path, error)
            if pause is None:
                raise OSError(f"the connection breaks off: {_reason(error)}") from None
            time.sleep(pause)
    raise AssertionError("the last try ends the loop")


def _failures() -> tuple[type[Exception], ...]:
    """Return what clients raise where a server is not there, refuses or breaks off."""
    clients = {"aiohttp": "ClientError", "httpx": "HTTPError"}
    loaded = [(sys.modules[name], error) for name, error in clients.items() if name in sys.modules]
    of_clients = [getattr(module, error) for module, error in loaded]
    return (OSError, EOFError, ValueError, NotImplementedError, *of_clients)


def _raise_if_for_good(path: str, error: Exception) -> None:
    """Raise where another try would end as this one."""
    status = getattr(error, "status", None)
    if status is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        raise DataError(f"{path}: no such remote file: check its name and your access") from None
    if status == 412:
        raise DataError(f"{path}: it has changed while it was read: start again") from None
    if isinstance(status, int) and 400 <= status < 500 and status not in _FOR_NOW:
        raise DataError(
            f"{path}: the server refuses it (HTTP {status}): check its name and your access"
        ) from None
    if isinstance(error, ValueError | NotImplementedError):
        raise DataError(
            f"{path}: an address that cannot be read ({_reason(error)}): mend it"
        ) from None


def _reason(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[0][:200])


def _range(system: Any, name: str, start: int, stop: int, etag: str = "") -> Any:
    """Ask for some bytes of a file; on the web, of the one that is still the same."""
    if hasattr(system, "fs"):  # through the wrapper of Arrow's client no file can be sought in
        with system.fs.open_input_file(name) as file:
            return file.read_at(stop - start, start)
    if name.startswith("http"):
        headers = {"Accept-Encoding": "identity"}
        if etag.startswith('"'):  # a weak one, W/"...", cannot be asked for
            headers["If-Match"] = etag
        return system.cat_file(name, start=start, end=stop, headers=headers)
    # The hub's client would read on, beyond what is asked for.
    return system.cat_file(name, start=start, end=stop, cache_type="none")


def _asked(path: str, start: int, stop: int, etag: str) -> bytes:
    """Return some bytes of a file, all of them, however often it takes."""
    system, name = _split(path)

    def ask() -> bytes:
        block = bytes(_range(system, name, start, stop, etag))
        if len(block) > stop - start:
            _no_ranges(path)
        if len(block) < stop - start:
            raise EOFError(f"{len(block)} of {stop - start} bytes came")
        return block

    found: bytes = _tried(path, ask)
    return found


def _no_ranges(path: str) -> NoReturn:
    raise DataError(f"{path}: the server gives the whole file only, no ranges: get the file first")


def remote_files(path: str) -> list[str]:
    """Give the files that an address, a folder or a pattern of a store stands for, sorted."""
    system, name = _split(path)
    scheme = path.partition("://")[0]
    if scheme in ("http", "https"):
        if "*" in name.partition("?")[0]:
            raise DataError(f"{path}: the web cannot be searched for a pattern: name each file")
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
    """Give the bytes of a remote file, and what stands for its content: its ETag, or a hash.

    What the store knows of it; "" where that is nothing but its size.

    Raises
    ------
    DataError
        There is no such file, or no connection.
    """
    system, name = _split(path)
    try:
        info = _tried(path, lambda: system.info(name))
    except OSError as error:
        raise DataError(f"{path}: {error}") from None
    if info.get("type") == "directory":
        raise DataError(f"{path}: a folder, not a file: name a file, or a pattern (*) of files")
    if info.get("partial") is False:
        _no_ranges(path)
    if hasattr(system, "fs"):  # Arrow's clients say it of an open file alone
        try:
            info = {**info, **_tried(path, lambda: _metadata(system, name))}
        except OSError as error:
            raise DataError(f"{path}: {error}") from None
    if info.get("size") is None:
        raise DataError(f"{path}: the server does not say how long it is: get the file first")
    mark = next((info[key] for key in _MARKS if info.get(key)), "")
    return int(info["size"]), mark.decode() if isinstance(mark, bytes) else str(mark)


def _metadata(system: Any, name: str) -> dict[str, Any]:
    with system.fs.open_input_stream(name, compression=None) as stream:
        return {key: value for key, value in (stream.metadata() or {}).items() if key in _MARKS}


def remote_hash(path: str, limit_bytes: int | None = None) -> str:
    """Return what a remote file is known by: its ETag, or else the hash of its (first) bytes."""
    size, mark = remote_facts(path)
    if mark:
        return mark
    digest, left = xxhash.xxh3_128(), size if limit_bytes is None else min(size, limit_bytes)
    try:
        with open_remote(path) as file:
            while left and (block := file.read(min(left, _RANGE_BYTES))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise DataError(f"{path}: {error}") from None
    return digest.hexdigest()


def open_remote(path: str) -> BinaryIO:
    """Open a remote file for reading by ranges."""
    return io.BufferedReader(_Ranges(path), _BUFFER_BYTES)


class _Ranges(io.RawIOBase):
    """A remote file; each range is asked for again when the connection breaks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._size, self._mark = remote_facts(path)
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
            block = _asked(self._path, self._position, stop, self._mark)
            self._start, self._block, inside = self._position, block, 0
        piece = self._block[inside : inside + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
