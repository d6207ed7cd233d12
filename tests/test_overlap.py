"""What the words of answers say of their questions; pools whose answers were mixed up."""

import math

import numpy as np
import pytest

from pyids.scoring.overlap import mismatch, number_overlap, overlap, words_of


def conversation(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def words(rows):
    return [words_of(row) for row in rows]


def test_overlap_is_the_share_of_rare_words_that_the_prompt_holds():
    rows = [
        conversation("alpha beta", "beta gamma"),
        conversation("alpha", "delta 42"),
        conversation("say 42", "42"),
    ]
    # Of three rows: alpha and 42 stand in two, the others in one.
    rare, common = math.log(4 / 2), math.log(4 / 3)
    expected = [rare / (rare + rare), 0 / (rare + common), 1.0]
    np.testing.assert_allclose(overlap(words(rows)), expected)


def test_number_overlap_is_the_share_of_distinct_numbers_that_the_prompt_holds():
    rows = [
        conversation("12 pens and 3 caps", "12 + 3 = 15, so 15"),
        conversation("12 pens", "7 or 8, as x2 says"),  # a number inside a word is one, too
        conversation("12 pens", "12 and again 12"),
        conversation("no number", "none"),
    ]
    np.testing.assert_allclose(number_overlap(words(rows)), [2 / 3, 0, np.nan, np.nan])


def topics(n_rows, n_clusters, wrong, seed=0):
    """Make rows that share a word of their own and the words of their topic, some with the answer
    of another row of the topic."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, n_clusters, n_rows)
    letters = list("lmnopqrstuv")

    def some(n):
        return " ".join("".join(rng.choice(letters, 6)) for _ in range(n))

    rows = []
    for topic in ("abcdefghijk"[k] * 5 for k in cluster):
        name = some(rng.integers(1, 6))
        rows.append(conversation(f"Tell me {name} of {topic}.", f"{name} {some(rng.integers(6))}"))
    for k in range(n_clusters):
        member = np.flatnonzero(cluster == k)
        mixed = member[: round(wrong * len(member))]
        answers = [rows[i][1] for i in rng.permutation(mixed)]
        for i, answer in zip(mixed, answers, strict=True):
            rows[i] = [rows[i][0], answer]
    return rows, cluster.astype(np.int32)


@pytest.mark.parametrize("wrong", [0.0, 0.05, 0.3])
def test_mismatch_is_about_the_share_of_wrong_answers(wrong):
    rows, cluster = topics(4000, 7, wrong)
    found = mismatch(words(rows), cluster)
    # Where nothing else is unusual, what looks foreign is.
    assert found == pytest.approx(wrong, abs=0.02 + wrong / 3)
    assert found <= 0.02 or wrong
    # Clusters are names: which number one has does not matter.
    assert mismatch(words(rows), 10 - cluster) == pytest.approx(found, abs=0.02)


def test_mismatch_is_silent_where_words_tell_nothing():
    rows, cluster = topics(4000, 7, 0.3)
    labels = [conversation(row[0]["content"], ("good", "bad")[n % 2]) for n, row in enumerate(rows)]
    assert mismatch(words(labels), cluster) == 0
    foreign = [conversation(row[0]["content"], f"mot{n} {n}") for n, row in enumerate(rows)]
    assert mismatch(words(foreign), cluster) == 0


def test_mismatch_needs_rows_enough_and_bears_any():
    rows, cluster = topics(90, 7, 0.5)
    assert mismatch(words(rows), cluster) == 0
    assert mismatch([], np.empty(0, np.int32)) == 0
    alone, same, empty = conversation("a b", "a"), conversation("a b", "a"), conversation("", "")
    assert mismatch(words([alone, same, empty] * 200), np.arange(600, dtype=np.int32)) == 0
    assert mismatch(words([alone, same, empty] * 200), np.zeros(600, np.int32)) == 0
