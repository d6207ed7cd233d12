"""Quality signals against naive code, and the memory that spares a second scoring."""

import json

import numpy as np
import pytest

from pyids.chat import template
from pyids.chat.formats import Turns
from pyids.errors import ConfigError, DataError
from pyids.scoring import cache, deita
from pyids.scoring import cache as quality
from pyids.scoring.cache import content_hash, score_rows
from pyids.scoring.classifiers import Classifier, Reward
from pyids.scoring.deita import Deita
from pyids.scoring.row_weights import check_quality, histogram, log_weights, rescale
from pyids.scoring.signals import Ifd, Length, Perplexity, make_signal

torch = pytest.importorskip("torch", reason="needs the train extra")


def talk(*turns):
    return [
        {"role": role, "content": content}
        for role, content in zip(["user", "assistant"] * len(turns), turns, strict=False)
    ]


ROWS = [
    talk("What is the capital of France?", "Paris"),
    talk("Count to nine.", "1, 2, 3, 4, 5, 6, 7, 8, 9"),
    talk("Hello", "Hello! How can I help?", "Tell me a joke.", "Why did the hen cross?"),
    talk("2 + 2 =", "4"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Random weights of small models that share the packaged model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from pyids.models import load

    tokenizer = load.load_tokenizer("smollm2-135m-instruct")
    torch.manual_seed(0)
    folders = {}
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.5,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, kind, labels in (
        ("causal", LlamaForCausalLM, 2),
        ("reward", LlamaForSequenceClassification, 1),
        ("grades", LlamaForSequenceClassification, 4),
    ):
        folders[name] = str(tmp_path_factory.mktemp(name))
        kind(LlamaConfig(**shape, num_labels=labels)).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def causal_logits(folder, ids):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(torch.as_tensor(ids)[None]).logits[0].double()


def naive_nll(folder, ids, mask):
    log_p = causal_logits(folder, ids).log_softmax(-1)
    nll = -log_p[np.arange(len(ids) - 1), ids[1:]].numpy()
    return nll[mask[1:]].mean()


def test_the_memory_knows_all_that_a_signal_sees():
    call = [*talk("Weather?"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    other = [*talk("Weather?"), {"role": "assistant", "content": "", "tool_calls": [{"name": "g"}]}]
    offers = [Turns(call, [{"name": name}]) for name in "fg"]
    assert len({content_hash(row) for row in (call, other, *offers)}) == 4
    assert content_hash(Turns(call, [])) == content_hash(call)


def test_length_counts_what_the_assistant_wrote():
    assert Length().score(ROWS).tolist() == [5, 25, 22 + 22, 1]


def test_perplexity_and_ifd_are_the_naive_values(tiny):
    from pyids.models import load

    tokenizer = load.load_tokenizer(tiny["causal"])
    perplexity, ifd = [], []
    for row in ROWS:
        ids, mask = template.encode(row, tokenizer)
        given = naive_nll(tiny["causal"], ids, mask)
        response = np.concatenate([[tokenizer.bos_token_id], ids[mask]])
        alone = naive_nll(tiny["causal"], response, np.arange(len(response)) > 0)
        perplexity.append(-given)
        ifd.append(given / alone if given <= alone else 0.0)
    got = Perplexity(tiny["causal"]).score(ROWS)
    np.testing.assert_allclose(got, perplexity, atol=1e-4)
    np.testing.assert_allclose(Ifd(tiny["causal"]).score(ROWS), ifd, atol=1e-4)
    assert np.count_nonzero(ifd) > 0


def test_deita_is_the_expected_rating_summed_over_turns(tiny):
    signal = Deita(tiny["causal"], complexity_prompt="C {prompt} Rating:")
    tokenizer = signal._loaded[1]
    digits = [
        tokenizer(f"Rating: {k}", add_special_tokens=False)["input_ids"][-1] for k in range(1, 7)
    ]
    assert [tokenizer.decode([d]).strip() for d in digits] == list("123456")

    def rating(text):
        p = causal_logits(tiny["causal"], tokenizer(text)["input_ids"])[-1, digits].softmax(-1)
        return float(sum(k * p[k - 1] for k in range(1, 7)))

    expected = []
    for row in ROWS:
        pairs = zip(row[::2], row[1::2], strict=True)
        expected.append(
            sum(
                rating(f"C {a['content']} Rating:")
                * rating(deita.QUALITY_PROMPT.format(prompt=a["content"], response=b["content"]))
                for a, b in pairs
            )
        )
    np.testing.assert_allclose(signal.score(ROWS), expected, rtol=1e-4)
    small = Deita(tiny["causal"], complexity_prompt="C {prompt} Rating:", batch_tokens=1)
    np.testing.assert_allclose(small.score(ROWS), expected, rtol=1e-4)
    assert np.isnan(signal.score([talk("only a question")])[0])


def test_deita_takes_a_rater_for_each_factor(tiny, tmp_path):
    """As published: one model rates prompts, another one answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(tiny["causal"])
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(-1.5)
    other.save_pretrained(tmp_path / "complexity")
    AutoTokenizer.from_pretrained(tiny["causal"]).save_pretrained(tmp_path / "complexity")
    both = make_signal(f"deita:{tiny['causal']},{tmp_path / 'complexity'}", default_model="none")
    quality, complexity = Deita(tiny["causal"]), Deita(str(tmp_path / "complexity"))
    row = ROWS[0]
    asked, answer = row[0]["content"], row[1]["content"]
    expected = complexity.expected_ratings([deita.COMPLEXITY_PROMPT.format(prompt=asked)])
    expected *= quality.expected_ratings(
        [deita.QUALITY_PROMPT.format(prompt=asked, response=answer)]
    )
    np.testing.assert_allclose(both.score([row]), expected, rtol=1e-5)
    assert abs(both.score([row])[0] - quality.score([row])[0]) > 1e-3
    assert both.identity != quality.identity


@pytest.mark.parametrize("name", ["reward", "grades"])
def test_classifiers_do_not_depend_on_the_batch(tiny, name):
    from transformers import AutoModelForSequenceClassification

    signal = Classifier(tiny[name])
    model = AutoModelForSequenceClassification.from_pretrained(tiny[name]).eval()
    expected = []
    for row in ROWS:
        ids = signal._loaded[1](template.text_of(row), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model(ids).logits[0].double()
        p = logits.softmax(-1)
        expected.append(float(logits[0] if len(logits) == 1 else p @ torch.arange(4.0).double()))
    np.testing.assert_allclose(signal.score(ROWS), expected, atol=1e-5)
    if name == "reward":
        rewards = Reward(tiny[name]).score(ROWS)
        one_by_one = [Reward(tiny[name]).score([row])[0] for row in ROWS]
        np.testing.assert_allclose(rewards, one_by_one, atol=1e-5)
        assert np.ptp(rewards) > 1e-3


class Counting:
    """A signal that counts what it is asked for."""

    def __init__(self, name="counting", fail_after=10**9):
        self.name, self.asked, self.fail_after = name, [], fail_after

    @property
    def identity(self):
        return {"signal": self.name}

    def score(self, rows):
        if len(self.asked) >= self.fail_after:
            raise RuntimeError("killed")
        self.asked += [row[0]["content"] for row in rows]
        return np.array([float(row[0]["content"]) for row in rows])


def test_each_content_is_scored_once(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "CHUNK_ROWS", 4)
    numbers = [3, 1, 3, 2, 5, 1, 8, 9, 7, 3]
    rows = [talk(str(n), "x") for n in numbers]
    with pytest.raises(RuntimeError, match="killed"):
        score_rows(Counting(fail_after=5), rows, cache=tmp_path)
    resumed = Counting()
    np.testing.assert_array_equal(score_rows(resumed, rows, cache=tmp_path), numbers)
    assert resumed.asked == ["7"]  # two chunks of four were done and kept
    again = Counting()
    np.testing.assert_array_equal(score_rows(again, rows[::-1], cache=tmp_path), numbers[::-1])
    assert again.asked == []
    other = Counting("another")
    score_rows(other, rows, cache=tmp_path)
    assert sorted(other.asked) == sorted({str(n) for n in numbers})
    unkept = Counting()
    score_rows(unkept, rows)
    assert len(unkept.asked) == 9  # once a chunk of four


def test_the_model_is_part_of_the_identity(tiny, tmp_path):
    assert Perplexity(tiny["causal"]).identity != Perplexity(tiny["reward"]).identity
    assert Perplexity(tiny["causal"]).identity != Ifd(tiny["causal"]).identity
    assert json.dumps(Deita(tiny["causal"]).identity)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("length", Length),
        ("perplexity", Perplexity),
        ("ifd:m", Ifd),
        ("deita", Deita),
        ("reward:m", Reward),
        ("classifier:m", Classifier),
    ],
)
def test_signals_by_name(spec, kind):
    signal = make_signal(spec, default_model="default")
    assert type(signal) is kind
    if spec != "length":
        assert signal.model == ("m" if ":" in spec else "default")


def test_mistaken_names():
    assert make_signal("score", default_model="x") is None
    with pytest.raises(ConfigError, match="write reward:MODEL"):
        make_signal("reward", default_model="x")
    with pytest.raises(ConfigError, match="takes no model"):
        make_signal("length:x", default_model="x")


def test_values_that_cannot_rank_are_refused():
    check_quality(np.array([1.0, 2.0]))
    check_quality(np.array([1.0]))
    with pytest.raises(DataError, match=r"quality of row 7 is nan \(2 such rows of 3\)"):
        check_quality(np.array([1, np.nan, np.inf]), np.array([5, 7, 9]))
    with pytest.raises(DataError, match="quality is 2 for all 3 rows"):
        check_quality(np.array([2.0, 2, 2]))


def test_weights_and_scales():
    q = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(np.exp(log_weights(q, "proportional")), q)
    steps = np.diff(log_weights(q * 1e6 + 7, temperature=2.0))
    np.testing.assert_allclose(steps, 1 / q.std() / 2)
    assert rescale(q * 5 - 1).tolist() == [0, 0.5, 1]
    with pytest.raises(DataError, match="below 0"):
        log_weights(-q, "proportional")
    with pytest.raises(ConfigError, match="temperature is 0"):
        log_weights(q, temperature=0)
    h = histogram(np.arange(100.0), bins=4)
    assert h["counts"] == [25, 25, 25, 25]
    assert h["quantiles"][3] == 49.5
    assert json.loads(json.dumps(h)) == h


def test_the_quality_of_a_run_folder(tmp_path):
    from pyids.methods import get_method, pool_from_store
    from pyids.store.folder import Store

    file = tmp_path / "rows.jsonl"
    lines = [
        {"messages": talk(f"question {i}", "a" * (i + 1)), "score": i % 7, "kind": "ab"[i % 2]}
        for i in range(30)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    with Store.open(tmp_path / "run") as store:
        ingest_file(store, file)
        got = cache.store_quality(store, "score", default_model="-")
        assert got.tolist() == [i % 7 for i in range(30)]
        lengths = cache.store_quality(store, "length", default_model="-")
        assert lengths.tolist() == list(range(1, 31))
        pool = pool_from_store(store, quality=lengths)
        assert get_method("longest")(pool, 3).tolist() == [29, 28, 27]
        uniform = get_method("uniform")(pool, 10, column="kind")
        assert np.bincount(uniform % 2).tolist() == [5, 5]
        with pytest.raises(ConfigError, match="no embeddings"):
            get_method("deita")(pool, 3)
        for column, message in (("kind", "holds 'a' in column 'kind'"), ("none", "has no column")):
            with pytest.raises(DataError, match=message):
                cache.store_quality(store, column, default_model="-")


def ingest_file(store, file):
    from pyids.data.ingest import ingest
    from pyids.data.sources import open_sources

    ingest(store, open_sources([str(file)]))


@pytest.mark.slow
def test_the_packaged_model_finds_fluent_answers_better():
    good = talk("Name the capital of France.", "The capital of France is Paris.")
    bad = talk("Name the capital of France.", "zq France xx of 7 capital Paris is is the")
    scores = Perplexity("smollm2-135m-instruct").score([good, bad])
    assert scores[0] > scores[1] + 1
    ratings = Deita("smollm2-135m-instruct").score([good, bad])
    assert np.all((ratings > 1) & (ratings < 36))
