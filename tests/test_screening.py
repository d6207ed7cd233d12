"""Outliers of clusters: planted ones are found, and drawn less."""

from functools import partial

import numpy as np
import pytest

import pyids
from pyids.chat import template
from pyids.config import make_config
from pyids.scoring import overlap as overlap_module
from pyids.scoring import screening
from pyids.scoring.overlap import number_overlap, words_of

torch = pytest.importorskip("torch", reason="needs the train extra")

from pyids.models.nll import encoded_nll  # noqa: E402


def conversation(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def words(rows):
    return [words_of(row) for row in rows]


def measure(model, tokenizer, rows, **options):
    return screening.measure(partial(encoded_nll, model), tokenizer, rows, **options)


CITIES = ["Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito", "Seoul", "Delhi", "Tunis", "Accra"]
GOOD = [
    conversation(
        f"Where does the train to {city} leave today?", f"The train to {city} leaves here."
    )
    for city in CITIES
]


def test_overlaps_of_hostile_rows_are_undefined_and_not_odd():
    rows = [conversation("", ""), conversation("?", "!"), [{"role": "user", "content": "alone"}]]
    shared, numbers = overlap_module.overlap(words(rows)), number_overlap(words(rows))
    assert np.isnan(shared).all()
    assert np.isnan(numbers).all()
    columns = {"end_nll": np.full(3, np.nan), "overlap": shared, "number_overlap": numbers}
    assert screening.outlier_score(columns, np.zeros(3, np.int32)).tolist() == [0, 0, 0]
    assert overlap_module.overlap([]).shape == number_overlap([]).shape == (0,)


def test_wrong_numbers_are_odd_where_a_third_are_wrong():
    def row(i, wrong):
        a, b = 11 + i, 40 + 3 * i
        answer = f"There are {a} and {b}, in all {a + b}."
        if wrong:
            answer = f"There are {a + 107} and {b + 205}, in all {a + 2 * b}."
        return conversation(f"One has {a} pens, the other {b} pens. How many have both?", answer)

    wrong = np.arange(12) % 3 == 0
    rows = [row(i, bad) for i, bad in enumerate(wrong)]
    columns = {
        "end_nll": np.full(12, np.nan),
        "overlap": np.full(12, np.nan),
        "number_overlap": number_overlap(words(rows)),
    }
    scores = screening.outlier_score(columns, np.zeros(12, np.int32))
    assert scores[wrong].min() > 0 == scores[~wrong].max()


def test_answers_to_another_question_and_answers_cut_off_are_odd(smollm2):
    swapped = [conversation(GOOD[i][0]["content"], GOOD[i + 1][1]["content"]) for i in (0, 2)]
    cut = [conversation(GOOD[i][0]["content"], "The train to") for i in (4, 5)]
    echo = [conversation(GOOD[i][0]["content"], GOOD[i][0]["content"]) for i in (6, 7)]
    rows = [*GOOD, *swapped, *cut]
    columns = measure(*smollm2, rows)
    scores = screening.outlier_score(columns, np.zeros(len(rows), np.int32))
    assert scores[10:].min() > scores[:10].max()
    assert columns["end_nll"][12:].min() > columns["end_nll"][:10].max()
    nothing = np.full(12, np.nan)
    columns = {
        "end_nll": nothing,
        "overlap": overlap_module.overlap(words([*GOOD, *echo])),
        "number_overlap": nothing,
    }
    beside = screening.outlier_score(columns, np.zeros(12, np.int32))
    assert beside[10:].min() > beside[:10].max()


def test_the_end_is_that_of_the_whole_row(smollm2):
    model, tokenizer = smollm2
    ids, mask = template.encode(GOOD[0], tokenizer)
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids)[None]).logits[0].double()
    last = int(np.flatnonzero(mask)[-1])
    expected = -logits[last - 1].log_softmax(-1)[ids[last]].item()
    found = measure(model, tokenizer, GOOD[:1])["end_nll"]
    np.testing.assert_allclose(found, [expected], atol=1e-4)
    # A row that is cut has no end that could be judged.
    cut = measure(model, tokenizer, GOOD[:1], max_length=8)["end_nll"]
    assert np.isnan(cut).all()


def test_oddness_compares_inside_the_cluster():
    overlap = np.array([0.9, 0.88, 0.92, 0.9, 0.1, 0.12, 0.08, 0.1, 0.1])
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0], np.int32)
    columns = {"end_nll": np.zeros(9), "overlap": overlap, "number_overlap": np.zeros(9)}
    scores = screening.outlier_score(columns, clusters)
    assert scores.argmax() == 8
    assert scores[4:8].max() < scores[8] / 2


def mix_up(pool, share):
    """Give rows a word of their own, and some of them each other's answers; return which."""
    rng = np.random.default_rng(0)
    for row in pool.rows:
        word = "".join(rng.choice(list("abcdefghij"), 6))
        row["messages"][0]["content"] += f" It is about {word}."
        row["messages"][1]["content"] += f" That is about {word}."
    corrupted = np.flatnonzero(rng.random(len(pool.rows)) < share)
    answers = [pool.rows[i]["messages"][1] for i in np.roll(corrupted, 1)]
    for i, answer in zip(corrupted, answers, strict=True):
        pool.rows[i]["messages"][1] = answer
    pool.write()
    return corrupted


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fields = {"data": "pool.jsonl", "budget": 10, "model": tiny, "device": "cpu", "max_length": 64}
    clusters = np.arange(10, dtype=np.int32) % 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = [
        screening.screen(GOOD, clusters, make_config(**fields, num_processes=n), scratch=tmp_path)
        for n in (1, 2)
    ]
    torch.set_num_threads(threads)
    assert np.isfinite(found[0]["end_nll"]).all()
    for name, values in found[0].items():
        np.testing.assert_array_equal(found[1][name], values, err_msg=name)


@pytest.mark.parametrize("wrong", [0, 0.3])
def test_nothing_is_screened_unless_asked_for(pool, tmp_path, wrong):
    """Whatever the answers look like: whoever draws needs no model."""
    mix_up(pool, wrong)
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        assert selection.config.oversample == 1
        assert selection.draw()
        assert not selection.rounds.path(0, "candidates.parquet").exists()


@pytest.mark.slow
def test_a_round_draws_the_rows_that_are_not_odd(pool, tmp_path):
    """Swap the answers of a third of the rows; they are drawn less than they are there."""
    corrupted = mix_up(pool, 1 / 3)
    options = pool.options(rounds=1, oversample=4, budget=60)
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        selection.draw()
        drawn = selection.rounds.selected(0)
        assert len(drawn) == 60
        table = selection.rounds.candidates(0)
        assert set(drawn) <= set(table["row_id"].to_pylist())
        assert len(table) == 240
    assert np.isin(drawn, corrupted).mean() < len(corrupted) / len(pool.rows) * 2 / 3
    with pyids.Selection.open(tmp_path / "again", **{**options, "threads": 1}) as selection:
        selection.draw()
        np.testing.assert_array_equal(selection.rounds.selected(0), drawn)


def test_quality_counts_among_candidates(pool, tmp_path, monkeypatch):
    """With every row of a cluster a candidate and none an outlier, quality alone decides."""
    monkeypatch.setattr("pyids.models.load.load_model", lambda *args: (None, None))
    names = ("end_nll", "overlap", "number_overlap")
    monkeypatch.setattr(
        screening,
        "measure",
        lambda *args, **kw: {name: np.full(len(args[2]), np.nan) for name in names},
    )
    good = np.random.default_rng(0).random(400) < 0.3
    for row, is_good in zip(pool.rows, good, strict=True):
        row["worth"] = float(is_good) * 50
    pool.write()
    options = pool.options(rounds=1, oversample=8, budget=60, quality="worth")
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        selection.draw()
        assert len(selection.rounds.candidates(0)) > 350
        drawn = selection.rounds.selected(0)
    assert len(drawn) == 60
    assert good[drawn].mean() > 0.6


def test_a_run_of_one_thread_has_one_in_every_model(small, tmp_path, monkeypatch):
    seen, linear = set(), torch.nn.functional.linear

    def counted(*args):
        seen.add(torch.get_num_threads())
        return linear(*args)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = pyids.run(
            data=str(small / "pool.jsonl"), embeddings_file=str(small / "vectors.npy"),
            model=str(small / "model"), quality="perplexity", oversample=2, budget=8, rounds=1,
            clusters=4, max_length=64, lora_rank=2, device="cpu", threads=1,
            output_dir=str(tmp_path / "run"),
        )  # fmt: skip
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(result.ids) == 8
    assert seen == {1}
