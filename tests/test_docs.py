"""What README and docs show runs: code, commands, targets of make, links, docstring examples.

A block behind a line ``<!-- not run: reason -->`` is left out. A block of Python whose first line
is ``# name.py`` is that file. `my_trainer` is the reader's own.
"""

import doctest
import importlib
import importlib.util
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pyids import registry
from pyids.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(importlib.util.find_spec("pyids").origin).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages speak of: pool, held-out rows, vectors and a model."""
    pytest.importorskip("transformers", reason="needs the train extra")
    spec = importlib.util.spec_from_file_location("small", ROOT / "examples" / "small.py")
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)
    folder = tmp_path_factory.mktemp("docs")
    small.make_pool(folder)
    small.make_model(folder)
    lines = (folder / "pool.jsonl").read_text().splitlines(keepends=True)
    (folder / "held-out.jsonl").write_text("".join(lines[:8]))
    return folder


def my_trainer(subset, probes):
    assert len(subset)
    return {int(row): float(row % 3) for row in probes}


def run_command(line):
    """Run one command of the shell; what cannot be run here is looked up."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[([\w,]+)\]", line):
            assert set(extra.split(",")) <= extras["optional-dependencies"].keys(), line
    else:
        assert words[0] == "pyids", line
        out = CliRunner().invoke(cli, words[1:])
        assert out.exit_code == 0, f"{line}\n{out.output}"


def blocks(page):
    return [(bool(skip), kind, text) for skip, kind, text in BLOCK.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page, request, monkeypatch, tmp_path):
    found = [(kind, text) for skip, kind, text in blocks(page) if not skip]
    if not found:
        pytest.skip("nothing to run on it")
    place = request.getfixturevalue("place")
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    names = {"my_trainer": my_trainer, "__name__": "page"}
    try:
        for kind, text in found:
            if kind == "python" and (name := re.match(r"# (\w+\.py)\n", text)):
                (tmp_path / name[1]).write_text(text)
            elif kind == "python":
                exec(compile(text, f"{page.name}: {text[:40]!r}", "exec"), names)
            elif kind == "sh":
                for line in text.splitlines():
                    run_command(line)
            else:
                assert kind == "toml", f"{page.name}: a block of {kind!r} is not tested"
                groups = tomllib.loads(text)["project"]["entry-points"]
                for group, points in groups.items():
                    assert group in GROUPS
                    for value in points.values():
                        module, _, attribute = value.partition(":")
                        assert hasattr(importlib.import_module(module), attribute), value
    finally:
        for module in (set(sys.modules) - before) & {p.stem for p in tmp_path.glob("*.py")}:
            del sys.modules[module]


GROUPS = {one.group for one in vars(registry).values() if isinstance(one, registry.Registry)}


def test_few_blocks_are_left_out():
    skipped = [page.name for page in PAGES for skip, *_ in blocks(page) if skip]
    assert len(skipped) <= 5, skipped


def with_examples():
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>>" in path.read_text("utf-8"):
            parts = ("pyids", *path.relative_to(PACKAGE).with_suffix("").parts)
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(with_examples()))
def test_examples_in_docstrings_run(name, request, monkeypatch, tmp_path):
    module = importlib.import_module(name)
    shutil.copytree(request.getfixturevalue("place"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert tests
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in tests:
        assert not any(one.options.get(doctest.SKIP) for one in test.examples), test.name
        test.globs["np"] = np
        failures: list[str] = []
        runner.run(test, out=failures.append)
        assert not failures, "".join(failures)


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md"), ROOT / "examples" / "README.md"],
                         ids=lambda page: page.name)  # fmt: skip
def test_links_and_files_that_a_page_names_are_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    if page.name in ("log.md", "CHANGELOG.md"):
        return  # they speak of what was
    for named in re.findall(
        r"`((?:pyids|kernels|tests|benchmarks|csrc|docs|examples)/[\w./*-]+)`", text
    ):
        assert "benchmarks/results" in named or list(ROOT.glob(named)), named


OLD = (
    "spoilt", "mere form", "the guide", "max-tokens", "encoder-tokens", "weight-rule", "softmax",
    "near-duplicates 0", "kmeans-iterations", "judge-requests", "centred-learnability", "workshop",
    "repeats.jsonl", "says_nothing", "made_from", "oddness", "aversion", "a look at candidates",
)  # fmt: skip


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_pages_use_the_words_of_the_field(page):
    text = " ".join(page.read_text().lower().split())
    assert [word for word in OLD if word in text] == []


def test_pages_name_options_that_exist():
    """Every ``--option`` of a page is one of a command, of a benchmark or of another program."""
    known = {option for one in cli.params for option in one.opts} | {"--help"}
    for command in cli.commands.values():
        for one in command.params:
            known |= {*one.opts, *one.secondary_opts}
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    known |= set(re.findall(r'"(--[a-z-]+)"', scripts))
    known |= {"--no-deps", "--noconftest", "--tool"}  # pip's, pytest's, the sanitizer's
    known |= {"--enable-lora", "--max-lora-rank"}  # vLLM's
    for page in PAGES:
        if page.name == "log.md":
            continue
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]*[a-z])(?![\w-])", page.read_text()):
            assert option in known, f"{page.name}: {option}"


def test_every_message_says_what_to_do():
    spec = importlib.util.spec_from_file_location("messages", ROOT / "docs/site/messages.py")
    messages = importlib.util.module_from_spec(spec)
    sys.modules["messages"] = messages
    spec.loader.exec_module(messages)
    found = list(messages.messages())
    assert len(found) > 300
    without = [m for m in found if not m.parts[1] and not m.text.endswith(messages.PASSED_ON)]
    assert without == []
    page = messages.page()
    assert page.count("\n| ") > 300
    full = "| the disk is full | make room, then the same command goes on |"
    assert full in page
    probe = messages.Message("x.py", 1, "PATH: it is broken, which nobody expected")
    assert probe.parts == (probe.text, "")
