"""The layers of ARCHITECTURE.md, read off the imports of the source files."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(find_spec("pyids").origin).parent
# A module may import those on lower layers and on its own; reference.py, errors.py, config.py and
# the ops stand below everything that uses them.
LAYERS = (
    {"cli"},
    {"comparison", "catalogue"},
    {"refine", "static", "evaluation"},
    {"stages", "export"},
    {"screening"},
    {
        "data",
        "encoders",
        "clustering",
        "auto_k",
        "selection",
        "quality",
        "signals",
        "scoring",
        "finetune",
        "generation",
        "gradients",
        "reward",
        "judge",
        "overlap",
        "weights",
    },
    {"rounds", "evidence"},
    {"chat", "lm", "batching", "store", "engine", "endpoint"},
    {"sampling", "greedy", "ops", "torch_ops", "core_ops", "triton_ops"},
    {"config"},
    {"checks", "formats", "records", "reference", "errors", "tables", "_core", "kernels"},
)
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
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def imports_of(path: Path) -> set[str]:
    """Modules of pyids that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "pyids":
                names = [f"pyids.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("pyids.")}
    return found


def modules() -> list[Path]:
    return sorted(
        path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent != PACKAGE
    )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    upward = {
        name
        for name in imports_of(path)
        if name != module and name in LEVEL and LEVEL[name] < LEVEL[module]
    }
    assert not upward, f"{module} imports {upward} from a higher layer"


def test_every_module_has_a_layer():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert names <= LEVEL.keys()


def test_kernels_know_nothing_of_pyids():
    for path in (PACKAGE / "kernels").glob("*.py"):
        assert imports_of(path) <= {"kernels"}, path


@pytest.mark.parametrize("statement", ["import pyids", "import pyids.cli", "import pyids.config"])
def test_light_imports_stay_light(statement):
    code = f"import sys; {statement}; print(*(set({HEAVY}) & sys.modules.keys()))"
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == ""
