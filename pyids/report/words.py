"""Words that name clusters: class-based TF-IDF."""

from __future__ import annotations

import math
import re
from collections import Counter

# Characters of a row that are looked at.
_MOST_CHARACTERS = 2000
# Words of two letters or more; scripts that write without spaces are cut into pairs.
_WORD = re.compile(r"[^\W\d_]{2,}")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_LONGEST_WORD = 24


def words_of(text: str) -> set[str]:
    """Return the distinct words of a text, in lower case.

    Examples
    --------
    >>> sorted(words_of("Add 2 and 3, then add 5."))
    ['add', 'and', 'then']
    """
    found = set()
    for word in _WORD.findall(text[:_MOST_CHARACTERS].lower()):
        if _UNSPACED.search(word):
            found |= {word[i : i + 2] for i in range(len(word) - 1)}
        elif len(word) <= _LONGEST_WORD:
            found.add(word)
    return found


class ClusterWords:
    """Counts in how many looked-at rows of each cluster a word stands, and finds what names it.

    With f(t, c) the rows of cluster c that hold word t, f(t) those of all clusters and A the mean
    number of words of a cluster, the word counts ``sqrt(f(t, c)) * log((A + 1) / (f(t) + 0.5))``:
    class-based TF-IDF (Grootendorst, arXiv 2203.05794, in the BM25 form of its implementation), so
    that words that stand everywhere name nothing, in any language, without a list of them. A row
    counts a word once: a long row does not name its cluster alone.
    """

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}

    def add(self, cluster: int, text: str) -> None:
        """Count the words of one row."""
        self._counts.setdefault(cluster, Counter()).update(words_of(text))

    def names(self, most: int = 6) -> dict[int, list[str]]:
        """Return for each cluster the words that count most; ties by the alphabet."""
        overall: Counter[str] = Counter()
        for counts in self._counts.values():
            overall.update(counts)
        mean = sum(overall.values()) / max(1, len(self._counts))
        idf = {word: math.log((mean + 1) / (n + 0.5)) for word, n in overall.items()}
        names = {}
        for cluster, counts in self._counts.items():
            # A word of one row says nothing of a cluster whose rows have others in common.
            least = 2 if max(counts.values(), default=0) > 1 else 1
            value = {word: math.sqrt(n) * idf[word] for word, n in counts.items() if n >= least}
            names[cluster] = sorted(value, key=lambda word: (-value[word], word))[:most]
        return names
