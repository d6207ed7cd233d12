"""Budgets in tokens and quotas of groups: in draws, in rounds, by one method."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import pyids
from pyids.cli import cli
from pyids.errors import ConfigError, DataError
from pyids.pipeline import token_draw
from pyids.pipeline.token_draw import Part, TokenPool, draw_tokens
from pyids.quotas import level
from pyids.sampling import allocate

NOBODY = np.empty(0, np.int64)


def hostile(seed, n_rows, n_cells, tail):
    """Rows of one token, of 100,000, and of a heavy tail between; cells of very unequal sizes."""
    rng = np.random.default_rng(seed)
    tokens = np.maximum(1, (rng.pareto(tail, n_rows) * 20)).astype(np.int64)
    tokens[rng.random(n_rows) < 0.1] = 1
    tokens[rng.random(n_rows) < 0.01] = 100_000
    cells = (rng.random(n_rows) ** 3 * n_cells).astype(np.int32)
    return np.minimum(tokens, 100_000), cells


def draw(
    tokens, cells, n_cells, budget, *, cuts=(), seed=0, threads=1, log_weights=None, by_others=False
):
    units = np.bincount(cells, weights=tokens, minlength=n_cells).astype(np.int64)
    quotas = allocate(budget, units, units, seed=seed)
    ids = np.arange(len(tokens))

    def fill(pool):
        for part in np.split(ids, cuts):
            weights = None if log_weights is None else log_weights[part]
            pool.add(Part(part, cells[part], tokens[part], weights), NOBODY, seed, threads)

    def fill_by_others(pool):
        """Each part goes through a pool of its own, as on an engine."""
        for part in np.split(ids, cuts):
            weights = None if log_weights is None else log_weights[part]
            other = TokenPool(**pool.how(), floors=pool.floors.copy())
            other.add(Part(part, cells[part], tokens[part], weights), NOBODY, seed, threads)
            pool.merge(other.found())

    groups = np.zeros(n_cells, np.int64)
    fill = fill_by_others if by_others else fill
    return draw_tokens(fill, quotas, groups, [budget], seed=seed)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 400),
    st.integers(1, 30),
    st.floats(0.5, 3),
    st.floats(0, 1),
)
def test_a_draw_ends_less_than_a_row_below_its_budget(seed, n_rows, n_cells, tail, part):
    tokens, cells = hostile(seed, n_rows, n_cells, tail)
    budget = max(1, int(part * tokens.sum()))
    drawn = draw(tokens, cells, n_cells, budget)
    assert len(set(drawn.tolist())) == len(drawn)
    assert budget - tokens.max() < tokens[drawn].sum() <= budget


@pytest.mark.parametrize("held", [1, 1 << 16])
def test_shards_threads_and_memory_change_nothing(held, monkeypatch):
    """Also where rows must be let go meanwhile, and where that was too early."""
    monkeypatch.setattr(token_draw, "_MIN_HELD", held)
    rng = np.random.default_rng(1)
    tokens, cells = hostile(5, 3000, 40, 1.0)
    weights = rng.normal(size=3000)
    for budget in (50, 3000, int(tokens.sum()) // 2, int(tokens.sum())):
        whole = draw(tokens, cells, 40, budget, log_weights=weights, threads=2)
        cut = draw(tokens, cells, 40, budget, cuts=(1, 700, 701, 2900), log_weights=weights)
        np.testing.assert_array_equal(whole, cut)
        shared = draw(
            *(tokens, cells, 40, budget),
            cuts=(1, 700, 701, 2900),
            log_weights=weights,
            by_others=True,
        )
        np.testing.assert_array_equal(whole, shared)
    assert len(whole) == 3000


def test_clusters_whose_part_is_less_than_a_row_are_drawn_from_as_often_as_it_says():
    """200 clusters of rows of 1,000 tokens, each with a part of 300, beside one of short rows."""
    tokens = np.r_[np.full(12_000, 10), np.full(400, 1000)]
    cells = np.r_[np.zeros(12_000), 1 + np.arange(400) // 2].astype(np.int32)
    shares = np.r_[60_000, np.full(200, 300)]
    ids, parts = np.arange(len(tokens)), []
    for seed in range(30):
        drawn = draw_tokens(
            lambda pool, seed=seed: pool.add(Part(ids, cells, tokens, None), NOBODY, seed, 1),
            shares,
            np.zeros(201, np.int64),
            [120_000],
            seed=seed,
        )
        assert np.bincount(cells[drawn])[1:].max() <= 1
        parts.append(tokens[drawn][cells[drawn] > 0].sum())
    # A draw's deviation is at most that of 200 draws of 0.3; four errors, and the last row.
    assert abs(np.mean(parts) - 60_000) < 4 * 1000 * np.sqrt(200 * 0.21 / 30) + 1000


def test_a_row_beyond_the_budget_does_not_end_the_draw():
    tokens = np.r_[[100_000] * 5, [10] * 95]
    cells = np.zeros(100, np.int32)
    for seed in range(20):
        drawn = draw(tokens, cells, 1, 500, seed=seed)
        assert tokens[drawn].sum() == 500


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 2000))
def test_what_is_had_already_is_charged_by_a_level(seed, n, target):
    rng = np.random.default_rng(seed)
    shares, charge = rng.random(n) * (rng.random(n) < 0.8), rng.integers(0, 300, n) * 1.0
    t = level(shares, charge, target)
    if shares.any():
        assert np.maximum(0, t * shares - charge)[shares > 0].sum() == pytest.approx(target)


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def sized(pool, tmp_path):
    """The pool with answers of 1 to 400 words, and with sources."""
    rng = np.random.default_rng(3)
    words = np.minimum(400, 1 + (rng.pareto(1.1, len(pool.rows)) * 5)).astype(int)
    for n, row in enumerate(pool.rows):
        row["messages"][1]["content"] = " ".join(["word"] * words[n]) + f" {n}"
        row["source"] = ("code", "math", "chat", "chat", "chat")[n % 5]
    pool.write()
    return pool


def tokens_of_folder(folder):
    counts = {}
    for path in sorted((folder / "tokens").glob("*.npy")):
        ids = np.load(folder / "keep" / path.name)
        counts |= dict(zip(ids.tolist(), np.load(path).tolist(), strict=True))
    return counts


def drive(folder, **options):
    """Ask and tell to the end; give the ids of each round."""
    with pyids.Selection.open(folder, **options) as selection:
        drawn = []
        while selection.draw():
            drawn.append(selection.rounds.selected(selection.round).tolist())
            selection.tell({int(row): float(row % 7) for row in selection.probes()})
        selection.finish()
    return drawn


def read(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("unit", ["response-tokens", "tokens"])
def test_a_run_by_tokens(sized, tiny, tmp_path, unit):
    from pyids.chat.template import encode
    from pyids.models.load import load_tokenizer

    options = sized.options(model=tiny, budget="3K-tokens", budget_unit=unit)
    drawn = drive(tmp_path / "run", **options)
    counts = tokens_of_folder(tmp_path / "run")
    tokenizer = load_tokenizer(tiny)
    for row in (0, 7, 399):
        encoded = encode(sized.rows[row]["messages"], tokenizer)
        whole = unit == "tokens"
        assert counts[row] == (len(encoded.input_ids) if whole else encoded.response_mask.sum())
    spent = 0
    for n, ids in enumerate(drawn):
        spent += sum(counts[row] for row in ids)
        assert 1000 * (n + 1) - max(counts.values()) < spent <= 1000 * (n + 1)
    manifest = orjson.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert manifest["budget"] == {"unit": unit, "total": 3000, "drawn": spent}
    from pyids.pipeline.replay import replay_rounds

    assert replay_rounds(tmp_path / "run") == []
    again = drive(tmp_path / "two", **options, workers=2, threads=1)
    assert again == drawn
    assert (tmp_path / "two" / "selected.jsonl").read_bytes() == (
        tmp_path / "run" / "selected.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("name", ["quotas.npy", "selected.npy"])
def test_a_damaged_draw_by_tokens_is_made_again(sized, tiny, tmp_path, name):
    drive(tmp_path / "run", **sized.options(model=tiny, budget="3K-tokens"))
    path = tmp_path / "run" / "rounds" / "2" / name
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    pyids.Selection.open(tmp_path / "run").close()
    assert path.read_bytes() == before


def test_groups_keep_their_bounds_in_every_unit(sized, tiny, tmp_path):
    bounds = {"group_by": "source", "cap": ["chat=40%"], "floor": ["code=35%"]}
    drawn = drive(tmp_path / "rows", **sized.options(budget=100, **bounds))
    sources = [sized.rows[row]["source"] for ids in drawn for row in ids]
    assert len(sources) == 100
    assert sources.count("chat") == 40
    assert sources.count("code") >= 35
    manifest = orjson.loads((tmp_path / "rows" / "manifest.json").read_bytes())
    assert manifest["budget"]["groups"]["chat"] == {
        "drawn": 40, "held": 240, "floor": 0, "cap": 40
    }  # fmt: skip
    drawn = drive(tmp_path / "run", **sized.options(model=tiny, budget="4K-tokens", **bounds))
    counts = tokens_of_folder(tmp_path / "run")
    longest = max(counts.values())
    chosen = [row for ids in drawn for row in ids]
    assert 4000 - longest < sum(counts[row] for row in chosen) <= 4000
    of = {"chat": 0, "code": 0, "math": 0}
    for row in chosen:
        of[sized.rows[row]["source"]] += counts[row]
    assert of["chat"] < 1600 + longest
    assert of["code"] > 1400 - longest


def test_without_a_bound_that_binds_groups_change_no_totals(sized, tmp_path):
    drawn = drive(tmp_path / "run", **sized.options(group_by="source", cap=["chat=100%"]))
    sources = [sized.rows[row]["source"] for ids in drawn for row in ids]
    assert 30 <= sources.count("chat") <= 42  # 36 of 60 expected


def test_a_mix_is_kept(sized, tmp_path):
    mix = tmp_path / "mix.yaml"
    mix.write_text("code: 2\nmath: 1\n")
    options = sized.options(group_by="source", proportional_to=str(mix))
    drawn = drive(tmp_path / "run", **options)
    sources = [sized.rows[row]["source"] for ids in drawn for row in ids]
    assert sources.count("code") == 40
    assert sources.count("math") == 20
    mix.write_text("code: 1\nmath: 1\n")  # the folder holds the mix itself
    with pytest.raises(ConfigError, match="proportional_to was"):
        pyids.Selection.open(tmp_path / "run", **options)


def test_equal_parts_are_a_mix_of_ones(sized, tmp_path):
    names = ("chat", "code", "math")

    def draw(name, mix, budget=60):
        options = sized.options(group_by="source", proportional_to=mix, budget=budget)
        drawn = drive(tmp_path / name, **options)
        rows = [row for ids in drawn for row in ids]
        sources = [sized.rows[row]["source"] for row in rows]
        return rows, [sources.count(source) for source in names]

    rows, counts = draw("equal", "equal")
    assert counts == [20, 20, 20]
    assert draw("ones", dict.fromkeys(names, 1))[0] == rows
    # Groups that have less than their part give all of it.
    n = len(sized.rows) // 5
    assert draw("many", "equal", 3 * n + 30)[1] == [n + 30, n, n]


@pytest.mark.parametrize("mix", ["equal", "mix.yaml"])
def test_a_mix_is_named_on_the_command_line(sized, tmp_path, mix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mix.yaml").write_text("chat: 1\ncode: 1\nmath: 1\n")
    command = ["select", str(sized.path), "--method", "random", "--budget", "60"]
    command += ["--group-by", "source", "--proportional-to", mix, "--output-dir", "run"]
    shown = CliRunner().invoke(cli, command)
    assert shown.exit_code == 0, shown.output
    sources = [
        row["source"]
        for row in map(orjson.loads, Path("run/selected-random.jsonl").read_bytes().splitlines())
    ]
    assert [sources.count(source) for source in ("chat", "code", "math")] == [20, 20, 20]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"floor": ["code=70%", "math=50%"]}, "= 72 rows, 12 above the budget of 60"),
        ({"cap": ["chat=10%", "code=10%", "math=10%"]}, "= 18 rows, 42 below the budget of 60"),
        ({"floor": ["code=81"], "budget": 100}, "the pool has 80 that may be drawn"),
        ({"cap": ["cod=10%"]}, "which is no value of 'source' in the pool (it has: chat, code"),
    ],
)
def test_bounds_that_no_selection_keeps_are_answered_with_numbers(sized, tmp_path, options, words):
    with pytest.raises(ConfigError) as caught:
        pyids.Selection.open(tmp_path / "run", **sized.options(group_by="source") | options)
    assert words in str(caught.value)


def test_a_row_without_a_group_is_named(sized, tmp_path):
    del sized.rows[17]["source"]
    sized.write()
    with pytest.raises(DataError, match=r"pool\.jsonl line 18: there is no group in column"):
        pyids.Selection.open(tmp_path / "run", **sized.options(group_by="source", cap=["chat=10%"]))


def test_token_budgets_that_cannot_be_drawn_are_answered_with_numbers(sized, tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"is above the \d+ of the pool's 400 rows"):
        pyids.Selection.open(tmp_path / "a", **sized.options(model=tiny, budget="1M-tokens"))
    with pytest.raises(ConfigError, match="and the shortest row has"):
        pyids.Selection.open(tmp_path / "b", **sized.options(model=tiny, budget="6-tokens"))


# ---- one method ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["random", "length-stratified", "k-center", "km-random"])
def test_a_method_by_tokens(sized, tiny, tmp_path, method):
    options = sized.options(model=tiny, budget="2K-tokens", output_dir=str(tmp_path / "run"))
    result = pyids.select(method, **options)
    counts = tokens_of_folder(tmp_path / "run")
    spent = sum(counts[row] for row in result.ids.tolist())
    assert 2000 - max(counts.values()) < spent <= 2000
    assert len(set(result.ids.tolist())) == len(result.ids)
    again = pyids.select(method, **options | {"workers": 2, "threads": 1})
    np.testing.assert_array_equal(again.ids, result.ids)


def test_a_method_within_bounds(sized, tiny, tmp_path):
    options = sized.options(group_by="source", output_dir=str(tmp_path / "run"))
    result = pyids.select("random", **options, cap=["chat=40%"], floor=["math=20"])
    sources = [sized.rows[row]["source"] for row in result.ids]
    assert len(sources) == 60
    assert sources.count("chat") == 24
    assert sources.count("math") >= 20
    # A bound that binds nothing changes nothing.
    free = pyids.select("random", **sized.options(output_dir=str(tmp_path / "run")))
    loose = pyids.select("random", **options, cap=["chat=90%"])
    np.testing.assert_array_equal(free.ids, loose.ids)
    mixed = pyids.select("k-center", **options, proportional_to={"code": 1, "math": 2})
    sources = [sized.rows[row]["source"] for row in mixed.ids]
    assert (sources.count("code"), sources.count("math")) == (20, 40)
    with pytest.raises(ConfigError, match="12 above the budget of 60"):
        pyids.select("random", **options, floor=["code=70%", "math=50%"])


def test_a_selection_by_other_tokens_leaves_those_of_the_run(sized, tiny, tmp_path):
    drive(tmp_path / "run", **sized.options(model=tiny, budget="2K-tokens"))
    before = tokens_of_folder(tmp_path / "run")
    from pyids.methods.select import select_from_folder
    from pyids.store.manifest import verify

    select_from_folder(tmp_path / "run", "random", budget=2000, budget_unit="tokens")
    assert tokens_of_folder(tmp_path / "run") == before
    path = select_from_folder(tmp_path / "run", "random", budget=20)
    assert len(read(path)) == 20  # rows, though the run counted tokens
    assert verify(tmp_path / "run") == []


# ---- what is shown -------------------------------------------------------------------------------


def test_a_dry_run_shows_quotas_and_exclusions(sized, tiny, tmp_path):
    """The quotas that it shows are the bounds of the run that follows; nothing is written."""
    from pyids.pipeline.preflight import plan

    held = tmp_path / "held-out.jsonl"
    held.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in sized.rows[:7]))
    options = sized.options(
        model=tiny,
        budget="1.2K-tokens",
        group_by="source",
        cap=["chat=40%"],
        floor=["code=10%"],
        exclude=str(held),
        exclude_ngram=450,  # answers are one word again and again
        already=str(held),
        output_dir=str(tmp_path / "run"),
    )
    shown = plan(pyids.RunConfig(**options))
    assert "budget    1,200 response tokens (about " in shown
    assert "chat 480 of " in shown
    assert "excluded  7 rows that match held-out rows (7 exact)" in shown
    assert "already   7 rows of the pool are trained on" in shown
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="the floor 1000000 is 1000000 of 1200 response tok"):
        plan(pyids.RunConfig(**options | {"floor": ["code=1M"]}))


@pytest.fixture
def shared_out(sized, tiny, tmp_path):
    """Options of a budget by tokens within bounds, with rows that are never drawn."""
    held = tmp_path / "held-out.jsonl"
    held.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in sized.rows[:7]))
    return [
        *("--budget", "1.2K-tokens", "--group-by", "source", "--cap", "chat=40%"),
        *("--floor", "code=10%", "--exclude", str(held), "--exclude-ngram", "450"),
        *("--already", str(held), "--model", tiny),
    ]


def invoke(*arguments):
    from click.testing import CliRunner

    from pyids.cli import cli

    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def files(folder):
    """Name all that is not about hashes or locks, with the times of change."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {path: path.stat().st_mtime_ns for path in paths}


QUOTAS = (
    "budget    1,200 response tokens (about ",
    "chat 480 of ",
    "excluded  7 rows that match held-out rows (7 exact)",
    "already   7 rows of the pool are trained on",
)


def test_a_dry_run_of_select_and_ask_shows_the_same(sized, shared_out, tmp_path):
    vectors = ["--embeddings-file", sized.vectors, "--dry-run"]
    run = tmp_path / "run"
    asked = invoke("ask", run, "--data", sized.path, *shared_out, *vectors)
    method = ["--method", "km-random", "--output-dir", run]
    chosen = invoke("select", sized.path, *method, *shared_out, *vectors)
    for result in (asked, chosen):
        assert result.exit_code == 0, result.output
        assert [words for words in QUOTAS if words not in result.output] == []
    assert "by your own trainer" in asked.output
    assert "method    km-random: Draw from each cluster its share" in chosen.output
    assert not run.exists()
    refused = invoke("select", sized.path, *method, *shared_out, *vectors, "--set", "no=1")
    assert "has no option 'no'" in refused.output


def test_a_dry_run_of_a_selection_from_a_folder(sized, shared_out, tmp_path):
    """It changes nothing there; rows that share nothing among clusters say so."""
    run = tmp_path / "run"
    assert invoke("select", sized.path, "--method", "random", "--budget", 20, "--output-dir", run,
                  "--embeddings-file", sized.vectors).exit_code == 0  # fmt: skip
    options = ["--method", "longest", *shared_out]
    invoke("select", run, *options, "--dry-run")
    before = files(run)
    result = invoke("select", run, *options, "--dry-run")
    assert result.exit_code == 0, result.output
    assert [words for words in QUOTAS if words not in result.output] == []
    assert "longest shares nothing among clusters" in result.output
    assert files(run) == before
    assert not (run / "selected-longest.jsonl").exists()


def test_a_plan_shows_quotas_by_its_sample(sized, shared_out, tmp_path):
    """Of a pool as small as this one the sample is all of it."""
    arguments = [sized.path, *shared_out, "--embeddings-file", sized.vectors]
    result = invoke("plan", *arguments)
    assert result.exit_code == 0, result.output
    words = (*QUOTAS[:2], "excluded  about 7 rows", "already   about 7 rows")
    assert [word for word in words if word not in result.output] == []
    result = invoke("plan", *arguments, "--floor", "math=95%")
    assert "does not fit: the floors come to " in result.output
    by_file = ["--group-by", "file", "--cap", f"{sized.path.name}=100%"]
    result = invoke("plan", *arguments[:1], *arguments[-2:], "--budget", 40, *by_file)
    assert f"groups    rows, about: {sized.path.name} 40 of 400" in result.output


def test_the_report_says_what_was_capped_and_excluded(sized, tmp_path):
    from pyids.report.collect import collect

    held = tmp_path / "held-out.jsonl"
    held.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in sized.rows[:7]))
    options = sized.options(group_by="source", cap=["chat=10%"], exclude=str(held))
    options["exclude_ngram"] = 450
    drive(tmp_path / "run", **options)
    data = collect(tmp_path / "run").data
    assert ["budget", "60 of 60 rows"] in data["provenance"]
    assert ["group chat", "6 of 237 rows (floor 0, cap 6)"] in data["provenance"]
    assert {
        "name": "excluded: exact", "rows": 7, "kind": "note", "file": "excluded.jsonl"
    } in data["funnel"]  # fmt: skip


@pytest.mark.parametrize("budget", ["2K-tokens", 90])
def test_screened_candidates_keep_the_budget_and_the_bounds(
    sized, tiny, tmp_path, monkeypatch, budget
):
    from pyids.pipeline.replay import replay_rounds
    from pyids.scoring import screening

    def scores(rows, clusters, config, *, scratch, engine):
        said = np.array([int(row[1]["content"].split()[-1]) for row in rows])
        return {"outlier_score": (said % 5 == 0) * 1.0}

    monkeypatch.setattr(screening, "screen", scores)
    options = sized.options(
        model=tiny, budget=budget, oversample=3, group_by="source", cap=["chat=40%"]
    )
    drawn = [row for rows in drive(tmp_path / "run", **options) for row in rows]
    assert (tmp_path / "run" / "rounds" / "1" / "candidates.parquet").exists()
    chat = [row for row in drawn if sized.rows[row]["source"] == "chat"]
    if budget == 90:
        assert len(drawn) == 90
        assert len(chat) == 36
    else:
        counts = tokens_of_folder(tmp_path / "run")
        longest = max(counts.values())
        assert 2000 - longest < sum(counts[row] for row in drawn) <= 2000
        assert sum(counts[row] for row in chat) < 800 + longest
    assert replay_rounds(tmp_path / "run") == []


def test_bounds_stand_in_a_file_of_options(tmp_path):
    from pyids.config import load_config, make_config

    path = tmp_path / "run.yaml"
    path.write_text(
        "data: pool.jsonl\nbudget: 20M-tokens\ngroup-by: source\n"
        "cap: {code: 30%, chat: 2M}\nfloor: {math: 5%}\nproportional-to: {code: 2, math: 1}\n"
    )
    config = make_config(**load_config(path))
    assert config.cap == {"code": "30%", "chat": 2_000_000}
    assert config.proportional_to == {"code": 2.0, "math": 1.0}
    path.write_text(config.to_yaml())
    assert make_config(**load_config(path)) == config


def test_tokens_and_groups_are_those_of_the_rows_that_stay(sized, tiny, tmp_path):
    """Near-duplicates go after rows have been counted."""
    vectors = np.load(sized.vectors)
    vectors[1::2] = vectors[::2]
    np.save(sized.vectors, vectors)
    options = sized.options(
        model=tiny,
        budget="1K-tokens",
        group_by="source",
        cap=["chat=40%"],
        semdedup_threshold=0.9999,
    )
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        assert selection.store.kept == 200
        draws, counts = selection.draws, tokens_of_folder(tmp_path / "run")
        ids = np.arange(0, 400, 2)
        cells, units = draws.cells.of_rows(ids)
        assert units.tolist() == [counts[row] for row in ids.tolist()]
        groups = [draws.cells.names[cell] for cell in cells // draws.cells.n_clusters]
        assert groups == [sized.rows[row]["source"] for row in ids]
        assert draws.cells.total()[1].sum() == units.sum()
    drawn = [row for rows in drive(tmp_path / "run") for row in rows]
    assert all(row % 2 == 0 for row in drawn)
    assert 1000 - max(counts.values()) < sum(counts[row] for row in drawn) <= 1000
