"""A small instruction pool whose true topics and true garbage are known.

Clean rows come from reasoning-gym, one topic a task family. Every garbage kind is a topic of its
own: what a cluster can be found out for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

# Families with short questions and answers: a language model on two cores reads them in time.
TOPICS = (
    "basic_arithmetic",
    "caesar_cipher",
    "calendar_arithmetic",
    "chain_sum",
    "coin_flip",
    "complex_arithmetic",
    "count_bits",
    "count_primes",
    "decimal_chain_sum",
    "fraction_simplification",
    "gcd",
    "lcm",
    "letter_counting",
    "number_sequence",
    "prime_factorization",
    "products",
    "sentence_reordering",
    "simple_equations",
    "simple_geometry",
    "spell_backward",
    "syllogism",
    "time_intervals",
)
GARBAGE = ("shuffled_words", "swapped_answers", "truncated_answers", "boilerplate")
# The families whose questions the garbage kinds spoil: no clean row comes from them. All families
# give the same rows in every process (the answers of word_ladder depend on Python's hash seed).
_SWAPPED_FROM = "leg_counting"
_TRUNCATED_FROM = "word_sequence_reversal"
_BOILERPLATE = (
    "Thank you for reaching out! We value your feedback. Please visit our website for details.",
    "This content is not available in your region. Log in or subscribe to continue reading.",
    "Click here to accept cookies and continue. By using this site you agree to our terms of use.",
)


def make_pool(n_rows: int, *, garbage_share: float = 0.25, seed: int = 0) -> list[dict[str, Any]]:
    """Make a pool of about `n_rows` rows in random order.

    Parameters
    ----------
    n_rows
        Rows in all; topics and garbage kinds get equal parts of their share.
    garbage_share
        Share of the rows that are garbage, in [0, 1).
    seed
        Seed of everything.

    Returns
    -------
    list of dict
        `messages` (one user and one assistant turn), `topic`, `garbage` (bool).
    """
    rng = random.Random(seed)
    n_garbage = round(n_rows * garbage_share / len(GARBAGE))
    n_clean = round(n_rows * (1 - garbage_share) / len(TOPICS))
    rows = [
        _row(question, answer, topic, garbage=False)
        for topic in TOPICS
        for question, answer in _questions(topic, n_clean, seed)
    ]
    clean_words = [word for row in rows for word in row["messages"][0]["content"].split()]
    clean_answers = [row["messages"][1]["content"] for row in rows]
    for question, _ in _questions(_SWAPPED_FROM, n_garbage, seed):
        rows.append(_row(question, rng.choice(clean_answers), "swapped_answers", garbage=True))
    for question, answer in _questions(_TRUNCATED_FROM, n_garbage, seed):
        cut = answer[: rng.randint(2, max(2, len(answer) // 2))]
        rows.append(_row(question, cut, "truncated_answers", garbage=True))
    for _ in range(n_garbage):
        salad = rng.choices(clean_words, k=rng.randint(14, 30))
        split = rng.randint(6, len(salad) - 4)
        rows.append(
            _row(" ".join(salad[:split]), " ".join(salad[split:]), "shuffled_words", garbage=True)
        )
        question = " ".join(rng.choices(clean_words, k=rng.randint(5, 12))) + "?"
        rows.append(_row(question, rng.choice(_BOILERPLATE), "boilerplate", garbage=True))
    rng.shuffle(rows)
    return rows


def _row(question: str, answer: str, topic: str, *, garbage: bool) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        "topic": topic,
        "garbage": garbage,
    }


def _questions(topic: str, n_rows: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield the first `n_rows` questions and answers of a family that are short."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(topic, size=4 * n_rows + 20, seed=seed)
    pairs = ((str(item["question"]).strip(), str(item["answer"]).strip()) for item in dataset)
    short = ((q, a) for q, a in pairs if a and len(q) + len(a) <= 240)
    yield from itertools.islice(short, n_rows)
