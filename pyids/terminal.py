"""What the command line prints: text that no terminal obeys, and one line an error."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Characters that move the cursor, change what a terminal shows, or hide text: all controls but the
# end of a line and the tab, marks of writing direction, and halves of characters.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)

_GO_ON = "then the same command goes on"

_REMEDIES = {
    errno.ENOSPC: f"the disk is full: make room, {_GO_ON}",
    errno.EDQUOT: f"your quota on this disk is used up: make room, {_GO_ON}",
    errno.EFBIG: f"files may not grow so large: raise the limit (ulimit -f), {_GO_ON}",
    errno.EMFILE: f"too many open files: raise the limit (ulimit -n), {_GO_ON}",
    errno.ENFILE: f"too many open files on this machine: close some, {_GO_ON}",
    errno.EIO: f"the disk answers with an error: check it, {_GO_ON}",
    errno.ESTALE: f"the network disk has lost it: mount it again, {_GO_ON}",
    errno.EROFS: "a disk that may only be read: name a place elsewhere",
    errno.EACCES: "no permission: ask its owner, or name another place",
    errno.EPERM: "no permission: ask its owner, or name another place",
    errno.EAGAIN: f"no more processes or threads allowed: raise the limit (ulimit -u), {_GO_ON}",
    errno.ENOTDIR: "a file stands where a folder is needed: name another place",
    errno.EISDIR: "a folder stands where a file is needed: name another place",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}

_NO_MEMORY = f"no memory left: give fewer --workers or --threads, or a larger machine, {_GO_ON}"


def printable(text: object, *, one_line: bool = False) -> str:
    r"""Return text that no terminal obeys: controls are written out, as ``\x1b``.

    For everything that comes from data, files or servers.

    Parameters
    ----------
    text
        Anything with a string form.
    one_line : bool, default False
        Write out ends of lines and tabs, too.
    """
    shown = _UNPRINTABLE.sub(_written_out, str(text))
    if one_line:
        shown = shown.replace("\n", "\\n").replace("\t", "\\t")
    return shown


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# ---- errors --------------------------------------------------------------------------------------


def explain(error: BaseException) -> str | None:
    """Say in one line what a failure of the machine is, and what to do.

    Returns
    -------
    str or None
        None for what is no such failure: a fault of pyids, whose traceback is wanted.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return _NO_MEMORY
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if "torch.OutOfMemoryError" in kinds:
        return "no memory left on the GPU: lower --max-length or --batch-size, or use --device cpu"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return _REMEDIES[errno.EAGAIN]
    from_library = kinds & {"pyarrow.ArrowException", "builtins.SafetensorError"}
    if not isinstance(error, OSError) and not from_library:
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"(?:errno|os error) (\d+)", text, re.IGNORECASE)):
        number = int(found[1])  # libraries that are not written in Python say it so
    if number == errno.ENOMEM:
        return _NO_MEMORY
    place = getattr(error, "filename", None)
    place = os.fsdecode(place) if isinstance(place, str | bytes) else str(place or "")
    what = _REMEDIES.get(number or 0)
    if number in (errno.EISDIR, errno.ENOTDIR) and _in_run_folder(place):
        what = f"a folder stands in the place of a file, or a file above it: remove it, {_GO_ON}"
    if what is None:
        reason = (getattr(error, "strerror", None) or text or type(error).__name__)[:200]
        what = f"{reason}: mend that, {_GO_ON}"
    return f"{place}: {what}" if place else what


def why_not_written(error: OSError, elsewhere: str, cannot: str = "cannot be written") -> str:
    """Say why a place cannot be written, and what to do: another place helps against some failures.

    Parameters
    ----------
    error : OSError
        What the system said.
    elsewhere : str
        What to do where another place helps.
    cannot : str
        What cannot be done.
    """
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return f"{cannot} ({error.strerror}): remove what stands there, or {elsewhere}"
    what = _REMEDIES.get(error.errno or 0, "")
    if what.endswith(_GO_ON):
        return what
    return f"{cannot} ({error.strerror}): {elsewhere}"


def _in_run_folder(place: str) -> bool:
    above = [os.path.dirname(place)]
    for _ in range(4):
        above.append(os.path.dirname(above[-1]))
    return any(os.path.isfile(os.path.join(folder, ".pyids")) for folder in above if folder)


@contextmanager
def answered(*, debug: bool = False) -> Iterator[None]:
    """End the process with one line and exit code 2 for what the user or the machine did wrong.

    Parameters
    ----------
    debug : bool, default False
        Show the traceback instead.
    """
    from pyids.errors import PyidsError

    try:
        yield
    except (PyidsError, OSError, MemoryError, RuntimeError, ValueError) as error:
        if debug or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            raise
        message = str(error) if isinstance(error, PyidsError) else explain(error)
        if message is None:
            raise
        say_error(message)
        sys.exit(2)
    except BaseException as error:
        # The errors of libraries that derive from nothing above.
        if debug or isinstance(error, SystemExit) or (message := explain(error)) is None:
            raise
        say_error(message)
        sys.exit(2)


def say_error(message: str) -> None:
    """Print what went wrong, in one line on the error stream."""
    sys.stderr.write(f"pyids: {printable(message)}\n")
    sys.stderr.flush()
