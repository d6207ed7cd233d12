"""What a selection without rounds says of itself: its manifest and its card."""

import orjson
import pytest
import yaml
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.data.card import card_of


@pytest.fixture
def mixed(pool, tmp_path):
    """A pool of two groups, three of whose rows are held out and five trained on already."""
    for n, row in enumerate(pool.rows):
        row["source"] = "code" if n % 4 == 0 else "chat"
    pool.write()
    for name, rows in (("held-out", pool.rows[1:4]), ("before", pool.rows[10:15])):
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_bytes(lines)
    return pool


def asked(tmp_path, **options):
    return {
        "budget": "10%",
        "group_by": "source",
        "cap": ["code=10%"],
        "exclude": str(tmp_path / "held-out.jsonl"),
        "already": str(tmp_path / "before.jsonl"),
        **options,
    }


@pytest.mark.parametrize("to", [None, "share/rows.jsonl"])
def test_the_manifest_says_what_was_asked_for_and_what_was_done(mixed, tmp_path, to):
    options = mixed.options(output_dir=str(tmp_path / "run"), **asked(tmp_path))
    to = to and tmp_path / to
    result = pyids.select("km-random", **options, to=to)
    name = "rows" if to else "selected-km-random"
    path = result.path.with_name(f"{name}.manifest.json")
    manifest = orjson.loads(path.read_bytes())
    assert manifest == result.manifest
    assert manifest["method"] == "km-random"
    assert manifest["config"]["budget"] == "10%"
    assert manifest["config"]["cap"] == {"code": "10%"}
    assert manifest["rows"]["kept"] == 400
    codes = sum(int(row) % 4 == 0 for row in result.ids)
    assert manifest["budget"] == {
        "unit": "rows",
        "total": 40,
        "drawn": 40,
        "groups": {
            "chat": {"drawn": 40 - codes, "held": 300 - 3 - 4, "floor": 0, "cap": 40},
            "code": {"drawn": codes, "held": 100 - 1, "floor": 0, "cap": 4},
        },
    }
    assert codes == 4
    assert manifest["excluded"] == {"exact": 3}
    assert manifest["already"] == 5
    assert manifest["selected"]["bytes"] == result.path.stat().st_size


def test_each_selection_of_a_folder_has_its_own(mixed, tmp_path):
    """By the command, too, and whatever the folder was made with."""
    run = str(tmp_path / "run")
    pyids.select("random", **mixed.options(output_dir=run, budget=7))
    command = ["select", run, "--method", "random", "--budget", "9", "--exclude"]
    command += [str(tmp_path / "held-out.jsonl"), "--to", str(tmp_path / "other.jsonl")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    first = orjson.loads((tmp_path / "run" / "selected-random.manifest.json").read_bytes())
    other = orjson.loads((tmp_path / "other.manifest.json").read_bytes())
    assert (first["budget"]["total"], other["budget"]["total"]) == (7, 9)
    assert "excluded" not in first
    assert other["excluded"] == {"exact": 3}


def test_a_folder_that_has_grown_says_so(mixed, tmp_path):
    """The same command with more files in DATA: what came, and how far it lies from the centers."""
    import numpy as np

    vectors = np.load(mixed.vectors)
    for name, rows in (("one", mixed.rows[:300]), ("two", mixed.rows[300:])):
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_bytes(lines)
    options = mixed.options(output_dir=str(tmp_path / "run"))
    for names in (["one"], ["one", "two"]):
        data = [str(tmp_path / f"{name}.jsonl") for name in names]
        given = vectors[: 300 if names == ["one"] else 400]
        result = pyids.select("km-random", **options | {"data": data, "embeddings_file": given})
    assert result.manifest["grown"]["rows"] == 100
    assert result.manifest["grown"]["drift"] > 0


def test_a_run_says_its_budget_in_rows(mixed, tmp_path):
    options = mixed.options(budget="10%")
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        while selection.draw():
            selection.tell({int(row): 1.0 for row in selection.probes()})
        selection.finish()
    manifest = orjson.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert manifest["budget"] == {"unit": "rows", "total": 40, "drawn": 40}


def test_the_card_names_what_this_selection_was_made_with(mixed, tmp_path):
    """Not what its folder was made with; and its recipe selects the same rows again."""
    run = str(tmp_path / "run")
    pyids.select("random", **mixed.options(output_dir=run, budget=7))
    options = asked(tmp_path, budget=30)
    result = pyids.select(
        "random", **mixed.options(output_dir=run, **options), to=tmp_path / "share" / "rows.jsonl"
    )
    text = card_of(result.path).read_text()
    for said in (
        "by the method `random`", "| budget | `30` |", "| group_by | `source` |",
        "left out: 3 exact", "not drawn again: 5", "pyids select --method random pool.jsonl",
    ):  # fmt: skip
        assert said in text, said
    assert str(tmp_path) not in text
    recipe = text.split("where `config.yaml` holds")[1]
    config = yaml.safe_load(recipe)
    assert config["exclude"] == ["held-out.jsonl"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = text.split("    pyids select ")[1].splitlines()[0].split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = CliRunner().invoke(cli, ["select", *command, "--output-dir", "again"])
    assert done.exit_code == 0, done.output
    again = (tmp_path / "again" / "selected-random.jsonl").read_bytes()
    assert again == result.path.read_bytes()


def test_the_card_of_a_run_says_what_it_excludes(mixed, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **mixed.options(**asked(tmp_path))) as selection:
        selection.draw()
        path = selection.export()
    text = card_of(path).read_text()
    assert "left out: 3 exact" in text
    assert "not drawn again: 5" in text
    assert str(tmp_path) not in text


def test_a_folder_of_selections_alone_is_verified(mixed, tmp_path):
    run = tmp_path / "run"
    rows = pyids.select("random", **mixed.options(output_dir=str(run), budget=7)).path

    def verified():
        done = CliRunner().invoke(cli, ["verify", str(run)])
        assert (done.exit_code == 0) == ("is what its run left behind" in done.output)
        return done.output

    assert "is what its run left behind" in verified()
    status = CliRunner().invoke(cli, ["status", str(run)]).output
    assert "1/1" in next(line for line in status.splitlines() if line.startswith("  export"))
    assert "the run has ended" in status.splitlines()[0]  # `random` needs no vectors, no clusters
    assert not {"embed", "cluster"} & set(status.split())
    before = rows.read_bytes()
    rows.write_bytes(before.replace(b"1", b"2"))
    again = "repeat the `pyids select` that made it"
    assert verified() == f"{rows.name}: the content has changed: {again}\n"
    rows.unlink()
    assert verified() == f"{rows.name}: missing: {again}\n"
    rows.write_bytes(before)
    record = run / "selected-random.manifest.json"
    for damage in (b"", b"[]", record.read_bytes().replace(b"random", b"uniform")):
        record.write_bytes(damage)
        assert verified() == f"{record.name}: damaged: {again}\n"
    record.unlink()
    assert f"has no {record.name} beside it" in verified()


def test_the_card_names_no_option_that_took_no_part(mixed, tmp_path):
    """Vectors were given, so no encoder made them; a method without rounds scores nothing."""

    def options(path):
        lines = card_of(path).read_text().split("| option | value |")[1].split("## Sources")[0]
        return {line.split("|")[1].strip() for line in lines.splitlines()[2:] if line}

    folder = str(tmp_path / "run")
    named = options(pyids.select("random", **mixed.options(output_dir=folder, budget=7)).path)
    assert named == {"budget", "seed", "keep_duplicates"}
    named = options(pyids.select("km-random", **mixed.options(output_dir=folder, budget=7)).path)
    assert named == {
        *("budget", "seed", "clusters", "metric", "embeddings_file", "keep_duplicates")
    }
    with pyids.Selection.open(tmp_path / "rounds", **mixed.options()) as selection:
        selection.draw()
        named = options(selection.export())
    assert {"embeddings_file", "rounds", "scorer"} <= named
    assert "encoder" not in named


def test_the_report_shows_the_last_selection_and_what_it_was_asked_for(mixed, tmp_path):
    from pyids.report.collect import collect

    run = tmp_path / "run"
    pyids.select("random", **mixed.options(output_dir=str(run), budget=7))
    options = mixed.options(output_dir=str(run), **asked(tmp_path))
    pyids.select("km-random", **options)
    data = collect(run).data
    said = dict(map(tuple, data["provenance"]))
    assert said["method"] == "km-random"
    assert said["budget"] == "40 of 40 rows"
    assert said["group code"] == "4 of 99 rows (floor 0, cap 4)"
    assert "manifest" not in said
    assert yaml.safe_load(data["config"])["cap"] == {"code": "10%"}
    assert str(tmp_path) not in str(data["config"])
