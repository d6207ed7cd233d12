"""What was made fast in reading rows and vectors, against the plain way."""

import unicodedata

import numpy as np
import pytest

from pyids import _core
from pyids.chat.digest import nfc
from pyids.data.exact_dedup import _DEALT, _order
from pyids.data.precomputed import _look_at
from pyids.data.readers import Reader


def test_every_half_is_looked_at_as_numpy_does():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for block in (halves[:, None], halves.reshape(-1, 16), halves.reshape(-1, 32)[:, ::2]):
        finite, zero = _look_at(block)
        assert np.array_equal(finite, np.isfinite(block).all(axis=1))
        assert np.array_equal(zero, ~block.any(axis=1))
    signed = np.array([[0.0, -0.0], [0.0, -6e-8]], np.float16)  # the least half is no zero
    assert _look_at(signed)[1].tolist() == [True, False]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_empty_blocks_of_vectors(shape, dtype):
    block = np.empty(shape, dtype)
    finite, zero = _look_at(block)
    assert np.array_equal(finite, np.isfinite(block).all(axis=1))
    assert np.array_equal(zero, ~block.any(axis=1))


@pytest.mark.parametrize(("highs", "lows"), [(3, 2), (1, 1), (1, 500), (1 << 62, 5), (200, 200)])
@pytest.mark.parametrize("n", [0, 1, 2, 5000])
def test_the_order_of_digests_is_lexsorts(n, highs, lows):
    draw = np.random.default_rng(n)
    dealt = np.empty(n, _DEALT)
    dealt["high"] = draw.integers(0, highs, n).astype(np.uint64) << np.uint64(2)
    dealt["low"] = draw.integers(0, lows, n).astype(np.uint64) << np.uint64(60)
    dealt["row_id"] = np.sort(draw.integers(0, 1 << 40, n))
    assert np.array_equal(_order(dealt), np.lexsort((dealt["low"], dealt["high"])))


def test_words_of_texts_of_every_width():
    pieces = ["a", "word", " ", "  ", "\n", "\x1f", "\x85", "\xa0", "\xe9", "na\xefve", "\u2003"]
    pieces += ["\u65e5\u672c", "\U0001f600", "e\u0301", ".", "\x00", "\x7f", "\x80"]
    draw = np.random.default_rng(0)
    for width in (5, 9, 11, len(pieces)):  # texts of one, two and four bytes a character
        for _ in range(500):
            text = "".join(pieces[n] for n in draw.integers(0, width, draw.integers(0, 12)))
            turns = [{"role": "user", "content": text}]
            found = _core.conversation_text(turns, "role", "content", None, nfc, False)
            words = " ".join(unicodedata.normalize("NFC", text).split())
            assert found == f"user\x1f{words}".encode()


def test_lines_that_are_no_objects_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [b'{"a": 1}', b"null", b"[1]", b"3", b'"text"', b"{", b"", b'  {"b": NaN} ', b"\xff{}"]
    path.write_bytes(b"\n".join(lines))
    found = list(Reader(str(path), "jsonl", None))
    assert [line for line, _, _ in found] == [1, 2, 3, 4, 5, 6, 8, 9]
    assert found[0][2] == {"a": 1}
    assert np.isnan(found[6][2]["b"])
    for line, _, problem in found[1:5]:
        assert problem.line == line
        assert "is no JSON object: give one object for each row" in problem.text
    assert found[1][2].text.startswith("None is")
    assert "JSON" in found[5][2].text
    assert "not UTF-8" in found[7][2].text
