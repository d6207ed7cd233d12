"""Where the command `pyids` begins: signals are answered before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from pyids.terminal import say_error

# The longest that a stopped command may take to put things away, in seconds.
_LAST_SECONDS = 20.0


class Stopped(SystemExit):
    """The user or the machine wants the process to end; its code is 128 + the signal."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # Once: whoever asks again is obeyed at once, and after some seconds nothing is waited for.
    signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
    signal.setitimer(signal.ITIMER_REAL, _LAST_SECONDS)
    # What is raised while an object is put away would be printed and forgotten.
    sys.unraisablehook = lambda _: None
    raise Stopped(128 + number)


def main() -> Any:
    """Run the command line; exit code 130 after SIGINT, 143 after SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, _stop)
    try:
        from pyids.cli import cli

        cli()
    except Stopped as stopped:
        say_error("stopped: the same command goes on where it was")
        sys.exit(stopped.code)


if __name__ == "__main__":
    main()
