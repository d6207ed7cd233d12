"""`--best-response`: one answer a prompt, the one that the base model finds likeliest."""

import errno
import shutil

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.config import make_config
from pyids.engine import LocalEngine
from pyids.methods.select import make_pool
from pyids.pipeline import best_response
from pyids.pipeline.best_response import other_responses, prompt_key
from pyids.pipeline.draw import draws_of
from pyids.pipeline.prepare import prepare
from pyids.scoring.signals import Perplexity
from pyids.store.folder import Store

pytest.importorskip("torch", reason="needs the train extra")

STEPS = ["deal_prompts", "find_shared", "score_shared"]


def row(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.fixture
def answers(pool):
    """Rows 0 to 5 share one prompt, rows 6 and 7 another one, which differs in white space."""
    for n in range(6):
        pool.rows[n]["messages"][0]["content"] = "Say something."
        pool.rows[n]["messages"][1]["content"] = f"Something {'else ' * n}{n}"
    pool.rows[6]["messages"][0]["content"] = "And  now?"
    pool.rows[7]["messages"][0]["content"] = " And now?"
    pool.write()
    return pool


def test_only_the_likeliest_answer_may_be_selected(answers, tiny, tmp_path):
    score = Perplexity(tiny).score([row["messages"] for row in answers.rows[:8]])
    stay = {int(score[:6].argmax()), 6 + int(score[6:].argmax())}
    base = [answers.path, "--embeddings-file", answers.vectors, "--clusters", 4, "--model", tiny]
    base += ["--output-dir", tmp_path / "run", "--method", "random", "--best-response"]
    result = CliRunner().invoke(cli, ["select", *map(str, base), "--budget", "394"])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "run" / "selected-random.jsonl").read_bytes().splitlines()
    ids = {orjson.loads(line)["_pyids_id"] for line in lines}
    assert ids == {*range(8, 400)} | stay
    result = CliRunner().invoke(cli, ["select", *map(str, base), "--budget", "395"])
    assert "have a likelier answer" in result.output


def test_rounds_leave_the_others_out(answers, tiny, tmp_path):
    options = answers.options(best_response=True, model=tiny, budget=390)
    seen = []
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        while selection.draw():
            seen += [selection.rounds.selected(selection.round), selection.probes()]
            selection.tell({int(row): 1.0 for row in selection.probes()} or {})
    assert len(np.intersect1d(np.concatenate(seen), range(6))) <= 1


@pytest.fixture
def files(tmp_path):
    """Six shards of 50 rows; most prompts have answers in several, some of them the same.

    Rows that differ in white space alone repeat each other, but need not score the same.
    """
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(300):
        answer = f"Answer {'so ' * int(rng.integers(0, 9))}{rng.integers(0, 3)}"
        rows.append(row(f"Prompt {rng.integers(0, 70)}", answer))
    rows[299] = rows[0] = row("Of two shards", "Same.")
    rows[120] = row(" Prompt  3", rows[121][1]["content"] + " ")
    for n in range(6):
        lines = [{"messages": turns, "score": n} for turns in rows[50 * n : 50 * n + 50]]
        (tmp_path / f"{n}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return rows, str(tmp_path / "[0-5].jsonl")


def left_out(rows, model):
    """The rows beside the likeliest of each prompt; the same content has the same score."""
    contents = {orjson.dumps(turns): turns for turns in rows}
    scores = dict(zip(contents, Perplexity(model).score(list(contents.values())), strict=True))
    of_prompt = {}
    for n, turns in enumerate(rows):
        of_prompt.setdefault(prompt_key(turns), []).append(n)
    out = []
    for group in of_prompt.values():
        best = int(np.argmax([scores[orjson.dumps(rows[n])] for n in group]))
        out += group[:best] + group[best + 1 :]
    return sorted(out)


class Watched(LocalEngine):
    """Notes which tasks it is given."""

    def __init__(self, workers=1):
        super().__init__(workers)
        self.asked = []

    def map(self, task, items, *, gpu=False):
        self.asked.append(task.__name__)
        return super().map(task, items, gpu=gpu)


def test_tasks_find_what_one_process_does(files, tiny, tmp_path, monkeypatch):
    rows, data = files
    config = make_config(
        data=data, budget=9, model=tiny, device="cpu", threads=1, best_response=True,
        keep_duplicates=True, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    wanted = left_out(rows, tiny)
    assert 120 < len(wanted) < 290
    assert {0, 299} & set(wanted) == {299}  # of equal ones the lower stays
    with prepare(config, "read") as store, Watched(2) as two:
        assert len(store.shards) == 6

        def found(engine=None):
            ids = other_responses(store, config, engine).tolist()
            assert not list(store.scratch.glob("best-response-*"))
            shutil.rmtree(store.path / "best_response")
            shutil.rmtree(store.path / "quality")  # scores that are known
            return ids

        assert found() == wanted
        monkeypatch.setattr(best_response, "_TASK_ROWS", 80)
        monkeypatch.setattr(best_response, "_ROWS_PER_BUCKET", 40)
        assert found() == wanted
        monkeypatch.setattr(best_response, "_TASK_SCORED", 64)
        assert found(two) == wanted
        assert two.asked == STEPS


def test_selections_and_rounds_compare_on_their_engine(answers, tiny, tmp_path):
    options = answers.options(best_response=True, model=tiny, output_dir=str(tmp_path / "run"))
    config, engine = make_config(**options), Watched()
    with prepare(config) as store:
        draws = draws_of(store, config, engine)
        assert engine.asked == STEPS
        make_pool(store, config, None, engine=engine)
        assert engine.asked == STEPS  # made once
        shutil.rmtree(store.path / "best_response")
        pool = make_pool(store, config, None, engine=engine)
        assert engine.asked == 2 * STEPS
        np.testing.assert_array_equal(np.setdiff1d(range(400), pool.row_ids), draws.left_out)


def test_a_folder_that_is_only_read_gets_no_file(answers, tiny, tmp_path, monkeypatch):
    options = answers.options(best_response=True, model=tiny, output_dir=str(tmp_path / "run"))
    config, engine = make_config(**options), Watched()
    with prepare(config, "read") as store:
        wanted = other_responses(store, config)
        shutil.rmtree(store.path / "best_response")
        shutil.rmtree(store.path / "quality")

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pyids.store.folder.take_lock", refuse)
    with Store.open(tmp_path / "run", may_write=False) as store:
        assert store.read_only
        assert other_responses(store, config, engine).tolist() == wanted.tolist()
        assert not engine.asked  # which may be other machines, that do not see what lies beside it
        assert not [path for path in ("best_response", "quality") if (store.path / path).exists()]


def test_a_prompt_is_all_before_the_last_answer():
    assert prompt_key(row("a", "b")) == prompt_key(row(" a ", "c")) != prompt_key(row("b", "b"))
    assert prompt_key([*row("a", "b"), *row("c", "d")]) != prompt_key(
        [*row("a", "x"), *row("c", "d")]
    )
    assert prompt_key([{"role": "user", "content": "a"}]) is None
