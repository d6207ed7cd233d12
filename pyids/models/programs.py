"""Programs that are run for a training: found, started, ended with us, their last words."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyids.errors import ConfigError, ModelError
from pyids.terminal import printable

logger = logging.getLogger("pyids")

# Seconds that a program gets to put its things away.
_LAST_SECONDS = 5.0

# Bytes of the end of a program's output in which its last line is looked for.
_TAIL_BYTES = 8192


def _search_path() -> str:
    # Programs that are installed beside pyids are found though its environment is not activated.
    beside = os.path.dirname(sys.executable)
    return os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])


def find_program(name: str, asked_by: str) -> str:
    """Find a program: beside pyids, then on the PATH.

    Raises
    ------
    ConfigError
        There is none of that name; begins with `asked_by`.
    """
    found = shutil.which(name, path=_search_path())
    if found is None:
        raise ConfigError(
            f"{asked_by}: there is no program {printable(name, one_line=True)!r}: install it, "
            "or give its path"
        )
    return os.path.abspath(found)


def run_program(
    words: Sequence[str],
    log: Path,
    asked_by: str,
    kept_open: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a program until it ends; it ends when we are stopped.

    Parameters
    ----------
    words
        The program and its arguments.
    log
        A file for what it prints.
    asked_by
        How messages begin.
    kept_open
        File descriptors that it gets.
    env
        Variables of its environment, beside ours.

    Raises
    ------
    ModelError
        It cannot be started, or its exit code is not 0; with the last line that it printed.
    """
    name = printable(Path(words[0]).name, one_line=True)
    logger.info("training by %s: its output is in %s", name, log)
    command = [find_program(words[0], asked_by), *words[1:]]
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": _search_path(), **(env or {})},
            pass_fds=kept_open,
            start_new_session=True,  # so that all that it starts can be ended with it
        )
    except OSError as error:
        raise ModelError(
            f"{asked_by}: {name} cannot be started ({error.strerror}): check that it may be run"
        ) from None
    finally:
        os.close(opened)
    try:
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise ModelError(
            f"{asked_by}: {name} {how} ({_last_line(log)}): see {log}, mend it, and give the "
            "same command again"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return printable(last[:200], one_line=True)
