"""`pyids compare`: figures of small selections that can be counted by hand."""

import json
from collections import Counter

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.errors import ConfigError, DataError
from pyids.evaluation.compare import compare
from pyids.methods.select import select_from_folder
from pyids.models import finetune


def answered(prompt, completion, **columns):
    return {"prompt": prompt, "completion": completion, **columns}


def write(path, rows):
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def run(pool, path, **options):
    with pyids.Selection.open(path, **pool.options(**options)) as selection:
        while selection.draw():
            selection.tell({int(row): float(row % 7) for row in selection.probes()})
        selection.finish()
        return selection.selected()


def test_files_are_compared_by_content(tmp_path):
    one = [answered(f"Say {n}.", "x" * n, source="ab"[n > 3]) for n in (1, 2, 3, 4)]
    # The same conversation in another format, with other columns, is the same row.
    turns = [{"role": "user", "content": "Say 2."}, {"role": "assistant", "content": "xx"}]
    two = [{"messages": turns, "source": "a", "n": 1}, answered_messages("Say 9.", "y" * 9)]
    found = compare([write(tmp_path / "1.jsonl", one), write(tmp_path / "2.jsonl", two + two[:1])])
    first, second = found.selections
    assert (first.rows, first.distinct, second.rows, second.distinct) == (4, 4, 3, 2)
    assert (first.mean_length, first.longest, first.total_length) == (2.5, 4, 10)
    assert (second.median_length, second.total_length) == (2.0, 13)
    [overlap] = found.overlaps
    assert (overlap.common, overlap.jaccard) == (1, 1 / 5)
    assert found.group_by == "source"
    assert found.mix == {"a": [3 / 4, 2 / 3], "b": [1 / 4, 0], "c": [0, 1 / 3]}
    assert second.distance == pytest.approx(1 / 3)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert first.effective_topics == pytest.approx(np.exp(entropy))
    counts = found.histograms["length"].counts
    assert [sum(column) for column in counts] == [4, 3]
    assert counts[1][-1] == 1
    assert "score" not in found.histograms


def answered_messages(prompt, answer):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "source": "c"}


def test_runs_over_one_pool_in_several_folders(pool, tmp_path):
    """Overlap by content is that of the row ids; topics are the first run's clusters."""
    folders = [tmp_path / name for name in "abc"]
    chosen = [run(pool, folder, seed=seed) for folder, seed in zip(folders, (0, 1, 0), strict=True)]
    found = compare(folders)
    ids = [set(selected.row_ids.tolist()) for selected in chosen]
    common = len(ids[0] & ids[1])
    assert [overlap.common for overlap in found.overlaps] == [common, 60, common]
    assert found.overlaps[0].jaccard == pytest.approx(common / len(ids[0] | ids[1]))
    assert found.overlaps[1].jaccard == 1
    assert found.group_by == "cluster"
    with pyids.Selection.open(folders[0]) as first:
        for column, selected in enumerate(chosen):
            counts = Counter(first.clusters_of(np.sort(selected.row_ids)).tolist())
            for cluster, shares in found.mix.items():
                assert shares[column] == pytest.approx(counts[int(cluster)] / 60)
    assert found.selections[2].distance == 0
    scores = found.histograms["score"]
    rows = [json.loads(line) for line in (folders[1] / "selected.jsonl").read_text().splitlines()]
    expected, _ = np.histogram([row["_pyids_score"] for row in rows], scores.edges)
    assert scores.counts[1] == expected.tolist()


def test_static_selections_rows_from_elsewhere_and_quality(pool, tmp_path):
    run(pool, tmp_path / "run", rounds=1)
    longest = select_from_folder(tmp_path / "run", "longest", tmp_path / "longest.jsonl")
    other = [answered("Far away?", "Yes, far away."), answered("Near?", "No.")]
    other = write(tmp_path / "other.jsonl", other)
    found = compare([tmp_path / "run", longest, other], quality="length")
    assert found.mix["not in its pool"] == [0, 0, 1]
    assert [sum(column) for column in found.histograms["quality"].counts] == [60, 60, 2]
    assert found.overlaps[2].common == 0


def test_a_folder_of_static_selections(pool, tmp_path):
    options = pool.options(output_dir=str(tmp_path / "run"), rounds=1)
    from pyids.methods.select import select

    path = select(pyids.RunConfig(**options), "random")
    found = compare([tmp_path / "run", path])
    assert found.overlaps[0].jaccard == 1
    select_from_folder(tmp_path / "run", "longest")
    with pytest.raises(ConfigError, match="holds several selections"):
        compare([tmp_path / "run", path])


def test_mistakes_are_answered(pool, tmp_path):
    rows = write(tmp_path / "rows.jsonl", pool.rows[:3])
    with pytest.raises(ConfigError, match="two or more"):
        compare([rows])
    with pytest.raises(ConfigError, match="named twice"):
        compare([rows, rows])
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="pyids export"):
        compare([rows, tmp_path / "run"])
    with pytest.raises(DataError, match="no column 'language'"):
        compare([rows, write(tmp_path / "more.jsonl", pool.rows[:4])], group_by="language")
    with pytest.raises(ConfigError, match="no selection has trained a checkpoint"):
        compare([rows, write(tmp_path / "more.jsonl", pool.rows[:4])], data=[rows])


def test_the_command_with_the_models_of_the_runs(pool, tiny, tmp_path):
    """Run folders are evaluated by their last checkpoint, the base model beside them."""
    turns = [row["messages"] for row in pool.rows]
    for name, part in (("a", turns[:4]), ("b", turns[4:8])):
        run(pool, tmp_path / name, rounds=1, seed=ord(name))
        folder = tmp_path / name / "rounds" / "1" / "checkpoint"
        finetune.finetune(tiny, part, output_dir=folder, num_train_epochs=5, learning_rate=2e-2)
    held_out = write(tmp_path / "held-out.jsonl", pool.rows[-6:])
    path = tmp_path / "out.json"
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    arguments = ["--data", held_out, "--model", tiny, "--json", str(path)]
    result = CliRunner().invoke(cli, ["-q", "compare", *names, *arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_bytes())
    losses = [evaluation["macro"]["token_nll"] for evaluation in found["evaluations"]]
    assert len(losses) == 3
    assert max(losses[:2]) < losses[2]
    assert found["unit"] == "tokens"
    for word in ("Jaccard", "share of cluster", "nll/token", "base", "score", "length"):
        assert word in result.output
    assert compare(names).unit == "characters"
