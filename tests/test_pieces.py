"""Static vectors from remembered pieces of texts: token ids of the library, bit for bit."""

import copy
import json
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pyids.encoders import load_encoder
from pyids.encoders.pieces import WHOLE, Cut, find_cut
from pyids.models.hub import resolve_model
from pyids.reference import mean_of_tokens

pytest.importorskip("torch", reason="needs the train extra")
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = Path(__file__).parents[1]
SPACE = "\u2581"
DIM = 5


@cache
def prose() -> str:
    pages = sorted((ROOT / "docs").glob("*.md"))
    return "\n".join(page.read_text("utf-8") for page in [ROOT / "README.md", *pages])


# ---- texts ---------------------------------------------------------------------------------------

NASTY = [
    *(" ", " ", " ", "  ", "   ", "\t", "\n", "\r\n", "\0", "\x0b", "\x1f", "\x85", "\ufffd"),
    *("\u00a0", "\u2003", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff", "\u1680"),
    *(SPACE, SPACE + SPACE, " " + SPACE, "\u0301", "\u0308\u0301", "\u0344", "\u00a8", "\u0600"),
    *("e\u0301", "\u00e9", "\ufdfa", "\u0130", "\u00df", "\u03a3", "\u1e9e", "\u212b", "\uac01"),
    *("\u1112\u1161\u11ab", "\u4e2d\u6587", "\u65e5", "\u0e01\u0e33", "\U0001f469\u200d\U0001f467"),
    *("\U0002f800", "\U000e0001", "'s", "don't", "1", "42", "3.14", "a", "word", "Word", "WORD"),
    *("unaffable", "##ing", "x" * 70, "y" * 250, "<s>", "</s>", "<unk>", "<0x0A>", "[UNK]"),
    *("[CLS]", "[MASK]", "<s", ">", ".", ",", "-", "_", "\\", "://", "<extra>", "le\u00df"),
]


def nasty_texts(n: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(NASTY, k=draw.randrange(9))) for _ in range(n)]


def random_bytes(n: int) -> list[str]:
    draw = random.Random(1)
    made = [draw.randbytes(draw.randrange(80)) for _ in range(n)]
    return [text.decode(form, "replace") for text in made for form in ("utf-8", "latin-1")]


def prose_texts() -> list[str]:
    lines = prose().splitlines()
    blocks = prose().split("\n\n")
    return [*lines, *blocks, prose()[:20000], " ".join(prose().split()), "z" * 3000, " " * 300]


def all_characters(step: int) -> list[str]:
    points = [*range(0, 0xD800, step), *range(0xE000, 0x20000, step)]
    return [f"a{c} b {c}d {c} {c}{c}  e{c}" for c in map(chr, points)]


# ---- tokenizers ----------------------------------------------------------------------------------


def wordllama() -> Tokenizer:
    folder = resolve_model("wordllama", kind="encoder").path
    return Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))


def bert() -> Tokenizer:
    folder = resolve_model("all-MiniLM-L6-v2", kind="encoder").path
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def trained(model, pre_tokenizer, texts=None, **options) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>"], show_progress=False, **options
    )
    tokenizer.train_from_iterator(texts or prose().splitlines()[:3000], trainer)
    return tokenizer


def llama(*, across=False) -> Tokenizer:
    """Llama 2's structure without bytes for unknown characters; `across`: merges across words."""
    words = pre_tokenizers.Metaspace(SPACE, split=True)
    texts = [line.replace(" ", SPACE) for line in prose().splitlines()[:3000]] if across else None
    model = models.BPE(unk_token="<unk>", fuse_unk=True)
    tokenizer = trained(model, None if across else words, texts)
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = None
    return tokenizer


def metaspace(scheme, split, *, ignore_merges=False) -> Tokenizer:
    model = models.BPE(unk_token="<unk>", ignore_merges=ignore_merges)
    settings = settings_of(trained(model, pre_tokenizers.Metaspace(SPACE, split=True)))
    settings["model"]["vocab"][SPACE * 2] = len(settings["model"]["vocab"])
    settings["model"]["merges"].insert(0, [SPACE, SPACE])  # indentation, as real ones have it
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=split)
    return tokenizer


def word_level(form) -> Tokenizer:
    """Words of prose behind a normal form of Unicode."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    steps = normalizers.Sequence([form, normalizers.Lowercase(), normalizers.StripAccents()])
    found = sorted({*re.findall(r"\w+", prose().lower()), *"abcdefghi0123456789", "\u0308"})
    vocabulary = {word: n for n, word in enumerate(["[UNK]", *found])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = steps, splitter
    tokenizer.add_tokens([AddedToken("<extra>", normalized=False, lstrip=True, single_word=True)])
    return tokenizer


def bpe_of_words() -> Tokenizer:
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", ignore_merges=True)
    return trained(model, splitter, end_of_word_suffix="</w>")


CUT = {
    "wordllama": wordllama,
    "llama": llama,
    "bert": bert,
    "nfc": lambda: word_level(normalizers.NFC()),
    "nfd": lambda: word_level(normalizers.NFD()),
    "nfkc": lambda: word_level(normalizers.NFKC()),
    "nfkd": lambda: word_level(normalizers.NFKD()),
    "bpe of words": bpe_of_words,
    **{f"metaspace {s} {p}": (lambda s=s, p=p: metaspace(s, p))
       for s in ("always", "first", "never") for p in (False, True)},
}  # fmt: skip


def settings_of(tokenizer):
    return json.loads(tokenizer.to_str())


@pytest.fixture
def encoder_of(tmp_path):
    """Make a model2vec folder of a tokenizer, with a table of random vectors."""

    def make(tokenizer, max_length=None, dim=DIM, *, normalize=False):
        from safetensors.numpy import save_file

        tokenizer.save(str(tmp_path / "tokenizer.json"))
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        table = np.random.default_rng(0).standard_normal((size, dim)).astype(np.float32)
        save_file({"embeddings": table}, tmp_path / "model.safetensors")
        config = {"model_type": "model2vec", "normalize": normalize}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return load_encoder(str(tmp_path), max_length=max_length), table

    return make


def library_ids(tokenizer, texts):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def unknown_of(tokenizer):
    token = getattr(tokenizer.model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def means_in_order(table, ids, limit=None, unknown=None):
    """Float32 sums one token after the other, which the order of the tokens shows in."""
    means = np.zeros((len(ids), table.shape[1]), np.float32)
    for mean, text in zip(means, ids, strict=True):
        if known := [token for token in text[:limit] if token != unknown]:
            mean[:] = table[known].cumsum(axis=0, dtype=np.float32)[-1] / np.float32(len(known))
    return means


def cut_by_hand(text: str, cut) -> list[str]:
    parts = re.split(r"(?<=[^ ])(?= )(?!\s\Z)", text) if text else []
    if cut.kind == "dropping":
        parts[1:] = [part[1:] for part in parts[1:]]
    return parts


# ---- the same ids --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CUT)
def test_vectors_are_those_of_the_librarys_ids(encoder_of, name):
    tokenizer = CUT[name]()
    assert find_cut(settings_of(tokenizer)).kind != "none"
    encoder, table = encoder_of(tokenizer)
    step = 3 if name in ("wordllama", "bert") else 13
    texts = [*prose_texts(), *nasty_texts(4000), *random_bytes(400), *all_characters(step)]
    expected = means_in_order(table, library_ids(tokenizer, texts), None, unknown_of(tokenizer))
    for _ in range(2):  # the second time from what is known
        vectors = encoder.encode(texts)
        wrong = np.flatnonzero((vectors != expected).any(axis=1))
        assert not len(wrong), [texts[n] for n in wrong[:3]]
    assert encoder._means.statistics["pieces"] > 1000


@pytest.mark.parametrize("name", CUT)
def test_ids_of_pieces_are_the_librarys(name):
    tokenizer = CUT[name]()
    cut = find_cut(settings_of(tokenizer))
    texts = [text for text in [*nasty_texts(2000), *prose_texts()] if text]
    texts = [text for text in texts if not any(string in text for string in cut.whole)]
    parts = [cut_by_hand(text, cut) for text in texts]
    ids = iter(library_ids(tokenizer, [part for own in parts for part in own]))
    joined = [[token for _ in own for token in next(ids)] for own in parts]
    assert joined == library_ids(tokenizer, texts)


def test_merges_across_words_get_whole_texts(encoder_of, monkeypatch):
    tokenizer = llama(across=True)
    assert find_cut(settings_of(tokenizer)) == WHOLE
    texts = prose_texts()
    encoder, table = encoder_of(tokenizer)
    expected = means_in_order(table, library_ids(tokenizer, texts), None, unknown_of(tokenizer))
    assert np.array_equal(encoder.encode(texts), expected)
    assert encoder._means.statistics["pieces"] == 0
    # Were they cut, the vectors would show it.
    monkeypatch.setattr("pyids.encoders.static.find_cut", lambda _: Cut("dropping", []))
    assert not np.array_equal(encoder_of(tokenizer)[0].encode(texts), expected)


@pytest.mark.parametrize("max_length", [1, 3, 20])
@pytest.mark.parametrize("name", ["wordllama", "bert", "metaspace first False"])
def test_a_limit_counts_the_texts_first_ids(encoder_of, name, max_length):
    tokenizer = CUT[name]()
    encoder, table = encoder_of(tokenizer, max_length)
    texts = [*prose_texts(), *nasty_texts(500)]
    ids = library_ids(tokenizer, texts)
    expected = means_in_order(table, ids, max_length, unknown_of(tokenizer))
    assert np.array_equal(encoder.encode(texts), expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dim", [1, 32, 45, 256])
def test_means_are_those_of_the_definition(encoder_of, dim, normalize):
    tokenizer = word_level(normalizers.NFC())
    encoder, table = encoder_of(tokenizer, 50, dim, normalize=normalize)
    texts = ["", "the", "nosuchword", *prose().splitlines()[:200]]
    options = {"limit": 50, "unknown": 0, "normalize": normalize}
    expected = mean_of_tokens(table, library_ids(tokenizer, texts), **options)
    vectors = encoder.encode(texts)
    assert (vectors[0] == 0).all()
    assert (vectors[2] == 0).all()
    scale = np.abs(expected).max(axis=1, keepdims=True) if dim > 1 else np.abs(table).max()
    assert (np.abs(vectors - expected) <= 1e-6 * scale).all()


def test_bits_depend_on_no_threads_blocks_or_memory(encoder_of, monkeypatch):
    texts = [*prose_texts(), *nasty_texts(3000)]
    encoder, _ = encoder_of(wordllama())
    expected = encoder.encode(texts)
    shuffled = np.random.default_rng(1).permutation(len(texts))
    for block, n_bytes, n_threads in ((1, 1 << 16, 1), (77, 0, 3), (5000, 1 << 17, 2)):
        monkeypatch.setattr("pyids.encoders.static._BLOCK_ROWS", block)
        monkeypatch.setattr("pyids.encoders.static._CACHE_BYTES", n_bytes)
        encoder, _ = encoder_of(wordllama())
        some = shuffled[:400] if block == 1 else shuffled
        stream = encoder.encode_stream([texts[n] for n in some], n_threads)
        assert np.array_equal(np.concatenate(list(stream)), expected[some])
        statistics = encoder._means.statistics
        assert statistics["bytes"] <= max(n_bytes, 1 << 14)
        assert (statistics["times_emptied"] > 0) == (n_bytes > 0)


def test_what_is_no_text_is_the_tokenizers_to_refuse(encoder_of):
    encoder, _ = encoder_of(wordllama())
    for bad in ("half \ud800 a pair", None):
        with pytest.raises(TypeError, match="TextInputSequence"):
            encoder.encode(["good", bad])


def test_a_token_without_a_vector_is_named(encoder_of):
    tokenizer = word_level(normalizers.NFC())
    encoder, _ = encoder_of(tokenizer)
    tokenizer.add_tokens([AddedToken("<late>", normalized=False)])
    tokenizer.save(str(encoder.table.tokenizer))
    encoder.encode(["the end"])
    with pytest.raises(IndexError, match=r"token \d+ has no vector: the table has \d+"):
        encoder.encode(["the end <late>"])


def test_an_encoder_that_nobody_holds_is_freed(encoder_of):
    import gc
    import weakref

    encoder, _ = encoder_of(wordllama())
    encoder.encode(["some text"])
    seen = weakref.ref(encoder)
    vectors = weakref.ref(encoder._loaded[0])
    del encoder
    gc.collect()
    assert (seen(), vectors()) == (None, None)


# ---- structures that are not known ---------------------------------------------------------------


def changed(path, value):
    def change(settings):
        *way, last = path
        place = settings
        for key in way:
            place = place[key]
        place[last] = value

    return change


def appended(path, value):
    def change(settings):
        place = settings
        for key in path:
            place = place[key]
        place.append(value)

    return change


NEW_TOKEN = {
    "id": 0, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": False, "special": False,
}  # fmt: skip
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


@cache
def llama_settings():
    return settings_of(llama())


@pytest.mark.parametrize(
    "change",
    [
        appended(["model", "merges"], ["a", SPACE]),
        appended(["model", "merges"], [SPACE + "a", SPACE + "b"]),
        appended(["model", "merges"], f"a {SPACE}"),
        changed(["model", "ignore_merges"], True),
        changed(["model", "dropout"], 0.1),
        changed(["model", "continuing_subword_prefix"], "##"),
        changed(["model", "end_of_word_suffix"], "</w>"),
        changed(["model", "vocab"], {"a": 0}),
        changed(["model", "type"], "Unigram"),
        changed(["normalizer"], None),
        changed(["normalizer"], {"type": "Strip", "strip_left": True, "strip_right": True}),
        changed(["normalizer", "normalizers", 0, "prepend"], "x"),
        changed(["normalizer", "normalizers", 1, "pattern"], {"Regex": " +"}),
        appended(["normalizer", "normalizers"], {"type": "NFC"}),
        changed(["pre_tokenizer"], {"type": "ByteLevel"}),
        changed(["post_processor"], TEMPLATE | {"single": [TEXT, TEXT]}),
        changed(["post_processor"], TEMPLATE | {"single": []}),
        changed(["post_processor"], {"type": "Other"}),
        appended(["added_tokens"], NEW_TOKEN | {"content": "a b"}),
        appended(["added_tokens"], NEW_TOKEN | {"normalized": True}),
    ],
)
def test_another_structure_than_llamas_is_not_cut(change):
    settings = copy.deepcopy(llama_settings())
    assert find_cut(settings).kind == "dropping"
    change(settings)
    assert find_cut(settings) == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        changed(["pre_tokenizer"], None),
        changed(["pre_tokenizer"], {"type": "Punctuation", "behavior": "Isolated"}),
        changed(["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": " a"}}),
        changed(["pre_tokenizer"], {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, {"type": "Whitespace"}]}),
        changed(["pre_tokenizer"], {"type": "Sequence", "pretokenizers": [
            {"type": "Whitespace"}, {"type": "Metaspace"}]}),
        changed(["normalizer"], {"type": "Precompiled"}),
        changed(["normalizer"], {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"String": "a b"}, "content": "ab"}]}),
        changed(["model", "type"], "Other"),
        appended(["added_tokens"], NEW_TOKEN | {"normalized": True}),
    ],
)  # fmt: skip
def test_another_structure_than_words_is_not_cut(change):
    settings = settings_of(word_level(normalizers.NFC()))
    assert find_cut(settings).kind == "dropping"
    change(settings)
    assert find_cut(settings) == WHOLE


def across_spaces():
    """Tokenizers for which a cut at a space would give other ids."""
    joined = word_level(normalizers.NFC())
    joined.normalizer = normalizers.Replace(Regex("a b"), "ab")
    yield "a normalizer", joined
    spaced = word_level(normalizers.NFC())
    spaced.add_tokens([AddedToken("of the", normalized=False)])
    yield "an added token", spaced
    gpt = trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    yield "byte level", gpt
    twice = word_level(normalizers.NFC())
    twice.post_processor = processors.TemplateProcessing(single="$A $A", special_tokens=[])
    yield "a template", twice
    yield "a whole text in the vocabulary", metaspace("always", split=False, ignore_merges=True)


@pytest.mark.parametrize("case", [0, 1, 2, 3, 4])
def test_tokenizers_that_read_across_spaces_get_whole_texts(encoder_of, case):
    _, tokenizer = list(across_spaces())[case]
    assert find_cut(settings_of(tokenizer)) == WHOLE
    encoder, table = encoder_of(tokenizer)
    texts = ["one of the best", "a b a b", *nasty_texts(300), *prose_texts()]
    expected = means_in_order(table, library_ids(tokenizer, texts), None, unknown_of(tokenizer))
    assert np.array_equal(encoder.encode(texts), expected)
