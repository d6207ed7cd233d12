"""The pools of the quality benchmark: real rows, split without leaks, clean or with garbage.

Rows come from a JSON-lines file with `source` and `messages`, and their vectors from a .npy beside
it. Where there is none, `stand_in` makes rows of procedural tasks with the same fields.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from demo_pool import make_pool

Row = dict[str, Any]

# What is measured apart: skills, by the beginning of a row's source.
SKILLS: dict[str, tuple[str, ...]] = {
    "math": ("gsm8k",),
    "code": ("code_alpaca",),
    "reading": ("adversarial_qa", "quoref", "ropes", "duorc"),
    "commonsense": ("cosmos_qa", "commonsense_qa", "social_i_qa", "dream", "quarel", "wiqa"),
    "science": ("sciq", "qasc", "quartz"),
    "closed book": ("kilt_tasks", "wiki_qa", "wiki_hop"),
    "sentiment": ("imdb", "rotten_tomatoes", "yelp", "amazon", "app_reviews"),
    "summary": ("cnn_dailymail", "xsum", "samsum", "multi_news", "gigaword"),
    "paraphrase": ("glue_qqp", "glue_mrpc", "paws"),
    "topic": ("ag_news", "dbpedia_14"),
    "data to text": ("common_gen", "wiki_bio"),
}
# Share of the rows (by the hash of their text) kept out of every pool, for dev and for test.
HELD_OUT = 0.04
GARBAGE_SHARE = 0.3
WARM_UP_ROWS = 600


def skill_of(row: Row) -> str:
    """Return the skill that a row of `SKILLS` shows; its source, where it is none of them."""
    source = row["source"].removeprefix("p3/")
    return next((skill for skill, names in SKILLS.items() if source.startswith(names)), source)


def text_of(row: Row) -> str:
    return "\n".join(message["content"] for message in row["messages"])


@dataclass(frozen=True)
class Split:
    """Rows that share no text: `pool` (with the positions its vectors had), `dev`, `test`.

    `warm_up` holds rows of no other part, from which the base model learns the chat format.
    """

    pool: list[Row]
    positions: np.ndarray
    dev: list[Row]
    test: list[Row]
    warm_up: list[Row]


def read_rows(path: Path) -> list[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path) as file:
        return [orjson.loads(line) for line in file]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    temporary.rename(path)


def stand_in(n_rows: int, seed: int = 0) -> list[Row]:
    """Make clean rows of procedural tasks; a row's source is its task."""
    rows = make_pool(n_rows, garbage_share=0.0, seed=seed)
    return [
        {"id": str(i), "source": row["topic"], "messages": row["messages"]}
        for i, row in enumerate(rows)
    ]


def split(rows: Sequence[Row], per_skill: int) -> Split:
    """Drop duplicates, then deal rows to pool, dev and test by the hash of their normalized text.

    dev and test keep at most `per_skill` rows of each skill: dev those of the lowest hashes, test
    the next ones, for a first table was made on its lowest before the default was chosen anew
    (docs/log.md). What is left of dev's is the warm-up.
    """
    seen: set[int] = set()
    dealt: dict[str, list[tuple[int, int]]] = {"pool": [], "dev": [], "test": []}
    for i, row in enumerate(rows):
        text = " ".join(text_of(row).lower().split())
        digest = xxhash.xxh3_64_intdigest(text.encode())
        if digest in seen:
            continue
        seen.add(digest)
        share = digest / 2**64
        name = "test" if share < HELD_OUT else "dev" if share < 2 * HELD_OUT else "pool"
        dealt[name].append((digest, i))
    held: dict[str, list[Row]] = {}
    left: dict[str, list[Row]] = {}
    for name in ("dev", "test"):
        count: dict[str, int] = {}
        held[name], left[name] = [], []
        for _, i in sorted(dealt[name]):
            skill = skill_of(rows[i])
            count[skill] = count.get(skill, 0) + 1
            first = per_skill if name == "test" else 0
            part = held if first < count[skill] <= first + per_skill else left
            part[name].append({**rows[i], "skill": skill})
    positions = np.array([i for _, i in dealt["pool"]])
    pool = [{**rows[i], "skill": skill_of(rows[i]), "garbage": ""} for i in positions]
    return Split(pool, positions, held["dev"], held["test"], left["dev"][:WARM_UP_ROWS])


# ---- garbage -------------------------------------------------------------------------------------

_NOTICES = (
    "Thank you for reaching out! We value your feedback.",
    "This content is not available in your region.",
    "Log in or subscribe to continue reading.",
    "Click here to accept cookies and continue.",
    "By using this site you agree to our terms of use and privacy policy.",
    "All rights reserved. Reproduction without permission is prohibited.",
    "Your session has expired. Please sign in again.",
    "Share this article on social media.",
    "Enable JavaScript in your browser to view this page.",
    "For more information please contact our support team.",
    "Read our latest newsletter and stay up to date.",
    "Please do not reply to this automated message.",
)
_GOODS = ("watches", "loans", "vitamins", "casino chips", "phones", "diet pills", "crypto coins")
_PITCHES = (
    "Buy cheap {goods} now, {percent}% off, only today at {site}!",
    "Best {goods} of the year! Order at {site} and save {percent}%.",
    "You have won free {goods}. Claim your prize at {site} within {hours} hours.",
    "Limited offer: {goods} from {price} dollars, free delivery, visit {site}.",
    "Doctors hate this trick. Get {goods} at {site}, {percent}% discount guaranteed.",
)
_ALPHABET = str.maketrans(
    "abcdefghijklmnopqrstuvwxyz",
    "абцдефгхийклмнопярстужвьыз",
)

Make = Callable[[random.Random, Row, "Sources"], "tuple[str, str] | None"]


@dataclass(frozen=True)
class Sources:
    """What garbage is made from: words of the whole pool, and rows by source."""

    words: list[str]
    by_source: dict[str, list[Row]]


def _shuffled_words(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str]:
    salad = rng.choices(sources.words, k=rng.randint(25, 90))
    cut = rng.randint(10, len(salad) - 8)
    return " ".join(salad[:cut]), " ".join(salad[cut:])


def _boilerplate(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str]:
    notices = rng.sample(_NOTICES, k=rng.randint(4, 8))
    cut = rng.randint(1, len(notices) - 2)
    number = rng.randint(100, 99999)
    return " ".join(notices[:cut]) + f" ({number})", " ".join(notices[cut:])


def _other_alphabet(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str]:
    words = " ".join(rng.choices(sources.words, k=rng.randint(25, 60))).lower()
    words = words.translate(_ALPHABET)
    cut = words.find(" ", len(words) // 2)
    return words[:cut], words[cut + 1 :]


def _spam(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str]:
    def pitch() -> str:
        return rng.choice(_PITCHES).format(
            goods=rng.choice(_GOODS),
            percent=rng.randint(10, 90),
            hours=rng.randint(2, 48),
            price=rng.randint(1, 99),
            site=f"www.{rng.choice(_GOODS).replace(' ', '-')}{rng.randint(1, 999)}.example",
        )

    return pitch(), " ".join(pitch() for _ in range(rng.randint(1, 4)))


def _swapped(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str] | None:
    prompt, response = (message["content"] for message in row["messages"])
    for _ in range(20):
        other = rng.choice(sources.by_source[row["source"]])["messages"][1]["content"]
        if other != response:
            return prompt, other
    return None


def _truncated(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str] | None:
    prompt, response = (message["content"] for message in row["messages"])
    words = response.split(" ")
    if len(words) < 8:
        return None
    return prompt, " ".join(words[: rng.randint(3, len(words) // 2)])


def _wrong_numbers(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str] | None:
    prompt, response = (message["content"] for message in row["messages"])
    if row["source"] != "gsm8k":
        return None
    return prompt, re.sub(
        r"\d+", lambda found: str(rng.randint(1, 10 ** len(found[0]) + 9)), response
    )


def _echo(rng: random.Random, row: Row, sources: Sources) -> tuple[str, str] | None:
    prompt = row["messages"][0]["content"]
    words = prompt.split()
    if len(words) < 12:
        return None
    begin = rng.randint(0, len(words) - 8)
    return prompt, " ".join(words[begin : begin + rng.randint(6, 40)])


TOPIC_KINDS: dict[str, Make] = {
    "shuffled words": _shuffled_words,
    "boilerplate": _boilerplate,
    "other alphabet": _other_alphabet,
    "spam": _spam,
}
ROW_KINDS: dict[str, Make] = {
    "swapped": _swapped,
    "truncated": _truncated,
    "wrong numbers": _wrong_numbers,
    "echo": _echo,
}
# Not used while scorers and rules were chosen: in the pool of the test table only.
UNSEEN_KINDS = ("spam", "echo")


def plant(rows: Sequence[Row], kinds: Sequence[str], share: float, seed: int) -> list[Row]:
    """Replace a share of the rows by garbage, half of it whole-topic kinds, half row-level ones.

    A row that a kind cannot corrupt (too short a response) is passed over for another.
    """
    rng = random.Random(seed)
    sample = rng.sample(range(len(rows)), min(len(rows), 3000))
    words = [word for i in sample for word in text_of(rows[i]).split()[:60] if word.isalpha()]
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
    sources = Sources(words, by_source)
    planted = list(rows)
    order = list(range(len(rows)))
    rng.shuffle(order)
    for makers in (TOPIC_KINDS, ROW_KINDS):
        chosen = [kind for kind in makers if kind in kinds]
        for kind in chosen:
            wanted = round(len(rows) * share / 2 / len(chosen))
            passed: list[int] = []
            while wanted and order:
                i = order.pop()
                made = makers[kind](rng, rows[i], sources)
                if made is None:
                    passed.append(i)
                    continue
                planted[i] = {
                    **rows[i],
                    "garbage": kind,
                    "messages": [
                        {"role": role, "content": text}
                        for role, text in zip(("user", "assistant"), made, strict=True)
                    ],
                }
                wanted -= 1
            order = passed + order
    return planted


def plant_near_duplicates(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """Return copies of n rows with a few characters changed, as rows that follow the others."""
    rng = random.Random(seed)
    copies = []
    for i in rng.sample(range(len(rows)), n):
        prompt, response = (message["content"] for message in rows[i]["messages"])
        edited = rng.choice([f"{prompt} ", f"{prompt}!", f"Q: {prompt}", prompt.replace(",", " ,")])
        copies.append({
            **rows[i], "id": f"{rows[i]['id']}-near", "garbage": "near duplicate",
            "messages": [
                {"role": "user", "content": edited}, {"role": "assistant", "content": response},
            ],
        })  # fmt: skip
    return copies
