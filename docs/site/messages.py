"""Every message that ends a command with exit code 2, read from the source, with its remedy.

Python's own parser reads them, so that the page cannot fall behind. Names of values stand in
capitals.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "pyids"

# The classes whose message is one line for a user, and the functions that make one.
ERRORS = {"PyidsError", "DataError", "DamagedError", "ConfigError", "ModelError"}
ERRORS.add("BadRow")  # of a row that cannot be read, behind its file and line

# How a remedy begins. A message whose last part begins otherwise has none.
VERBS = {
    *("accept", "add", "ask", "call", "change", "check", "choose", "clean", "close", "convert"),
    *("cut", "decorate", "define", "divide", "download", "drop", "embed", "end", "export", "fit"),
    *(
        "unpack",
        "serve",
        "free",
        "get",
        "give",
        "go",
        "install",
        "keep",
        "leave",
        "let",
        "list",
        "lower",
        "make",
    ),
    *("mend", "move", "multiply", "name", "normalize", "open", "pass", "pick", "pip", "point"),
    *("put", "quote", "raise", "read", "reinstall", "remove", "rename", "repeat", "replace"),
    *("retry", "run", "save", "say", "score", "see", "select", "send", "set", "shorten", "split"),
    *("start", "stop", "take", "tell", "train", "try", "upgrade", "use", "wait", "widen", "write"),
}

# Values that are a message of their own, with its remedy, or that one is added to.
PASSED_ON = (
    ": SPLIT",
    ": PROBLEM",
    "TEXT",
    "FIRST",
    "TAKEN",
    "TAKES",
    "NAME: FOLDER",
    ": ERROR",
    ": WHAT",
)


class Message(NamedTuple):
    """A message with its place."""

    file: str
    line: int
    text: str

    @property
    def parts(self) -> tuple[str, str]:
        """What is wrong, and what to do about it; the latter is empty where nothing is said."""
        for mark in re.finditer(r"(?::|;|,|\.|, and|, or|\?) +| \(", self.text):
            rest = self.text[mark.end() :]
            word = re.match(r"(?:then |only |so |first |please |or |and )*`?([a-z-]+)", rest)
            remedy = rest.startswith(("REMEDY", "SET_BACK", "`pyids", "`pip")) or (
                word is not None and word[1] in VERBS
            )
            if remedy:
                return self.text[: mark.start()], rest
        return self.text, ""


def page() -> str:
    """Return the page that lists them, room by room."""
    from pyids.terminal import _NO_MEMORY, _REMEDIES

    lines = [
        "# Messages",
        "",
        "A command that cannot go on ends with one of these lines and exit code 2 (`--debug` shows "
        "the traceback); in Python they are the messages of `pyids.PyidsError`. Words in capitals "
        "stand for names and numbers. Of damaged files of a run folder: "
        "[when something goes wrong](../run.md#when-something-goes-wrong).",
        "",
        "## The machine",
        "",
        "| it says | do |",
        "|---|---|",
        *(_row(*text.partition(": ")[::2]) for text in [*_REMEDIES.values(), _NO_MEMORY]),
    ]
    room = None
    for message in messages():
        if message.text.endswith(PASSED_ON):
            continue
        if room != (room := message.file.partition("/")[0].removesuffix(".py")):
            lines += ["", f"## {room}", "", "| it says | do |", "|---|---|"]
        lines.append(_row(*message.parts))
    return "\n".join(lines) + "\n"


def _row(said: str, remedy: str) -> str:
    remedy = remedy.replace("REMEDY", "what the line says: a command that makes the file again")
    remedy = remedy.replace("SET_BACK", "set it back, or choose another --output-dir")
    cells = (" ".join(cell.split()).replace("|", "\\|") for cell in (said, remedy))
    return f"| {' | '.join(re.sub('[<>*_]', lambda found: chr(92) + found[0], c) for c in cells)} |"


def messages() -> Iterator[Message]:
    """Yield the messages of all files, in their order."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ERRORS
                and node.args
                and (text := _text(node.args[0]))
            ):
                yield Message(path.relative_to(PACKAGE).as_posix(), node.lineno, text)


def _text(node: ast.expr) -> str:
    """Return a string of the source, with names in capitals for its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return _name(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return ""


def _name(node: ast.expr) -> str:
    """Name a value after the last word of its expression."""
    if isinstance(node, ast.IfExp):
        return _text(node.body) or _text(node.orelse) or _name(node.body)
    words = re.findall(r"[A-Za-z_]+", ast.unparse(node))
    if isinstance(node, ast.Call) and not node.args:
        words = words[:-1] or words
    if isinstance(node, ast.Call) and node.args:
        function = re.findall(r"[A-Za-z_]+", ast.unparse(node.func))[-1]
        words = ["remedy"] if function == "remedy" else words
    return (words[-1] if words else "value").strip("_").upper()
