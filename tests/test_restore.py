"""Folders that were moved, and what rounds have lost: put back to the same bytes, or named."""

import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pyids.cli import cli
from pyids.config import make_config
from pyids.errors import ConfigError, DamagedError
from pyids.selection import Selection, run
from pyids.store.files import read_sealed
from pyids.store.ledger import write_entry
from pyids.store.manifest import verify


def scores_of(selection):
    return {int(row): float(row % 7) for row in selection.probes()}


def finish(folder):
    with Selection.open(folder) as selection:
        while selection.draw():
            selection.tell(scores_of(selection))
        return selection.finish().read_bytes()


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "flip":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-7])


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".") and file.name != "manifest.json"
    }


# ---- moved ---------------------------------------------------------------------------------------


@pytest.fixture
def finished(pool, tmp_path):
    """A folder whose rounds have been told, and the command that began it."""
    with Selection.open(tmp_path / "run", **pool.options()) as selection:
        while selection.draw():
            selection.tell(scores_of(selection))
        selection.finish()
    return tmp_path / "run"


@pytest.mark.parametrize("moved", ["folder", "data", "both"])
@pytest.mark.parametrize("name", [None, "config.yaml", "identity.json", "rows/index.json"])
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_a_finished_folder_that_was_moved_is_verified(finished, pool, tmp_path, moved, name, how):
    folder, data = finished, [pool.path, pool.vectors]
    if moved != "data":
        folder = tmp_path / "moved" / "run"
        shutil.copytree(finished, folder)
    if moved != "folder":
        (tmp_path / "elsewhere").mkdir()
        data = [shutil.move(file, tmp_path / "elsewhere") for file in data]
    before = contents(folder)
    if name is not None:
        damage(folder / name, how)
        [problem] = verify(folder)
        assert problem.startswith(f"{name}: ")
        assert "with all its options" in problem
    command = ["ask", folder, "--data", data[0], "--embeddings-file", data[1]]
    command += ["--budget", 60, "--clusters", 4]
    for _ in range(2):  # the second finds all in order
        answer = CliRunner().invoke(cli, list(map(str, command)))
        assert answer.exit_code == 3, answer.output
        assert verify(folder) == []
    changed = {name for name, content in contents(folder).items() if before[name] != content}
    assert changed <= {"config.yaml", "rows/index.json"}
    assert finish(folder) == before["selected.jsonl"]
    assert verify(folder) == []


def test_what_is_not_of_this_process_is_not_vouched_for(finished, pool):
    """An edited configuration is refused, and a damaged file stays one, whatever is moved."""
    config = finished / "config.yaml"
    kept = config.read_text()
    config.write_text(kept.replace("budget: 60", "budget: 61"))
    manifest = (finished / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="budget"):
        Selection.open(finished)
    with pytest.raises(ConfigError, match="budget"):
        Selection.open(finished, **{**pool.options(), "budget": 61})
    assert (finished / "manifest.json").read_bytes() == manifest
    [problem] = verify(finished)
    assert problem.startswith("config.yaml: ")
    config.write_text(kept)
    damage(finished / "rounds" / "1" / "scores.parquet", "flip")
    Selection.open(finished, **pool.options()).close()
    [problem] = verify(finished)
    assert problem.startswith("rounds/1/scores.parquet: ")


@pytest.mark.parametrize("name", ["exclude", "already", "target", "embeddings_file"])
def test_a_file_that_a_configuration_names_and_the_run_did_not_have(finished, name):
    config = finished / "config.yaml"
    kept = config.read_text()
    [line] = re.findall(rf"^{name}:.*$", kept, re.M)
    config.write_text(kept.replace(line, f"{name}: null" if line[-4:] != "null" else line + "x"))
    with pytest.raises(ConfigError, match=rf"config\.yaml: {name} is .*with all its options"):
        Selection.open(finished)


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flip", "delete", "truncate"])
@pytest.mark.parametrize("name", ["scores.parquet", "both"])
def test_lost_scores_are_missed_before_more_work(pool, tmp_path, name, how):
    folder = tmp_path / "run"
    with Selection.open(folder, **pool.options(rounds=4)) as selection:
        for _ in range(2):
            selection.draw()
            selection.tell(scores_of(selection))
    names = ["scores.parquet", "scores.json"] if name == "both" else [name]
    for each in names:
        damage(folder / "rounds" / "1" / each, how)
    before = contents(folder)
    with (
        Selection.open(folder) as selection,
        pytest.raises(DamagedError, match=f"{folder}/rounds/1/scores.*clean.*--from 1`"),
    ):
        selection.draw()
    assert contents(folder) == before


def test_scores_that_are_not_those_of_the_weights_vouch_for_nothing(pool, tmp_path):
    folder = tmp_path / "run"
    with Selection.open(folder, **pool.options()) as selection:
        selection.draw()
        selection.tell(scores_of(selection))
    scores = folder / "rounds" / "1" / "scores.parquet"
    table = pq.read_table(scores)
    values = table.column("score").to_numpy()[::-1]
    place = table.column_names.index("score")
    pq.write_table(table.set_column(place, "score", pa.array(values)), scores)
    summary = read_sealed(scores.with_suffix(".json"))
    facts = {key: value for key, value in summary.items() if key not in ("files", "inputs")}
    write_entry(scores.with_suffix(".json"), [scores], {"round": 1}, **facts)
    scores.with_suffix(".json").unlink()
    with (
        Selection.open(folder) as selection,
        pytest.raises(DamagedError, match=r"scores\.json: missing"),
    ):
        selection.draw()


def test_a_summary_is_derived_as_it_was_told(pool, tmp_path):
    """To the same bytes, also where a temperature was given and a weight of another round."""
    folder = tmp_path / "run"
    with Selection.open(folder, **pool.options(rounds=4, temperature=2.0)) as selection:
        for _ in range(3):
            selection.draw()
            selection.tell(scores_of(selection))
    whole = contents(folder)
    for number in (1, 2, 3):
        (folder / "rounds" / str(number) / "scores.json").unlink()
    Selection.open(folder).close()
    assert contents(folder) == whole


# ---- with a model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A finished run of two rounds with a tiny model, its configuration, and its files."""
    pytest.importorskip("peft", reason="needs the train extra")
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = make_config(
        data=[str(small / "pool.jsonl")],
        embeddings_file=str(small / "vectors.npy"),
        model=str(small / "model"),
        budget=16,
        rounds=2,
        clusters=4,
        probes_per_cluster=3,
        lora_rank=2,
        max_length=64,
        oversample=2,
        output_dir=str(folder),
    )
    run(config)
    return config


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "1/checkpoint/adapter_model.safetensors",
        "1/checkpoint/adapter_config.json",
        "1/checkpoint/checkpoint.json",
        "2/checkpoint/adapter_model.safetensors",
        "1/scores.parquet",
        "1/scores.json",
        "1/candidates.parquet",
        "1/candidates.json",
        "2/candidates.parquet",
    ],
)
def test_what_needs_a_model_is_made_again_by_run(trained, tmp_path, name, ended):
    whole = contents(trained.output_path)
    folder = tmp_path / "run"
    shutil.copytree(trained.output_path, folder)
    if not ended:
        (folder / "manifest.json").unlink()
        (folder / "selected.jsonl").unlink()
    how = "flip" if len(name) % 2 else "delete"
    damage(folder / "rounds" / name, how)
    run(trained.model_copy(update={"output_dir": str(folder)}))
    assert verify(folder) == []
    # How long a training took is another time.
    of_time = re.compile(r"rounds/./checkpoint(/checkpoint)?\.json|config\.yaml|.*README\.md")
    differing = {key for key, content in contents(folder).items() if whole.get(key) != content}
    assert all(of_time.fullmatch(key) for key in differing), differing
    assert whole.keys() == contents(folder).keys()


def test_what_is_made_again_and_is_something_else_is_refused(trained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained.output_path, folder)
    moved = trained.model_copy(update={"output_dir": str(folder)})
    damage(folder / "rounds" / "1" / "scores.parquet", "flip")
    kept = Selection._score

    def other(self, checkpoint, row_ids):
        scores = kept(self, checkpoint, row_ids)
        return type(scores)(np.nextafter(scores.values, 9), scores.columns, scores.temperature)

    monkeypatch.setattr(Selection, "_score", other)
    with pytest.raises(
        DamagedError, match=r"rounds/1/scores\.parquet: .*something else.*--from 1`"
    ):
        run(moved)
    monkeypatch.undo()
    damage(folder / "rounds" / "1" / "checkpoint" / "adapter_model.safetensors", "delete")
    monkeypatch.setattr(
        "pyids.models.finetune.training_options",
        lambda config, make=None: {
            "learning_rate": 0.5,
            **{"method": "lora", "lora_rank": 2, "max_length": 64, "seed": 0, "device": "cpu"},
        },
    )
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors: .*something else"):
        run(moved)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_another_model_of_the_same_name_is_refused(trained, small, tmp_path, name):
    folder, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(small / "model", model)
    moved = trained.model_copy(update={"output_dir": str(folder), "model": str(model)})
    run(moved)
    shutil.rmtree(folder / "rounds" / "2")
    (folder / "rounds" / "state.json").unlink()
    (folder / "manifest.json").unlink()
    kept, before = (model / name).read_bytes(), contents(folder)
    if name == "model.safetensors":
        damage(model / name, "flip")
    else:
        (model / name).write_bytes(kept + b"\n")
    with pytest.raises(ConfigError, match=f"round 1 used another model .*{name} differs"):
        run(moved)
    assert contents(folder) == before
    (model / name).write_bytes(kept)
    run(moved)
    assert verify(folder) == []


def test_a_run_of_moved_data_goes_on(trained, small, tmp_path):
    """Data named by another path: another index of rows, and the same run."""
    folder = tmp_path / "run"
    shutil.copytree(trained.output_path, folder)
    data = str(shutil.copy(small / "pool.jsonl", tmp_path / "pool.jsonl"))
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        for name in (data, "pool.jsonl", "./pool.jsonl"):
            run(trained.model_copy(update={"output_dir": str(folder), "data": [name]}))
            assert verify(folder) == []
    finally:
        os.chdir(before)
