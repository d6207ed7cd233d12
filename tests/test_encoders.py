"""Encoders against sentence-transformers, wordllama and plain loops."""

import json

import numpy as np
import pytest

from pyids.encoders import load_encoder
from pyids.encoders.transformer import Recipe, read_recipe
from pyids.errors import ModelError
from pyids.models import hf, load

torch = pytest.importorskip("torch", reason="needs the train extra")

MINILM = "all-MiniLM-L6-v2"
TEXTS = [
    "A puffin stands on the cliff.",
    "",
    "2 + 2 = 4",
    "Ein Satz auf Deutsch, mit Umlauten: äöü.",
    "word " * 400,
    "def f(x):\n    return x ** 2\n" * 3,
    "日本語の文章です。",
]


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def minilm():
    return load_encoder(MINILM)


def test_vectors_are_those_of_sentence_transformers(minilm):
    library = pytest.importorskip(
        "sentence_transformers", reason="needs sentence-transformers to compare with"
    )
    with hf.quiet():
        theirs = library.SentenceTransformer(str(minilm.folder), device="cpu").encode(TEXTS)
    ours = minilm.encode(TEXTS)
    assert (ours.shape, ours.dtype, minilm.dim) == ((len(TEXTS), 384), np.float32, 384)
    assert minilm.limit == 256
    assert cosine(ours, theirs).min() > 0.9999
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_vectors_are_those_of_the_naive_code(minilm):
    """The same without that library: one text, mean of the states, unit length."""
    from transformers import AutoModel, AutoTokenizer

    with hf.quiet():
        model = AutoModel.from_pretrained(minilm.folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(minilm.folder)
    ours = minilm.encode(TEXTS)
    for text, vector in zip(TEXTS, ours, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**tokens).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_neighbors_and_batches_do_not_matter(minilm):
    together = minilm.encode(TEXTS)
    backwards = load_encoder(MINILM, batch_tokens=1).encode(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_half_precision_products_keep_the_direction(minilm):
    half = load_encoder(MINILM, dtype="bfloat16")
    assert cosine(half.encode(TEXTS), minilm.encode(TEXTS)).min() > 0.9999
    assert half.revision != minilm.revision


def test_long_texts_are_cut_or_averaged(minilm):
    text = "The sea is wide. " * 10 + "Tax forms are due in spring. " * 10
    cut = load_encoder(MINILM, max_length=34)
    np.testing.assert_allclose(
        cut.encode([text, "short"]), cut.encode([text[:320], "short"]), atol=1e-5
    )
    chunks = load_encoder(MINILM, max_length=34, long_text="chunk")
    vectors = chunks.encode(["short", text])
    np.testing.assert_allclose(vectors[:1], cut.encode(["short"]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert cosine(vectors[1:], minilm.encode([text])) > 0.9
    # the same by hand: equal pieces of the tokens, weighted by their tokens
    tokenizer = load.load_tokenizer(MINILM)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = np.array_split(ids, -(-len(ids) // 32))
    parts = cut.encode([tokenizer.decode(piece) for piece in pieces])
    mean = np.average(parts, axis=0, weights=[len(piece) + 2 for piece in pieces])
    np.testing.assert_allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-4)


def test_the_revision_follows_what_changes_the_vectors(minilm):
    same, shorter = load_encoder(MINILM), load_encoder(MINILM, max_length=64)
    other = load_encoder(MINILM + ":cls")
    assert minilm.revision == same.revision
    assert len({minilm.revision, shorter.revision, other.revision}) == 3


@pytest.fixture
def folder(tmp_path):
    """Make a sentence-transformers folder with a tiny BERT and a pooling config."""
    from transformers import BertConfig, BertModel

    def make(pooling, *modules):
        torch.manual_seed(0)
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        with hf.quiet():
            BertModel(BertConfig(**small, intermediate_size=32)).save_pretrained(tmp_path)
            load.load_tokenizer(MINILM).save_pretrained(tmp_path)
        kinds = ["Transformer", "Pooling", *modules]
        (tmp_path / "modules.json").write_text(
            json.dumps(
                [
                    {
                        "idx": i,
                        "name": str(i),
                        "type": f"sentence_transformers.models.{kind}",
                        "path": kind * bool(i),
                    }
                    for i, kind in enumerate(kinds)
                ]
            )
        )
        (tmp_path / "Pooling").mkdir()
        (tmp_path / "Pooling" / "config.json").write_text(json.dumps(pooling))
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last_token"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_a_folders_pooling_is_honoured(folder, pooling, expected):
    path = folder(pooling)
    encoder = load_encoder(path)
    recipe = encoder.recipe
    assert (recipe.pooling, recipe.normalize) == (expected, False)
    library = pytest.importorskip(
        "sentence_transformers", reason="needs sentence-transformers to compare with"
    )
    full = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": False, **pooling}
    (encoder.folder / "Pooling" / "config.json").write_text(json.dumps(full))
    with hf.quiet():
        theirs = library.SentenceTransformer(path, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ({"pooling_mode_max_tokens": True}, [], "pooling pooling_mode_max_tokens is not one of"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            [],
            "is not one of cls, mean",
        ),
        ({"pooling_mode_mean_tokens": True}, ["Dense"], "module Dense is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_before_any_text(folder, pooling, modules, message):
    with pytest.raises(ModelError, match=message):
        load_encoder(folder(pooling, *modules))


def test_an_unknown_pooling_or_encoder_is_one_line():
    with pytest.raises(ModelError, match="no pooling 'median'; choose one of mean"):
        load_encoder(MINILM + ":median")
    with pytest.raises(ModelError, match=r"encoder '\./nowhere': there is no such folder"):
        load_encoder("./nowhere")


# ---- causal language models ----------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["", ":last_token"])
def test_a_causal_model_is_an_encoder(smollm2, pooling):
    model, tokenizer = smollm2
    encoder = load_encoder("smollm2-135m-instruct" + pooling, max_length=32)
    texts = [TEXTS[0], TEXTS[2], TEXTS[3] * 9]
    vectors = encoder.encode(texts)
    assert encoder.dim == vectors.shape[1] == 576
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:32]])
        with torch.inference_mode():
            states = model.model(ids).last_hidden_state[0].double().numpy()
        ranks = np.arange(1, len(states) + 1)
        expected = states[-1] if pooling else np.average(states, axis=0, weights=ranks)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


# ---- static token embeddings ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def wordllama():
    return load_encoder("wordllama")


def test_static_vectors_are_those_of_wordllama(wordllama):
    library = pytest.importorskip("wordllama.inference", reason="needs wordllama to compare with")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    texts = [text for text in TEXTS if text]
    theirs = library.WordLlamaInference(
        load_file(wordllama.table.weights)["embedding.weight"],
        Tokenizer.from_file(str(wordllama.table.tokenizer)),
    ).embed(texts, norm=True)
    ours = wordllama.encode(TEXTS)
    assert (ours.shape, wordllama.dim) == ((len(TEXTS), 256), 256)
    assert (ours[1] == 0).all()  # the empty text
    np.testing.assert_allclose(np.delete(ours, 1, axis=0), theirs, atol=1e-5)


@pytest.fixture
def model2vec(tmp_path):
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[UNK]": 0, "red": 1, "green": 2, "blue": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])

    def make(normalize, **tensors):
        config = {"model_type": "model2vec", "normalize": normalize}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file({"embeddings": table, **tensors}, tmp_path / "model.safetensors")
        return load_encoder(str(tmp_path))

    return make


def test_a_model2vec_folder_is_the_mean_of_its_known_tokens(model2vec):
    texts = ["red green", "red pink green", "pink", "", "blue blue red"]
    vectors = model2vec(normalize=False).encode(texts)
    np.testing.assert_allclose(vectors, [[0.5, 1], [0.5, 1], [0, 0], [0, 0], [3, 8 / 3]])
    unit = model2vec(normalize=True).encode(texts[:1])
    np.testing.assert_allclose(unit, [[0.5, 1] / np.sqrt(1.25)], rtol=1e-6)


def test_a_stream_of_texts_has_the_vectors_of_each_text(model2vec, monkeypatch):
    monkeypatch.setattr("pyids.encoders.static._BLOCK_ROWS", 3)
    encoder = model2vec(normalize=False)
    texts = ["red", "green red", "", "pink", "blue", "blue green", "red red", "green"]
    taken = []

    def stream():
        for text in texts:
            taken.append(text)
            yield text

    blocks = encoder.encode_stream(stream())
    first = next(blocks)
    assert (len(first), len(taken)) == (3, 6)  # one block is tokenized meanwhile, no more
    whole = np.concatenate([first, *blocks])
    assert np.array_equal(whole, encoder.encode(texts))
    assert np.array_equal(whole, np.concatenate([encoder.encode([text]) for text in texts]))
    seen = []
    encoder.encode(texts, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 8), (6, 8), (8, 8)]
    assert encoder.encode([]).shape == (0, 2)


def test_an_error_in_a_stream_of_texts_arrives_as_it_was(model2vec):
    def broken():
        yield "red"
        raise LookupError("a row that cannot be read")

    with pytest.raises(LookupError, match="cannot be read"):
        list(model2vec(normalize=False).encode_stream(broken()))


def test_model2vecs_token_weights_and_mapping(model2vec):
    encoder = model2vec(
        normalize=False,
        weights=torch.tensor([1.0, 10.0, 1.0, 1.0]),
        mapping=torch.tensor([0, 1, 1, 3]),
    )
    np.testing.assert_allclose(encoder.encode(["red", "green"]), [[10, 0], [1, 0]])


def test_a_broken_table_is_a_model_error(model2vec):
    encoder = model2vec(normalize=False)
    (encoder.ref.path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="holds no single table of token vectors"):
        load_encoder(str(encoder.ref.path)).encode(["red"])


@pytest.mark.parametrize(
    ("kind", "pooling"), [("BertModel", "mean"), ("LlamaForCausalLM", "weighted_mean")]
)
def test_a_plain_folder_is_pooled_by_its_kind(tmp_path, kind, pooling):
    config = {"architectures": [kind], "max_position_embeddings": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_recipe(tmp_path, "x") == Recipe(pooling, normalize=True, max_length=99)


def test_an_endpoint_is_named_by_its_url():
    encoder = load_encoder("http://localhost:9/v1#some-model")
    assert (encoder.name, encoder.revision) == ("some-model", "http://localhost:9/v1#some-model")
