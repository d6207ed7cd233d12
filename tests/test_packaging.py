"""What else describes the package says what pyproject.toml says."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / ".ci" / "conda" / "recipe.yaml"
# Names on conda-forge that are others on the package index.
ALIASES = {"xxhash": "python-xxhash"}


def split(requirement):
    name, bound = re.fullmatch(r"([\w.-]+)\s*(.*)", requirement).groups()
    return name, bound.replace(" ", "")


def test_the_conda_recipe_requires_what_the_wheel_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    recipe = yaml.safe_load(RECIPE.read_text())
    wanted = dict(map(split, project["project"]["dependencies"]))
    wanted = {ALIASES.get(name, name): bound for name, bound in wanted.items()}
    found = dict(map(split, recipe["requirements"]["run"]))
    assert found.pop("python") == project["project"]["requires-python"]
    assert found == wanted
    host = dict(map(split, recipe["requirements"]["host"]))
    assert dict(map(split, project["build-system"]["requires"])).items() <= host.items()
    assert recipe["context"]["version"] == project["project"]["version"]
    assert recipe["package"]["name"] == project["project"]["name"]
    assert recipe["about"]["license"] == project["project"]["license"]
    [script] = recipe["build"]["python"]["entry_points"]
    assert script == "pyids = " + project["project"]["scripts"]["pyids"]


def test_the_conda_recipe_is_read_by_its_builder():
    builder = pytest.importorskip("rattler_build", reason="needs py-rattler-build")
    recipe = builder.Stage0Recipe.from_file(RECIPE)
    assert recipe.to_dict()["package"]["name"] == "pyids-select"
