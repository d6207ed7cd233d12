"""Target-aware selection: rds, what of the pool is left out, and what the command line answers."""

import json

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from pyids import nearest, reference
from pyids.chat.near_copies import NearCopies
from pyids.cli import cli
from pyids.methods import get_method, pool_from_arrays, whitening
from pyids.pipeline.target_search import mean_cosines


def vectors(n, d, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n_tasks", [1, 3])
@pytest.mark.parametrize(("n", "d", "q"), [(40, 3, 1), (300, 17, 7), (400, 8, 12)])
def test_round_robin_is_the_definition(n, d, q, n_tasks, dtype):
    x, targets = vectors(n, d, 1, dtype), vectors(q, d, 2).astype(float)
    tasks = [str(i * i % n_tasks) for i in range(q)]
    for budget in (1, n // 3, n):
        expected = reference.round_robin(x.astype(float), targets, tasks, budget)
        for length in (1, 5, None):
            picks = nearest.round_robin(
                np.split(x, [n // 7, n // 2]), targets, budget, tasks=tasks, list_length=length
            )
            np.testing.assert_array_equal(picks.rows, expected)


def test_lists_are_exact_among_rows_that_float32_cannot_tell_apart(monkeypatch):
    """Cosines that differ by less than float32's error, over many blocks."""
    monkeypatch.setattr(nearest, "BLOCK_ROWS", 64)
    rng = np.random.default_rng(0)
    base = rng.normal(size=96)
    x = (base + 1e-4 * rng.normal(size=(1500, 96))).astype(np.float32)
    target = base[None] + 1e-4
    units, queries = nearest.unit_rows(x.astype(float)), nearest.as_targets(target, 96)
    cosines = (units * queries[0]).sum(axis=1)
    single = (units.astype(np.float32) @ queries[0].astype(np.float32)).astype(float)
    expected = np.lexsort((np.arange(len(x)), -cosines))[:50]
    assert np.lexsort((np.arange(len(x)), -single))[:50].tolist() != expected.tolist()
    (rows,), _ = nearest.nearest([x[:700], x[700:]], queries, 50)
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("repeated", [1, 40])
def test_lists_put_together_of_parts_are_those_of_the_whole(repeated):
    """Each part is told what cosine those before it have made useless; many are equal."""
    x = np.repeat(vectors(1000 // repeated, 12), repeated, axis=0)
    x = x[np.random.default_rng(1).permutation(len(x))]
    queries, taken = (
        nearest.as_targets(vectors(6, 12, 2).astype(float), 12),
        np.arange(1000) % 9 < 2,
    )
    whole = nearest.nearest([x], queries, 30, taken=taken)
    lists, brought = nearest.NearestLists(6, 30), []
    for start in range(0, len(x), 100):
        part = slice(start, start + 100)
        rows, cosines = nearest.nearest(
            [x[part]], queries, 30, taken=taken[part], floors=lists.floors
        )
        brought.append(sum(map(len, rows)))
        for query, found in enumerate(rows):
            lists.add(query, start + found, cosines[query])
    for query in range(6):
        np.testing.assert_array_equal(lists.rows[query], whole[0][query])
        np.testing.assert_array_equal(lists.cosines[query], whole[1][query])
    assert brought[-1] < brought[0] / 2


def test_equal_rows_go_to_the_lower_one_and_a_list_stays_short():
    x = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    picks = nearest.round_robin(x, x[[60, 60]].astype(float), 60, list_length=2).rows
    assert picks[:50].tolist() == list(range(50, 100))
    assert picks[50:].tolist() == list(range(10))  # all others are equally far


def test_a_row_of_zeros_is_near_nothing():
    x = np.vstack([np.zeros(3), np.eye(3)]).astype(np.float32)
    assert mean_cosines(x, np.eye(3)[:1], 1).tolist() == [0, 1, 0, 0]


def test_tasks_share_alike_however_many_rows_they_have():
    x = np.repeat(np.eye(3, dtype=np.float32), 30, axis=0)
    targets = np.eye(3)[[0, 0, 0, 0, 1]]
    picks = nearest.round_robin(x, targets, 40, tasks=list("aaaab")).rows
    assert np.bincount(picks // 30).tolist() == [20, 20]


def test_whitening_is_the_definition_and_changes_with_nothing_but_the_rows():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3000, 12)) * np.geomspace(1, 0.05, 12) + 0.5).astype(np.float32)
    others = x[:200].astype(float)
    found = whitening.fit_whitening([x], 7)
    white = nearest.unit_rows(found(nearest.unit_rows(others)))
    expected = nearest.unit_rows(reference.whiten(x.astype(float), others, 7))
    signs = np.sign((white * expected).sum(axis=0))  # of an eigenvector: no cosine sees it
    np.testing.assert_allclose(white, expected * signs, atol=1e-4)
    cut = whitening.fit_whitening(np.split(x, [17, 1999]), 7)
    np.testing.assert_array_equal(cut.matrix, found.matrix)
    np.testing.assert_array_equal(cut.mean, found.mean)
    one = np.concatenate([found(nearest.unit_rows(others[i : i + 1])) for i in range(200)])
    np.testing.assert_array_equal(one, found(nearest.unit_rows(others)))  # exact products
    assert len(whitening.fit_whitening([x]).matrix) == 12


def test_whitening_hears_the_direction_that_tells_apart():
    rng = np.random.default_rng(1)
    loud, quiet = rng.normal(size=(400, 3)) * 2, rng.choice([-0.3, 0.3], 400)
    x = np.column_stack([loud, quiet]).astype(np.float32)
    target = x[quiet > 0][:3].astype(float)
    share = {}
    for whiten in (False, True):
        pool = pool_from_arrays(embeddings=x, target=target)
        rows = get_method("rds")(pool, 60, whiten=whiten)
        share[whiten] = (quiet[rows] > 0).mean()
    assert share[True] > share[False] + 0.1


def test_bad_vectors_are_named():
    x = vectors(10, 4)
    for target, message in (
        (np.zeros((2, 4)), "target row 0 is zero"),
        (np.ones((2, 3)), r"shape \(2, 3\), expected \(rows, 4\)"),
        (np.full((1, 4), np.nan), "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest.round_robin(x, target, 3)
    with pytest.raises(ValueError, match="all vectors are alike"):
        whitening.fit_whitening([np.ones((9, 4), np.float32)])


def test_a_pool_without_rows_is_views_around_them():
    x = vectors(50, 4)
    pool = pool_from_arrays(
        embeddings=[x[:20], x[20:]], lengths=np.arange(50), row_ids=range(0, 100, 2)
    )
    left = pool.without([0, 2, 38, 40, 41, 98])
    assert left.row_ids.tolist() == [i for i in range(0, 100, 2) if i not in (0, 2, 38, 40, 98)]
    np.testing.assert_array_equal(np.concatenate(left.embeddings), x[left.row_ids // 2])
    np.testing.assert_array_equal(left.lengths, left.row_ids // 2)
    assert all(np.shares_memory(part, x) for part in left.embeddings)
    assert pool.without([1, 3]) is pool


# ---- near copies ---------------------------------------------------------------------------------


def row(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


QUESTION = (
    "A farmer has 12 cows and sells a third of them, then buys 5 more. How many are left now?"
)


def test_near_copies_are_known_by_their_words():
    known = NearCopies([row(QUESTION, "He sells 4, so 8 remain; with 5 more he has 13 cows.")])
    answer = "He sells 4, so 8 remain; with 5 more he has 13 cows."
    for copy in (
        row(QUESTION, answer),
        row(QUESTION.upper() + "!", answer),  # letters and marks
        row(f"  {QUESTION}\n", "13"),  # another answer to the same question
        row("Q: " + QUESTION, answer),
        row(QUESTION.replace("farmer", "woman"), answer),
    ):
        assert copy in known
    for other in (
        row("How many cows are left?", answer[:20]),
        row("A farmer has 40 goats and gives away half, then finds 7. How many goats?", "27"),
        row("", ""),
    ):
        assert other not in known


# ---- the commands --------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def selected(result):
    assert result.exit_code == 0, result.output
    with open(result.output.splitlines()[-1], "rb") as file:
        return [orjson.loads(line)["_pyids_id"] for line in file]


@pytest.fixture
def target(pool, tmp_path):
    """Six rows of the pool's first topic and their vectors: all of them stand in the pool."""
    rows = np.flatnonzero(pool.topics == 0)[:6]
    path = tmp_path / "dev.jsonl"
    path.write_bytes(b"".join(orjson.dumps(pool.rows[i]) + b"\n" for i in rows))
    np.save(tmp_path / "dev.npy", np.load(pool.vectors)[rows])
    return {"path": path, "vectors": tmp_path / "dev.npy", "rows": rows}


def options(pool, target, folder, *more):
    return [
        *(pool.path, "--embeddings-file", pool.vectors, "--target", target["path"]),
        *("--target-embeddings-file", target["vectors"], "--output-dir", folder, *more),
    ]


def test_rds_selects_rows_like_the_target_but_not_the_target(pool, target, tmp_path):
    base = options(pool, target, tmp_path / "run", "--budget", 50)
    rows = selected(invoke("select", *base, "--method", "rds"))
    assert len(set(rows)) == 50
    assert (pool.topics[rows] == 0).all()
    assert not set(rows) & set(target["rows"].tolist())
    white = selected(invoke("select", *base, "--method", "rds", "--set", "whiten=true"))
    assert white != rows


@pytest.mark.parametrize("method", ["random", "km-random", "longest"])
def test_no_method_selects_what_repeats_the_target(method, pool, target, tmp_path):
    base = options(pool, target, tmp_path / "run", "--method", method, "--clusters", 4)
    rows = selected(invoke("select", *base, "--budget", 394))
    assert not set(rows) & set(target["rows"].tolist())
    result = invoke("select", *base, "--budget", 395)
    assert result.exit_code == 2
    assert "above the 394 rows that are left, for others repeat the target" in result.output


def test_a_run_folder_serves_other_targets(pool, target, tmp_path):
    base = options(pool, target, tmp_path / "run", "--budget", 20)
    first = selected(invoke("select", *base, "--method", "rds"))
    other = tmp_path / "other.jsonl"
    other.write_bytes(orjson.dumps(pool.rows[0]) + b"\n")
    np.save(tmp_path / "other.npy", np.load(pool.vectors)[:1])
    again = invoke(
        *("select", tmp_path / "run", "--method", "rds", "--budget", 20, "--target", other),
        *("--target-embeddings-file", tmp_path / "other.npy", "--to", tmp_path / "o.jsonl"),
    )
    assert set(selected(again)) != set(first)


def test_what_is_wrong_with_a_target_is_one_line(pool, target, tmp_path):
    base = [pool.path, "--embeddings-file", pool.vectors, "--budget", 9, "--method", "rds"]
    base += ["--output-dir", tmp_path / "run"]
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": [{"role": "user", "content": "no answer"}]}) + "\n")
    good, made = ["--target", target["path"]], ["--target-embeddings-file", target["vectors"]]
    np.save(tmp_path / "short.npy", np.ones((5, 16), np.float32))
    np.save(tmp_path / "wide.npy", np.ones((6, 17), np.float32))
    for more, message in (
        ([], "needs --target"),
        (made, "belongs to --target"),
        (good, "name them with --target-embeddings-file"),
        ([*good, "--target-embeddings-file", tmp_path / "short.npy"], "5 vectors for 6 target"),
        ([*good, "--target-embeddings-file", tmp_path / "wide.npy"], "17 dimensions"),
        ([*good, *made, "--target-by", "kind"], "no task in column 'kind'"),
        (["--target", tmp_path / "none.jsonl", *made], "no such file"),
        (["--target", bad, *made], "bad.jsonl line 1"),
    ):
        result = invoke("select", *base, *more)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert len(result.output.strip().splitlines()[-1]) < 400
