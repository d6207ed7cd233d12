"""`--best-response`: one answer a prompt, the one that the base model finds likeliest."""

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.pipeline.best_response import prompt_key
from pyids.scoring.signals import Perplexity

pytest.importorskip("torch", reason="needs the train extra")


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


def test_a_prompt_is_all_before_the_last_answer():
    assert prompt_key(row("a", "b")) == prompt_key(row(" a ", "c")) != prompt_key(row("b", "b"))
    assert prompt_key([*row("a", "b"), *row("c", "d")]) != prompt_key(
        [*row("a", "x"), *row("c", "d")]
    )
    assert prompt_key([{"role": "user", "content": "a"}]) is None
