"""The layers of ARCHITECTURE.md, read off the imports of the source files."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(find_spec("pyids").origin).parent
ARCHITECTURE = Path(__file__).parents[1] / "ARCHITECTURE.md"


def layers() -> list[set[str]]:
    """The rooms of each line of the table under "Layers", the highest first."""
    text = ARCHITECTURE.read_text(encoding="utf-8").split("## Layers")[1]
    lines = re.findall(r"^    (\S.*)$", text.split("\nA room")[0], flags=re.MULTILINE)
    return [set(re.split(r"\s{2,}", line)[0].split(", ")) for line in lines]


HEAVY = [
    "torch",
    "triton",
    "transformers",
    "datasets",
    "peft",
    "pyarrow",
    "scipy",
    "sklearn",
    "ray",
]
LEVEL = {room: level for level, rooms in enumerate(layers()) for room in rooms}


def rooms_imported(path: Path) -> set[str]:
    """Rooms of pyids that a file imports, anywhere in it, by a statement or by `import_module`."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what is imported for types alone is no dependency
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # only what also runs outside the package
                assert path.parent.name in ("kernels", "reference"), f"{path}: a relative import"
                continue
            names.add(node.module)
            if node.module == "pyids":
                names |= {f"pyids.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return {name.split(".")[1] for name in names if name.startswith("pyids.")}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path):
    room = room_of(path)
    wrong = {
        name
        for name in rooms_imported(path) - {room}
        if name in LEVEL and LEVEL[name] <= LEVEL[room]
    }
    assert not wrong, f"{room} imports {wrong} from its own or a higher layer"


def test_every_room_has_one_layer():
    rooms = {room_of(path) for path in modules()} | {"_core"}
    assert rooms == LEVEL.keys()
    assert sum(map(len, layers())) == len(LEVEL)


def test_kernels_know_nothing_of_pyids():
    for path in (PACKAGE / "kernels").glob("*.py"):
        assert rooms_imported(path) <= {"kernels"}, path


@pytest.mark.parametrize("statement", ["import pyids", "import pyids.cli", "import pyids.config"])
def test_light_imports_stay_light(statement):
    code = f"import sys; {statement}; print(*(set({HEAVY}) & sys.modules.keys()))"
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == ""
