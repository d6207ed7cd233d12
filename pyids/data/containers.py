"""What a file is by its first bytes, whatever its name says, and its bytes without the wrapping."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pyids.data.remote import is_remote, open_remote, remote_facts
from pyids.errors import DataError

# Bytes of a file that a reader holds.
BLOCK_BYTES = 1 << 20


# First bytes that tell what a file is: a tar archive names itself after 257.
HEAD_BYTES = 512


# How compressed files begin.
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
}


# What is no data, however it is named: how it begins, what it is, and the remedy.
_REFUSED = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"PK\x03\x04", "a zip archive", "unzip it, and name the files in it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it, and name the files in it"),
    (b"SQLite format 3", "an SQLite database", "export its table as CSV"),
    (b"\x89HDF", "an HDF5 file", "export its rows as JSON lines or parquet"),
    (b"ORC", "an ORC file", "export its rows as JSON lines or parquet"),
    (b"Obj\x01", "an Avro file", "export its rows as JSON lines or parquet"),
    (b"FEA1", "a Feather file of version 1", "write it again with pyarrow.feather, or as parquet"),
    (b"PARE", "an encrypted parquet file", "decrypt it"),
    (b"\x93NUMPY", "a .npy file of numbers", "give rows, and vectors with --embeddings-file"),
    (b"%PDF", "a PDF file", "export its text as JSON lines"),
    (b"Rar!", "a RAR archive", "unpack it, and name the files in it"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it (lz4 -d)"),
    (b"<?xml", "an XML file", "get the file itself (is this a server's answer?)"),
    *(
        (b"\x80" + bytes([version]), "a Python pickle", "export its rows as JSON lines")
        for version in (2, 3, 4, 5)
    ),
    (b"<!doctype html", "a web page", "get the file itself (does the download need a login?)"),
    (b"<html", "a web page", "get the file itself (does the download need a login?)"),
)


_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def sniff(path: str, head: bytes) -> tuple[str | None, str | None]:
    """Tell by its first bytes how a file is wrapped and what it is.

    Parameters
    ----------
    path : str
        Its name, for messages.
    head : bytes
        Its first `HEAD_BYTES`, where it has so many.

    Returns
    -------
    str or None
        ``parquet`` or ``arrow`` where the bytes say so.
    str or None
        ``gzip``, ``zstd``, ``bz2``, ``xz``; ``utf-16`` or ``utf-32`` for texts of that encoding.

    Raises
    ------
    DataError
        It is no data: what it is, and the remedy.
    """
    check_head(path, head)
    for magic, compression in _MAGIC.items():
        if head.startswith(magic):
            return None, compression
    # A zstd stream may begin with a frame that is to be skipped.
    if len(head) > 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return None, "zstd"
    if head.startswith(b"PAR1"):
        return "parquet", None
    if head.startswith(b"ARROW1"):
        return "arrow", None
    return None, encoding_of(head)


def check_head(path: str, head: bytes, *, unpacked: bool = False) -> None:
    """Refuse what is no data by its first bytes; `unpacked`: by those inside a compressed file.

    Raises
    ------
    DataError
        What it is, and the remedy.
    """
    inside = " inside" if unpacked else ""
    for magic, what, remedy in _REFUSED:
        # Letters alone might begin a text as well: the name of a first column.
        told = not magic.isalnum() or b"\0" in head
        begins = head.lower() if magic.startswith(b"<") else head
        if told and begins.startswith(magic):
            raise DataError(f"{path}: {what}{inside}: {remedy}")
    if head[257:262] == b"ustar":
        raise DataError(f"{path}: a tar archive{inside}: unpack it (tar -xf), and name the files")
    if len(head) >= 16 and not head.strip(b"\0"):
        raise DataError(f"{path}: nothing but zeros: get it again (a download that broke off?)")
    if unpacked and any(map(head.startswith, (*_MAGIC, b"PAR1", b"ARROW1"))):
        raise DataError(f"{path}: a packed file inside a packed one: unpack it once")


def encoding_of(head: bytes) -> str | None:
    """Tell UTF-32 and UTF-16 by the mark at the beginning, or by the zeros of its first letters."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith(_UTF_16):
        return "utf-16"
    if len(head) >= 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16-le"
    if len(head) >= 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        return "utf-16-be"
    return None


def open_bytes(path: str, compression: str | None) -> BinaryIO:
    """Open a file for reading its bytes: decompressed, and as UTF-8.

    Raises
    ------
    OSError, EOFError, lzma.LZMAError, UnicodeError
        When it is opened or read: it breaks off, or is broken.
    """
    if compression is None:
        return open_raw(path)
    if compression.startswith("utf"):
        return _recoded(open_raw(path), compression)
    stream = _DECOMPRESS[compression](path)
    if (encoding := encoding_of(stream.peek(4)[:4])) is not None:
        return _recoded(stream, encoding)
    return stream


def open_raw(path: str) -> BinaryIO:
    """Open a file for reading its bytes as they lie."""
    return open_remote(path) if is_remote(path) else open(path, "rb", buffering=BLOCK_BYTES)


def size_of(path: str) -> int:
    """Return the bytes of a file."""
    return remote_facts(path)[0] if is_remote(path) else Path(path).stat().st_size


def head_of(path: str) -> bytes:
    """Return the first bytes of a file."""
    with open_raw(path) as file:
        return file.read(HEAD_BYTES)


def _by_arrow(compression: str) -> Callable[[str], io.BufferedReader]:
    def decompress(path: str) -> io.BufferedReader:
        stream = pa.input_stream(open_raw(path), compression=compression, buffer_size=BLOCK_BYTES)
        return io.BufferedReader(stream, BLOCK_BYTES)

    return decompress


def _gunzip(path: str) -> io.BufferedReader:
    with open_raw(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 9))
        padded = file.read() == b"\0" * 9
    if padded:
        # Tapes and some downloads pad a stream with zeros, which only this slower reader passes.
        return io.BufferedReader(gzip.GzipFile(fileobj=open_raw(path)), BLOCK_BYTES)
    return _by_arrow("gzip")(path)


def _unxz(path: str) -> io.BufferedReader:
    return io.BufferedReader(lzma.LZMAFile(open_raw(path)), BLOCK_BYTES)


_DECOMPRESS: dict[str, Callable[[str], io.BufferedReader]] = {
    "gzip": _gunzip,
    "zstd": _by_arrow("zstd"),
    "bz2": _by_arrow("bz2"),
    "xz": _unxz,
}


class _Recoded(io.RawIOBase):
    """A text of another encoding as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._file.read(BLOCK_BYTES)
            self._ready = self._decoder.decode(block, final=not block).encode()
            if not block:
                break
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _recoded(file: BinaryIO, encoding: str) -> BinaryIO:
    return io.BufferedReader(_Recoded(file, encoding), BLOCK_BYTES)


def unreadable(error: Exception, path: str) -> str:
    """Say what is wrong with a file that cannot be read to its end, and the remedy."""
    name = Path(path).name
    if isinstance(error, PermissionError):
        return "no permission to read the file: ask its owner, or copy it"
    text = str(error).partition("\n")[0]
    if isinstance(error, EOFError) or "Truncated compressed stream" in text:
        return "the compressed file breaks off here: get it again (a truncated download?)"
    if "requires too much memory" in text:
        return (
            "compressed with a window (zstd --long) that would take too much memory here: unpack "
            f"it with zstd -d --long=31 {name}"
        )
    if isinstance(error, UnicodeError):
        return f"broken UTF-16 ({text}): get the file again, or convert it with iconv -t UTF-8"
    return f"the file cannot be read from here on ({text}): get it again"
