"""Which tokenizers read a text word by word, so that the ids of words seen before can be kept.

`find_cut` looks at a tokenizer's settings and tells how its texts may be cut at spaces (U+0020) so
that the ids of a text are those of its pieces, one after the other. It knows two structures, and
has a proof for each; any other tokenizer gets whole texts.

In both, a cut is made at the first space of a run that has another character before it, and not at
a text's last character; a piece is what the `tokenizers` library is given in place of a text. Three
things hold for all.

- Truncation and padding are off and no special tokens are asked for; the template, if there is one,
  holds the text once (`_holds_text_once`), so the library's answer is what the model makes of it.
- Added tokens ("<s>") are found before anything else, in the raw text: those that are found in the
  normalized text are no part of what is known here. Their contents hold no space, so an occurrence
  lies inside one piece, and the core leaves a text with such a piece whole; without an occurrence,
  they do nothing, whatever they strip or demand of their neighbors.
- No randomness: BPE's dropout is off.

**Words.** The first pre-tokenizer splits at whitespace and drops it, so the model sees each word
alone; what follows it works on one word. The ids of ``a + " " + b`` are therefore those of a and
those of b, if normalizing gives N(a), a space and N(b). Lowercasing, cleaning, spaces around
ideographs and the removal of accents go character by character. NFC, NFD, NFKC and NFKD do not look
past a space: it is a starter (combining class 0), so no mark moves over it; it decomposes into
itself; and no canonical composite begins with it (those of marks alone, such as U+00A8, decompose
to it by compatibility only). The space itself is dropped, so the piece may begin after it.

**Sentencepiece's BPE, as in Llama 2.** Before the model, "▁" is put before the text and replaces
each space; or the pre-tokenizer "Metaspace" does it, where no "▁" is there yet. The model sees the
text in one. Let no merge make a token that has another character before a "▁". A cut lies between
two such characters, so no merge ever crosses it. BPE applies the merge of lowest rank and, among
equal ones, the leftmost; applied to the whole text, the merges inside a piece are thus those of the
piece alone, in the same order. "▁" is in the vocabulary, so no run of unknown characters is fused
across a cut either. What the model makes of a piece, "▁" and on, is what the library makes of the
piece without its first space, where it puts "▁" before any text; with it, where it does so only
before a text that has none (Metaspace). A "▁" in the raw text would be a space without being one:
a text with it is left whole, like those with added tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# Normalizers that give N(a), a space and N(b) for a, a space and b.
_LOCAL_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD"}
)
_WORD_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_INSIDE_WORDS = _WORD_SPLITTERS | {"Punctuation", "Digits"}
_MODELS = frozenset({"WordPiece", "WordLevel", "BPE"})

Settings = Mapping[str, Any]


class Cut(NamedTuple):
    """How texts are cut: the core's name for it, and strings whose texts are left whole."""

    kind: str
    whole: list[str]


WHOLE = Cut("none", [])


def find_cut(settings: Settings) -> Cut:
    """Tell how texts may be cut, from a tokenizer's settings (the JSON of `Tokenizer.to_str`).

    Returns
    -------
    Cut
        `WHOLE` where nothing is known of the tokenizer's structure.
    """
    added = settings["added_tokens"]
    contents = [token["content"] for token in added]
    if (
        any(token["normalized"] and settings["normalizer"] is not None for token in added)
        or any(" " in content or not content for content in contents)
        or not all(map(_holds_text_once, _parts(settings["post_processor"], "processors")))
        or settings["model"].get("dropout")
    ):
        return WHOLE
    if _takes_words(settings):
        return Cut("dropping", contents)
    if _is_sentencepiece(settings["model"]):
        if _writes_spaces(settings):
            return Cut("dropping", [*contents, _SPACE])
        if _has_metaspace(settings):
            return Cut("keeping", [*contents, _SPACE])
    return WHOLE


def _parts(component: Settings | None, name: str) -> list[Settings]:
    """Return the components of a sequence, one after the other; none of nothing."""
    return list(_flat(component, name))


def _flat(component: Settings | None, name: str) -> Iterator[Settings]:
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for part in component[name]:
        yield from _flat(part, name)


def _holds_text_once(processor: Settings) -> bool:
    if processor["type"] != "TemplateProcessing":
        return processor["type"] in ("ByteLevel", "BertProcessing", "RobertaProcessing")
    return [part["Sequence"]["id"] for part in processor["single"] if "Sequence" in part] == ["A"]


def _takes_words(settings: Settings) -> bool:
    splitters = [part["type"] for part in _parts(settings["pre_tokenizer"], "pretokenizers")]
    normalizers = [part["type"] for part in _parts(settings["normalizer"], "normalizers")]
    return (
        settings["model"]["type"] in _MODELS
        and splitters[:1] != []
        and splitters[0] in _WORD_SPLITTERS
        and _INSIDE_WORDS.issuperset(splitters)
        and _LOCAL_NORMALIZERS.issuperset(normalizers)
    )


def _is_sentencepiece(model: Settings) -> bool:
    if (
        model["type"] != "BPE"
        or model.get("ignore_merges")  # a text that is in the vocabulary is then one token
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
        or _SPACE not in model["vocab"]
    ):
        return False
    # Pairs, or in older files texts with a space between the two.
    merged = ("".join(merge).replace(" ", "") for merge in model["merges"])
    return not any(_SPACE in token.lstrip(_SPACE) for token in merged)


def _writes_spaces(settings: Settings) -> bool:
    steps = _parts(settings["normalizer"], "normalizers")
    return settings["pre_tokenizer"] is None and steps == [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ]


def _has_metaspace(settings: Settings) -> bool:
    splitter = settings["pre_tokenizer"] or {}
    return (
        settings["normalizer"] is None
        and splitter.get("type") == "Metaspace"
        and splitter["replacement"] == _SPACE
    )
