"""`pyids select`: any method, from data or from a run folder."""

import shutil

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.errors import ConfigError
from pyids.methods import method_names
from pyids.registry import SCORERS, SIGNALS, WEIGHT_UPDATES


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def selected(result):
    assert result.exit_code == 0, result.output
    path = result.output.splitlines()[-1]
    with open(path, "rb") as file:
        return [orjson.loads(line)["_pyids_id"] for line in file]


def data_options(pool, folder):
    return [pool.path, "--embeddings-file", pool.vectors, "--clusters", 4, "--output-dir", folder]


def test_from_data_and_from_the_folder_the_same_rows(pool, tmp_path):
    options = data_options(pool, tmp_path / "run")
    rows = selected(invoke("select", *options, "--method", "km-closest", "--budget", 40))
    assert len(set(rows)) == 40
    again = invoke("select", tmp_path / "run", "--method", "km-closest", "--to", tmp_path / "b")
    assert selected(again) == rows


@pytest.mark.parametrize("method", ["km-closest", "km-median"])
def test_lengths_of_vectors_do_not_matter_to_cosine_clusters(pool, tmp_path, method):
    options = ["--metric", "cosine", "--method", method, "--budget", 40]
    rows = selected(invoke("select", *data_options(pool, tmp_path / "run"), *options))
    lengths = 2.0 ** np.random.default_rng(0).integers(-3, 4, 400)  # unit rows stay, bit for bit
    np.save(pool.vectors, np.load(pool.vectors) * lengths[:, None].astype(np.float32))
    scaled = selected(invoke("select", *data_options(pool, tmp_path / "scaled"), *options))
    assert scaled == rows


def test_a_run_folder_is_not_changed_by_selecting_from_it(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options(rounds=1)) as selection:
        selection.draw()
        selection.tell({int(row): 1.0 for row in selection.probes()})
        selection.finish()
    options = ["--method", "random", "--budget", 10, "--seed", 5, "--to", tmp_path / "rows.jsonl"]
    assert len(selected(invoke("select", tmp_path / "run", *options))) == 10
    assert invoke("verify", tmp_path / "run").exit_code == 0


def test_a_run_folder_needs_nothing_outside_it(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options(rounds=1)) as selection:
        selection.draw()
        probes = selection.export_probes().read_bytes().splitlines()
    pool.path.unlink()
    pool.vectors.unlink()
    scores = tmp_path / "scores.jsonl"
    scores.write_bytes(b"".join(line[:-1] + b', "score": 1}\n' for line in probes))
    assert invoke("tell", tmp_path / "run", scores).exit_code == 0
    assert invoke("export", tmp_path / "run", "--format", "trl").exit_code == 0
    options = ["--method", "km-closest", "--budget", 10, "--to", tmp_path / "rows.jsonl"]
    assert len(selected(invoke("select", tmp_path / "run", *options))) == 10
    assert invoke("ask", tmp_path / "run").exit_code == 3


def test_a_missing_stage_finds_relative_paths_from_anywhere(pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "--embeddings-file",
        "vectors.npy",
        "--clusters",
        4,
        "--budget",
        40,
        "--output-dir",
        "run",
    ]
    for data in ("pool.jsonl", "pool.json[l]"):
        shutil.rmtree("run", ignore_errors=True)
        selected(invoke("select", data, *options, "--method", "random"))
        monkeypatch.chdir("/")
        rows = tmp_path / "rows.jsonl"
        result = invoke("select", tmp_path / "run", "--method", "km-closest", "--to", rows)
        assert len(selected(result)) == 40
        monkeypatch.chdir(tmp_path)


def test_the_data_is_not_written_over(pool, tmp_path, monkeypatch):
    pyids.Selection.open(tmp_path / "run", **pool.options()).close()
    before = pool.path.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert invoke("ask", "run").exit_code == 0
    for command in (["export", "run"], ["select", "run", "--method", "random"]):
        result = invoke(*command, "--to", "pool.jsonl")
        assert result.exit_code == 2
        assert "pool.jsonl: an input of this command or of its run" in result.output
    assert pool.path.read_bytes() == before


def test_a_run_folder_holds_exports_and_other_draws_beside_its_run(pool, tmp_path):
    folder = tmp_path / "run"
    for n, row in enumerate(pool.rows):
        row["stars"] = float(n % 10)
    pool.write()
    with pyids.Selection.open(folder, **pool.options(rounds=1, quality="stars")) as selection:
        selection.draw()
        selection.export(format="parquet")  # without a score
        selection.tell({int(row): float(row) for row in selection.probes()})
        selection.finish()
    histogram = (folder / "quality" / "histogram.json").read_bytes()
    assert orjson.loads(histogram)["quality"] == "stars"
    for form in ("parquet", "indices", "trl", "llamafactory", "axolotl"):
        assert invoke("export", folder, "--format", form).exit_code == 0
    for quality in ("length", "stars"):
        rows = selected(invoke("select", folder, "--method", "kmq", "--quality", quality))
        assert len(rows) == 60
    assert (folder / "quality" / "histogram.json").read_bytes() == histogram
    verified = invoke("verify", folder)
    assert verified.exit_code == 0, verified.output
    (folder / "stranger.txt").touch()
    assert "stranger.txt: not in the manifest" in invoke("verify", folder).output


def test_a_method_without_vectors_needs_none(pool, tmp_path):
    rows = selected(
        invoke(
            "select",
            pool.path,
            "--method",
            "longest",
            "--budget",
            9,
            "--output-dir",
            tmp_path / "r",
        )
    )
    assert len(rows) == 9
    assert not (tmp_path / "r" / "embeddings").exists()


def test_quality_comes_from_a_column(pool, tmp_path):
    for n, row in enumerate(pool.rows):
        row["stars"] = float(n % 10)
    pool.path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in pool.rows))
    options = [*data_options(pool, tmp_path / "run"), "--budget", 60]
    missing = invoke("select", *options, "--method", "kmq")
    assert missing.exit_code == 2
    assert "needs --quality" in missing.output
    rows = selected(invoke("select", *options, "--method", "kmq", "--quality", "stars"))
    assert np.mean(np.array(rows) % 10) > 5.5


def test_settings_reach_the_method(pool, tmp_path):
    options = [*data_options(pool, tmp_path / "run"), "--method", "uniform", "--budget", 8]
    assert "needs the option 'column'" in invoke("select", *options).output
    rows = selected(invoke("select", *options, "--set", "column=name"))
    assert len(rows) == 8
    assert "NAME=VALUE" in invoke("select", *options, "--set", "column").output
    broken = invoke("select", *options, "--set", "column=[")
    assert broken.exit_code == 2
    assert broken.output == (
        "pyids: --set column=[: the value is not YAML: close its brackets, or quote it\n"
    )


@pytest.mark.parametrize("method", ["random", "km-closest"])
def test_the_machine_may_be_another_than_the_folder_was_made_on(pool, tmp_path, method):
    pyids.Selection.open(tmp_path / "run", **pool.options()).close()
    options = ["select", tmp_path / "run", "--method", method, "--budget", 9]
    rows = selected(invoke(*options))
    machine = ["--workers", 2, "--max-memory", "1GB", "--threads", 1, "--engine", "local"]
    assert selected(invoke(*options, *machine, "--device", "cpu")) == rows
    assert invoke(*options, *machine, "--dry-run").exit_code == 0


@pytest.mark.parametrize("option", ["--clusters", "--kmeans-max-iter", "--output-dir"])
def test_what_belongs_to_the_folder_cannot_be_changed(pool, tmp_path, option):
    pyids.Selection.open(tmp_path / "run", **pool.options()).close()
    result = invoke("select", tmp_path / "run", "--method", "random", option, 7)
    assert result.exit_code == 2
    assert "belongs to the run folder" in result.output


@pytest.mark.parametrize(
    "option", [["--rounds", 7], ["--scorer", "nosuch"], ["--num-train-epochs", 2]]
)
def test_options_of_rounds_are_not_dropped_unseen(pool, tmp_path, option):
    options = [*data_options(pool, tmp_path / "run"), "--budget", 40]
    result = invoke("select", *options, "--method", "random", *option)
    assert result.exit_code == 2
    assert f"No such option '{option[0]}'" in result.output
    assert not (tmp_path / "run").exists()
    config = tmp_path / "c.yaml"  # which may be that of a run
    config.write_text("rounds: 7\nscorer: loss\n")
    selected(invoke("select", *options, "--method", "random", "--config", config))


def test_one_folder_takes_several_draws(pool, tmp_path):
    def draw(folder, *options):
        return selected(invoke("select", *data_options(pool, tmp_path / folder), *options))

    draws = [
        ["--method", "random", "--budget", 40],
        ["--method", "random", "--budget", 9, "--seed", 5],
        ["--method", "km-random", "--budget", 20],
    ]
    for n, options in enumerate(draws):
        assert draw("one", *options) == draw(f"fresh {n}", *options)
    # Other clusters are another matter.
    result = invoke("select", *data_options(pool, tmp_path / "one"), *draws[2], "--seed", 5)
    assert result.exit_code == 2
    assert "is the folder of another run: seed was 0, now 5" in result.output


def test_a_config_file_counts_for_a_run_folder_too(pool, tmp_path):
    pyids.Selection.open(tmp_path / "run", **pool.options()).close()
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {pool.path}\nbudget: 2\nrounds: 9\nclusters: 4\noutput_dir: x\n")
    options = ["select", tmp_path / "run", "--method", "random", "--config", config]
    assert len(selected(invoke(*options))) == 2
    assert len(selected(invoke(*options, "--budget", 5))) == 5
    config.write_text("clusters: 7\n")
    assert "clusters belongs to the run folder" in invoke(*options).output


def test_python_selects_from_a_run_folder_as_the_command_does(pool, tmp_path):
    folder = tmp_path / "run"
    with pyids.Selection.open(folder, **pool.options(rounds=1)) as selection:
        selection.draw()
        selection.export()  # a data file inside
    rows = selected(invoke("select", folder, "--method", "km-random", "--budget", 9, "--seed", 3))
    for data in (str(folder), folder, [folder]):
        result = pyids.select("km-random", data=data, budget=np.int64(9), seed=3)
        assert sorted(result.ids) == sorted(rows)
    config = {"data": str(folder), "budget": 2, "rounds": 9, "seed": 3}
    assert len(pyids.select("random", config, to=tmp_path / "rows.jsonl")) == 2
    with pytest.raises(ConfigError, match="clusters belongs to the run folder"):
        pyids.select("random", config, clusters=7)


def test_a_data_folder_with_a_config_in_it_is_no_run_folder(pool, tmp_path):
    (tmp_path / "data").mkdir()
    pool.path.rename(tmp_path / "data" / "rows.jsonl")
    (tmp_path / "data" / "config.yaml").write_text("learning_rate: 0.1\n")
    options = ["--method", "random", "--budget", 3, "--output-dir", tmp_path / "run"]
    assert len(selected(invoke("select", tmp_path / "data", *options))) == 3


def test_an_export_of_nothing_is_refused(pool, tmp_path):
    selected(
        invoke("select", *data_options(pool, tmp_path / "r"), "--method", "random", "--budget", 9)
    )
    result = invoke("export", tmp_path / "r")
    assert result.exit_code == 2
    assert "no round has drawn rows yet" in result.output
    assert not (tmp_path / "r" / "selected.jsonl").exists()
    assert "is not a run folder" in invoke("export", tmp_path / "nothing").output


def test_everything_is_listed_with_its_source():
    result = invoke("methods")
    assert result.exit_code == 0
    names: dict[str, list[str]] = {}
    for line in result.output.splitlines():
        if line.endswith(":"):
            title = line.split(" (")[0]
            continue
        assert line.endswith("]")
        names.setdefault(title, []).append(line.split()[0])
    assert names["methods"] == method_names()  # each of them `pyids select` takes
    assert names["rounds"] == ["iterative"]
    assert names["weight updates"] == WEIGHT_UPDATES.names()
    assert names["scorers"] == SCORERS.names()
    assert names["encoders"]
    signals = [name.removesuffix(":MODEL") for name in names["quality of rows"]]
    assert signals == ["COLUMN", *SIGNALS.names()]


def test_an_unknown_method_is_answered(pool, tmp_path):
    options = [*data_options(pool, tmp_path / "run"), "--budget", 8]
    result = invoke("select", *options, "--method", "magic")
    assert result.exit_code == 2
    assert "no method 'magic'" in result.output


def test_the_iterative_draw_follows_quality(pool, tmp_path):
    for n, row in enumerate(pool.rows):
        row["stars"] = float(n % 10)
    pool.path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in pool.rows))
    with pyids.Selection.open(tmp_path / "run", **pool.options(quality="stars")) as selection:
        selection.draw()
        assert np.mean(selection.rounds.selected(0) % 10) > 5.5
