"""The quality benchmark in miniature: its pools, a model of its own, trials, tables."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash

from pyids.models import hub, load

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("reasoning_gym", reason="needs the demo extra")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def quality():
    """Import the benchmark, a package beside the others; return its modules by name."""
    names = (
        *("pool", "model", "prepare", "trials", "grids", "table", "axes", "report"),
        *("measure", "results", "__main__"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield {name: importlib.import_module(f"quality.{name}") for name in names}


def test_its_modules_are_found_in_the_package_alone(quality):
    assert {module.__name__ for module in quality.values()} == {f"quality.{n}" for n in quality}
    for name in quality:
        file = getattr(sys.modules.get(name), "__file__", None)
        assert file is None or BENCHMARKS not in Path(file).parents


@pytest.fixture(scope="module")
def rows(quality):
    return quality["pool"].stand_in(700)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_procedural_rows_are_the_same_in_every_process(quality, hash_seed):
    program = (
        "import xxhash, json, demo_pool;"
        "print(xxhash.xxh3_64_hexdigest(json.dumps(demo_pool.make_pool(3000, seed=0)).encode()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=True,
    )
    demo_pool = sys.modules["demo_pool"]  # the pool of the benchmark imports it
    here = xxhash.xxh3_64_hexdigest(json.dumps(demo_pool.make_pool(3000, seed=0)).encode())
    assert out.stdout.strip() == here


def test_a_split_shares_no_text_and_loses_no_row(quality, rows):
    pool = quality["pool"]
    again = [{**rows[0], "id": "again"}]
    parts = pool.split([*rows, *again], per_skill=3)
    texts = [{pool.text_of(row) for row in part} for part in (parts.pool, parts.dev, parts.test)]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert len(parts.pool) == len(texts[0]) == len(parts.positions)
    assert [rows[i]["messages"] for i in parts.positions] == [r["messages"] for r in parts.pool]
    warm = {pool.text_of(row) for row in parts.warm_up}
    assert not warm & (texts[0] | texts[1] | texts[2])


def test_garbage_is_planted_in_its_share_and_kinds(quality, rows):
    pool = quality["pool"]
    clean = pool.split(rows, 3).pool
    kinds = ("shuffled words", "boilerplate", "swapped", "echo")
    planted = pool.plant(clean, kinds, 0.3, seed=5)
    garbage = np.array([row["garbage"] for row in planted])
    assert (garbage != "").mean() == pytest.approx(0.3, abs=0.01)
    for kind in kinds:
        assert (garbage == kind).mean() == pytest.approx(0.075, abs=0.01)
    for row, original in zip(planted, clean, strict=True):
        if row["garbage"] in ("", "swapped", "echo"):
            assert row["messages"][0] == original["messages"][0]
        assert (row["messages"] == original["messages"]) == (row["garbage"] == "")
    assert planted == pool.plant(clean, kinds, 0.3, seed=5)


@pytest.mark.slow
def test_trials_train_measure_and_repeat(quality, tmp_path):
    trials, grids, table = (quality[name] for name in ("trials", "grids", "table"))
    model = quality["prepare"].prepare(
        tmp_path, None, n_stand_in=700, per_skill=4, pretrain_tokens=40_000, dtype="float32"
    )
    experiment = trials.Experiment(tmp_path, str(model), clusters=24, threads=2)
    entries = {"random": ("random", {}), "iterative": ("iterative", {"probes_per_cluster": 2})}
    grid = grids.bounds("dev", 48, (0,))
    grid += grids.trials(entries, "test-garbage", "dev", 48, 2)
    results = [trials.run_trial(experiment, trial) for trial in grid]
    by_name = {trial.name: result for trial, result in zip(grid, results, strict=True)}
    assert len(by_name) == len(grid) == 6

    # The command itself, which starts workers.
    options = ["--folder", tmp_path, "--workers", "1", "--only", "base"]
    command = [sys.executable, "-P", "-m", "quality", "run", "core", *options]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "1 trials, 1 to do" in out.stdout
    assert "base " in out.stdout, out.stderr

    base, reference = table.gap(results)
    assert table.macro(base) > np.mean(list(reference.values()))  # there is something to learn
    last = results[-1]
    assert [one["rows"] for one in last["rounds"]] == [16, 16, 16]
    assert last["rows"] == results[2]["rows"] == 48
    drawn = sum(sum(one["drawn"].values()) * one["rows"] for one in last["rounds"])
    assert drawn == pytest.approx(48 * sum(last["garbage"].values()))

    # A scorer that says nothing, or the opposite, leaves whole topics of garbage where they were.
    kinds = quality["pool"].TOPIC_KINDS
    runs = [one["rounds"] for one in results if one["trial"]["method"] == "iterative"]
    first, at_last = (
        np.mean([sum(run[n]["expected"][kind] for kind in kinds) for run in runs]) for n in (0, 2)
    )
    assert at_last < first / 2

    (tmp_path / "trials" / f"{grid[-1].name}.json").unlink()
    repeated = trials.run_trial(experiment, grid[-1])
    seconds = {key for key in last if key.endswith("seconds")}
    assert {k: repeated[k] for k in repeated if k not in seconds} == {
        k: last[k] for k in last if k not in seconds
    }

    rows = {row["label"]: row for row in table.tabulate(results)}
    assert rows["random"]["over"] == 0
    assert rows["iterative"]["seeds"] == [grids.FIRST_SEED, grids.FIRST_SEED + 1]
    ahead = table.beside(results)
    difference = rows["iterative"]["share"] - rows["random"]["share"]
    assert ahead["random"]["difference"] == pytest.approx(difference)
    if rows["random"]["share"] > 0:
        assert ahead["random"]["relative"] == pytest.approx(rows["iterative"]["over"])
    page = quality["report"].markdown(
        {"test-garbage": list(rows.values())}, {"test-garbage": ahead}, {"test-garbage": {}}
    )
    assert "| iterative |" in page
    assert quality["report"].plot({"test-garbage": list(rows.values())}).startswith("<svg")


def test_a_lost_skill_is_found_and_a_draw_is_none(quality):
    def result(seed, math, code):
        nll = {"math": math + 0.01 * seed, "code": code + 0.02 * (seed % 2)}
        return {"trial": {"seed": seed, "label": "x"}, "nll": nll}

    rng = np.random.default_rng(0)
    anchor = {s: result(s, 2.0, 3.0) for s in range(5)}
    worse = {s: result(s, 2.2 + 0.01 * rng.random(), 3.0) for s in range(5)}
    lost = quality["table"].lost_skills(worse, anchor, range(5))
    assert lost == ["math"]
    assert quality["table"].lost_skills(anchor, anchor, range(5)) == []


def test_without_a_reference_random_rows_are_the_unit(quality):
    table = quality["table"]
    random = [
        {"trial": {"method": "random", "label": "random", "seed": seed}, "nll": {"math": nll}}
        for seed, nll in ((0, 3.0), (1, 2.0))
    ]
    base = {"trial": {"method": "base", "label": "base"}, "nll": {"math": 4.0}}
    reference = {"trial": {"method": "reference", "label": "reference"}, "nll": {"math": 1.0}}
    start, end = table.gap([base, *random])
    assert end == {"math": 2.5}
    assert [table.share_closed(one, start, end) for one in random] == pytest.approx([2 / 3, 4 / 3])
    assert table.gap([base, reference, *random])[1] == {"math": 1.0}
    assert table.far_end([base, reference, *random]) == "reference"


def test_axes_compare_the_seeds_that_all_values_have(quality, tmp_path):
    def result(seed, nll, **options):
        changed = "".join(f", {key} {value}" for key, value in options.items())
        label = f"iterative{changed}" if changed else quality["axes"].PLAIN
        trial = {"pool": "p", "method": "iterative", "seed": seed, "label": label}
        return {
            "trial": {**trial, "options": {"probes_per_cluster": 4, **options}},
            "nll": {"math": nll},
        }

    ends = [
        {"trial": {"method": "base", "label": "base"}, "nll": {"math": 4.0}},
        {"trial": {"method": "reference", "label": "reference"}, "nll": {"math": 2.0}},
    ]
    trials = [result(0, 3.0), result(1, 3.2), result(2, 0.0), result(0, 3.4, rounds=1)]
    trials += [result(1, 3.6, rounds=1), result(0, 3.8, clusters=4), result(1, 3.8, scorer="x")]
    rng = np.random.default_rng(0)
    centers = 10 * rng.normal(size=(8, 4))
    np.save(tmp_path / "p.npy", centers[rng.integers(0, 8, 400)] + rng.normal(size=(400, 4)))
    found = quality["axes"].axes(tmp_path, [*ends, *trials], clusters=8)
    assert [(one["rounds"], one["seeds"]) for one in found["rounds"]] == [(1, [0, 1]), (3, [0, 1])]
    assert [one["share"] for one in found["rounds"]] == pytest.approx([0.25, 0.45])
    assert [one["clusters"] for one in found["clusters"]] == [4, 8]
    assert [one["share"] for one in found["clusters"]] == pytest.approx([0.1, 0.5])
    assert found["clusters"][0]["silhouette"] < found["clusters"][1]["silhouette"]
    page = quality["report"].markdown({"p": []}, {"p": {}}, {"p": found})
    assert "| 1 | 0.250 ±" in page


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_command_starts(path):
    if "ArgumentParser" not in path.read_text():
        pytest.skip("no command")
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_results_keep_a_trial_a_line(quality, tmp_path):
    results = quality["results"]
    trial = {"pool": "clean", "method": "random", "seed": 3, "options": {}, "label": "random"}
    one = {"trial": trial, "nll": {"math": 1.23456}, "garbage": {"spam": 0.12345}, "rows": 7}
    other = one | {"trial": trial | {"seed": 4, "options": {"k": 1}}, "nll": {"math": np.nan}}
    path, beside = tmp_path / "a.json", tmp_path / "b.json"
    results.write_results(path, {"rate": 3e-4}, [one])
    results.write_results(beside, {"with": ["a.json"]}, [other])
    assert len(path.read_text().splitlines()) == 4
    about, (read,) = results.read_results(path)
    assert about == {"rate": 3e-4}
    assert read["trial"] == trial
    assert read["nll"] == {"math": 1.2346}
    assert read["garbage"] == {"spam": 0.123}
    _, both = results.read_results(beside)
    assert [one["trial"]["seed"] for one in both] == [4, 3]
    assert both[0]["nll"] == {"math": None}


def test_the_last_number_counts(quality):
    last = quality["measure"].last_number
    assert last("So 3 + 4 = 7. #### 1,234") == 1234
    assert last("It costs $12.50.") == 12.5
    assert last("-3") == last("they lost -3.0")
    assert last("none") is None


def test_short_answers_are_the_same_in_batches(quality, tiny):
    measure, pool = quality["measure"], quality["pool"]
    model, tokenizer = load.load_model(hub.resolve_model(tiny))
    rows = [row["messages"] for row in pool.stand_in(40, seed=3)]
    alone, together = (
        measure.short_answers(model, tokenizer, rows, 64, "cpu", size) for size in (1, 7)
    )
    assert 5 < np.isfinite(alone[0]).sum() < len(rows)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_designs_are_tried_on_rows_and_seeds_of_no_table(quality):
    grids = quality["grids"]
    designs = grids.GRIDS["reader-designs"](600)
    assert {trial.held_out for trial in designs} == {"dev"}
    seen = {trial.seed for name in ("core", "clean", "reader") for trial in grids.GRIDS[name](600)}
    assert not seen & {trial.seed for trial in designs[2:]}
    assert len({trial.name for trial in designs}) == len(designs)


def test_grids_for_a_model_that_reads_pair_their_seeds(quality):
    grids = quality["grids"]
    grid, half, second = (
        grids.GRIDS[name](600) for name in ("reader", "reader-half", "reader-second")
    )
    for one in (grid, half, second):
        assert len({trial.name for trial in one}) == len(one)
        ends = [trial for trial in one if trial.method in quality["table"].BOUNDS]
        assert ends == one[:2]
        seeds = [trial.seed for trial in one[2:]]
        assert seeds == sorted(seeds)
        counted = {trial.label: 0 for trial in one[2:] if trial.method not in grids.SEEDLESS}
        for trial in one[2:]:
            if trial.label in counted:
                counted[trial.label] += 1
        closest = {"random", "iterative", "km-random"}
        for label, count in counted.items():
            seeds = 8 if label in closest else 4
            assert count == seeds * len({trial.pool for trial in one[2:]}), label
    assert {trial.budget for trial in half[2:]} == {300}
    # The end of the gap is ten times the rows that a method draws.
    assert grid[1].budget == 6000
    assert half[1].budget == 3000
    assert {trial.held_out for trial in second} == {"second-both"}
    assert {trial.pool for trial in second} == {"second"}


def test_what_training_made_worse_is_told(quality):
    forgotten = quality["table"].forgotten
    base = {"math": 2.0, "code": 2.0, "topic": 2.0}
    skills = {"math": (2.5, 0.1), "code": (2.05, 0.1), "topic": (1.0, 0.1)}
    runs = [{"skill_rows": {"math": 1}}, {"skill_rows": {"math": 2}}]
    assert forgotten(skills, base, runs) == {"math": {"loss": 0.5, "rows": 1.5}}
    assert forgotten(skills, base, [{}]) == {"math": {"loss": 0.5}}


RESULTS = BENCHMARKS / "results"


def test_the_committed_trials_are_small():
    assert sum(path.stat().st_size for path in RESULTS.glob("quality-*.json")) <= 300_000


@pytest.mark.parametrize(
    ("grid", "pool", "model"),
    [
        ("full", "test-garbage", "5.5 million parameters"),
        ("clean", "clean", "5.5 million parameters"),
        ("reader-smollm2-warm", "test-garbage", "SmolLM2-135M"),
        ("reader-smollm2-warm", "clean", "SmolLM2-135M"),
    ],
)
def test_the_readme_claims_what_the_tables_show(quality, grid, pool, model):
    """Share over random and its interval, of the default, in the words of the first screen."""
    _, done = quality["results"].read_results(RESULTS / f"quality-{grid}.json")
    rows = quality["table"].tabulate(quality["__main__"].by_pool(done)[pool])
    row = next(row for row in rows if row["label"] == "iterative")
    over, half = 100 * row["over"], 100 * row["over_half_width"]
    text = " ".join((BENCHMARKS.parent / "README.md").read_text().split())
    claim = f"{over:.0f}% more"
    assert claim in text
    interval = f"{abs(round(over - half))} to {over + half:.0f}%"
    assert interval in text[text.index(claim) :][:50]
    page = " ".join((BENCHMARKS.parent / "docs" / "quality.md").read_text().split())
    assert f"{over:.0f}% ± {half:.0f}% more" in page or f"+{over:.1f}% ± {half:.1f}%" in page
    # Which model it is about stands before the claims.
    assert model in text[: text.index(claim)]
