"""What the words of answers say of their questions; pools whose answers were mixed up."""

import math

import numpy as np

from pyids.scoring.overlap import number_overlap, overlap, words_of


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
