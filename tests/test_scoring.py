"""Response NLLs against the naive code, and the round scorers."""

import numpy as np
import pytest

from pyids.chat.template import encode, last_response
from pyids.errors import ConfigError
from pyids.models import finetune, hf, hub, lm_head, load
from pyids.models.gradients import row_gradients
from pyids.models.nll import response_nll
from pyids.models.reward import RewardModel
from pyids.scoring import probes, scorers

torch = pytest.importorskip("torch", reason="needs the train extra")

ROWS = [
    [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    for q, a in [
        ("What is the capital of France?", "Paris"),
        ("Count to nine.", "1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("Say it thrice: ho", "ho ho ho"),
        ("Name three colors and the moods that go with them.", "Red for anger, blue for calm."),
        ("2 + 2 =", "4"),
    ]
]
CLUSTERS = np.arange(len(ROWS), dtype=np.int32)
# An answer that follows from its prompt, and one that does not.
TELLING = [
    [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    for q, a in [
        ("Repeat after me: seven purple xylophones", "seven purple xylophones"),
        ("Name the 35th element.", "the cat sat on the mat and the dog on the log"),
    ]
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("round") / "checkpoint"
    checkpoint = finetune.finetune(
        "smollm2-135m-instruct",
        ROWS[1:3],
        output_dir=folder,
        learning_rate=1e-3,
        num_train_epochs=2,
    )
    return probes.Models(hub.resolve_model("smollm2-135m-instruct"), checkpoint.path)


def naive(model, tokenizer, messages):
    ids, mask = encode(messages, tokenizer)
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids)[None]).logits[0].double()
    nll = -logits.log_softmax(-1)[np.arange(len(ids) - 1), ids[1:]].numpy()
    return nll[mask[1:]].mean(), mask[1:].sum()


def test_response_nll_is_the_naive_mean(smollm2):
    expected = [naive(*smollm2, messages) for messages in ROWS]
    nll, counts = response_nll(*smollm2, ROWS)
    np.testing.assert_allclose(nll, [e[0] for e in expected], atol=1e-4)
    assert counts.tolist() == [e[1] for e in expected]
    assert nll.dtype == np.float64


@pytest.mark.parametrize(
    "options", [{"batch_tokens": 1}, {"padding_side": "left"}, {"batch_tokens": 150}]
)
def test_response_nll_does_not_depend_on_the_batch(smollm2, options):
    together, _ = response_nll(*smollm2, ROWS)
    other, _ = response_nll(*smollm2, ROWS, **options)
    np.testing.assert_allclose(other, together, atol=1e-4)
    backwards, _ = response_nll(*smollm2, ROWS[::-1], **options)
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-4)


def test_a_shared_beginning_is_computed_once(smollm2, monkeypatch):
    model, tokenizer = smollm2
    seen = []
    honest = lm_head.Head.hidden

    def spy(self, input_ids, attention_mask, shared=None):
        seen.append((input_ids.shape[1], shared[0][0].shape[2] if shared else 0))
        return honest(self, input_ids, attention_mask, shared)

    monkeypatch.setattr(lm_head.Head, "hidden", spy)
    response_nll(model, tokenizer, ROWS, batch_tokens=1)
    together = response_nll(model, tokenizer, ROWS)[0]
    system = tokenizer.apply_chat_template(ROWS[0], tokenize=False).partition("What is")[0]
    assert {shared for _, shared in seen} == {len(tokenizer(system)["input_ids"])}
    seen.clear()
    alone = [response_nll(model, tokenizer, [row])[0][0] for row in ROWS]
    assert {shared for _, shared in seen} == {0}
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_rows_without_a_response_are_nan(smollm2):
    rows = [ROWS[0], [{"role": "user", "content": "Hello?"}], ROWS[1]]
    nll, counts = response_nll(*smollm2, rows)
    assert np.isnan(nll).tolist() == [False, True, False]
    assert counts[1] == 0
    assert response_nll(*smollm2, [])[0].shape == (0,)


def test_an_adapter_switched_off_is_the_base_model(smollm2, models):
    alone, _ = response_nll(*smollm2, ROWS)
    with models.base() as pair:
        beside, _ = response_nll(*pair, ROWS)
    with models.trained() as pair:
        trained, _ = response_nll(*pair, ROWS)
    assert (beside == alone).all()
    assert (trained != alone).all()


def test_learnability_is_highest_on_what_was_taught(models):
    scores = scorers.score("learnability", models, ROWS, CLUSTERS)
    columns = scores.columns
    np.testing.assert_array_equal(scores.values, columns["base_nll"] - columns["checkpoint_nll"])
    assert scores.values[1:3].min() > 0
    relative = scorers.score("relative-learnability", models, ROWS, CLUSTERS)
    np.testing.assert_allclose(relative.values, scores.values / columns["base_nll"])


def test_residual_learnability_has_no_trend_on_the_base_loss(models):
    scores = scorers.score("residual-learnability", models, ROWS, CLUSTERS)
    base = scores.columns["base_nll"]
    assert abs(scores.values.mean()) < 1e-12
    assert abs(scores.values @ (base - base.mean())) < 1e-9


def test_loss_is_the_checkpoints(models):
    scores = scorers.score("loss", models, ROWS, CLUSTERS)
    np.testing.assert_array_equal(scores.values, scores.columns["checkpoint_nll"])


def test_an_unknown_scorer_is_named():
    with pytest.raises(ConfigError, match=r"no scorer 'vibes': choose one of sound-learnability"):
        scorers.score("vibes", None, ROWS, CLUSTERS)


# ---- scorers that need more than losses ----------------------------------------------------------


def plant(monkeypatch, *, base, left, helped, tokens=20.0):
    """Let the models have measured this of clusters of one row each."""
    monkeypatch.setattr(probes.Probes, "response_tokens", np.broadcast_to(tokens, left.shape))
    monkeypatch.setattr(probes.Probes, "base_nll", base)
    monkeypatch.setattr(probes.Probes, "checkpoint_nll", left)
    monkeypatch.setattr(probes.Probes, "response_alone_nll", left / (1 - helped))


# Eleven ordinary clusters and a twelfth. Whatever the twelfth is, the medians of all stay at 10 and
# 20 and the robust standard deviations at 1, so that deviations can be read off.
ORDINARY = np.repeat([-1 / 1.4826, 0.0, 1 / 1.4826], [4, 3, 4])
TWELVE = np.arange(12, dtype=np.int32)


@pytest.mark.parametrize(
    ("twelfth", "score"),
    [
        ({}, 0.0),
        ({"drop": 2.0}, 0.6),
        ({"drop": -1.0}, -0.3),
        ({"drop": -7.0}, -0.3),  # a skill that is not learnt yet is not lost for that
        ({"drop": 4.0}, 1.2),
        ({"drop": 4.5}, 0.7),  # half a deviation too steep: formatting, learnt at once
        ({"drop": 19.0}, -3.8),
        ({"drop": 19.0, "tokens": 1.0}, 1.2),  # so is a label of one word, of which there is little
        ({"left": 1.5}, 0.0),
        ({"left": 2.0}, -2.0),  # half a deviation too surprising: noise
        ({"left": 9.0}, -5.0),
        ({"helped": 0.9}, 0.0),
        ({"helped": 0.4}, 0.0),
        ({"helped": 0.3}, -0.72),  # half the help that is usual
        ({"helped": 0.0}, -2.88),
        ({"helped": -0.5}, -2.88),  # a prompt that misleads is no worse than one that is no help
        ({"drop": 4.5, "left": 2.0, "helped": 0.3}, -2.02),
    ],
)
def test_sound_learnability_by_hand(monkeypatch, twelfth, score):
    left = 10 + np.append(ORDINARY, twelfth.get("left", 0.0))
    drop = 20 + np.append(ORDINARY[::-1], twelfth.get("drop", 0.0))
    helped = np.append(np.full(11, 0.6), twelfth.get("helped", 0.6))
    tokens = np.append(np.full(11, 20.0), twelfth.get("tokens", 20.0))
    plant(monkeypatch, base=left + drop, left=left, helped=helped, tokens=tokens)
    scores = scorers.score("sound-learnability", None, [ROWS[0]] * 12, TWELVE)
    assert scores.values[11] == pytest.approx(score, abs=1e-6)
    assert scores.temperature == 1.0


# Seven ordinary clusters; then noise, formatting, and answers that follow from nothing.
LEFT = np.array([2.0, 2.1, 1.9, 2.15, 1.8, 2.05, 1.95, 9.0, 2.0, 2.1])
DROP = np.array([0.5, 0.6, 0.4, 0.5, 0.7, 0.3, 0.55, 0.5, 9.0, 0.5])
HELPED = np.array([0.6, 0.5, 0.7, 0.6, 0.5, 0.4, 0.6, 0.5, 0.6, -0.1])
EACH = np.arange(10, dtype=np.int32)


def test_sound_learnability_finds_noise_form_and_answers_to_nothing(models, monkeypatch):
    plant(monkeypatch, base=LEFT + DROP, left=LEFT, helped=HELPED)
    scores = scorers.score("sound-learnability", models, [*ROWS, *ROWS], EACH)
    assert np.abs(scores.values[:7]).max() < 0.6
    assert scores.values[7:].max() < -1.5


def test_sound_learnability_does_not_ask_for_help_that_no_answer_gets(models, monkeypatch):
    """A model that cannot read its prompts: their help is small for all, garbage or not."""
    plant(monkeypatch, base=LEFT + DROP, left=LEFT, helped=HELPED / 20)
    scores = scorers.score("sound-learnability", models, [*ROWS, *ROWS], EACH)
    assert scores.values[9] > -0.1


def test_sound_learnability_spares_labels_that_are_learnt_at_once(models, monkeypatch):
    """A label of one word falls as steeply as boilerplate does, but there is little of it."""
    tokens = np.where(np.arange(10) == 8, 1.0, 20.0)
    plant(monkeypatch, base=LEFT + DROP, left=LEFT, helped=HELPED, tokens=tokens)
    scores = scorers.score("sound-learnability", models, [*ROWS, *ROWS], EACH)
    assert scores.values[8] == scores.values.max() == pytest.approx(1.2)


def test_sound_learnability_of_rows_without_a_loss_is_unknown(models, monkeypatch):
    left = np.append(LEFT[:9], np.nan)
    plant(monkeypatch, base=left + DROP, left=left, helped=HELPED)
    values = scorers.score("sound-learnability", models, [*ROWS, *ROWS], EACH).values
    assert np.isnan(values).tolist() == [False] * 9 + [True]
    unknown = np.full(5, np.nan)
    plant(monkeypatch, base=unknown, left=unknown, helped=HELPED[:5])
    assert np.isnan(scorers.score("sound-learnability", models, ROWS, EACH[:5]).values).all()


def test_sound_learnability_is_made_of_what_it_keeps(models, monkeypatch):
    """The columns beside the scores are all that they are made of, as means of the clusters."""
    clusters = np.array([0, 0, 1, 2, 3], np.int32)
    scores = scorers.score("sound-learnability", models, ROWS, clusters)
    with models.trained() as (model, tokenizer):
        counts = [naive(model, tokenizer, row)[1] for row in ROWS]
    np.testing.assert_array_equal(scores.columns["response_tokens"], counts)
    assert scores.values[0] != scores.values[1]  # so that a cluster's noise shows
    assert len(set(scores.values)) > 1
    base, left, alone, tokens = (
        scores.columns[name]
        for name in ("base_nll", "checkpoint_nll", "response_nll", "response_tokens")
    )
    plant(monkeypatch, base=base, left=left, helped=1 - left / alone, tokens=tokens)
    again = scorers.score("sound-learnability", models, ROWS, clusters)
    np.testing.assert_allclose(again.values, scores.values, atol=1e-9)


def test_ifd_is_the_loss_with_the_prompt_over_the_loss_without(models):
    scores = scorers.score("ifd", models, TELLING, CLUSTERS[:2])
    with models.trained() as (model, tokenizer):
        for i, messages in enumerate(TELLING):
            answer = tokenizer(messages[1]["content"] + tokenizer.eos_token)["input_ids"]
            ids = torch.tensor([[tokenizer.bos_token_id, *answer]])
            with torch.inference_mode():
                nll = model(ids, labels=ids).loss
            expected = naive(model, tokenizer, messages)[0] / float(nll)
            np.testing.assert_allclose(scores.columns["ifd"][i], expected, rtol=1e-4)
    assert scores.values[0] < 0.5 < scores.values[1]


def test_pmi_is_what_the_prompt_saves_a_token(models):
    scores = scorers.score("pmi", models, TELLING, CLUSTERS[:2])
    ifd = scorers.score("ifd", models, TELLING, CLUSTERS[:2])
    saved = ifd.columns["response_nll"] - ifd.columns["checkpoint_nll"]
    np.testing.assert_allclose(scores.values, saved, rtol=1e-5)
    assert scores.values[0] > scores.values[1] + 1


def test_ifd_above_one_counts_nothing(models, monkeypatch):
    monkeypatch.setattr(probes.Probes, "checkpoint_nll", np.array([1.0, 3.0, np.nan]))
    monkeypatch.setattr(probes.Probes, "response_alone_nll", np.full(3, 2.0))
    values = scorers.score("ifd", models, ROWS[:3], CLUSTERS[:3]).values
    np.testing.assert_array_equal(values, [0.5, 0.0, np.nan])


def greedy(model, tokenizer, messages, n):
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + n and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_perplexity_sets_the_gold_against_the_checkpoints_own_answer(models):
    prompts = [row[:1] for row in (ROWS[0], ROWS[4])]
    with models.trained() as (model, tokenizer):
        answers = [greedy(model, tokenizer, prompt, 6) for prompt in prompts]
        own = [
            [*p, {"role": "assistant", "content": a}] for p, a in zip(prompts, answers, strict=True)
        ]
        unlikely = [*prompts[0], {"role": "assistant", "content": "Zymurgy!"}]
        expected = naive(model, tokenizer, unlikely)[0] - naive(model, tokenizer, own[0])[0]
    options = probes.ScoringOptions(max_new_tokens=6)
    scores = scorers.score("perplexity", models, [*own, unlikely], CLUSTERS[:3], options)
    np.testing.assert_allclose(scores.values[:2], 0, atol=1e-4)
    np.testing.assert_allclose(scores.values[2], expected, atol=1e-3)
    assert scores.values[2] > 1


def test_only_the_last_response_is_compared(smollm2):
    turns = [*ROWS[0], *ROWS[1]]
    row = last_response(encode(turns, smollm2[1]))
    said = smollm2[1].decode(row.input_ids[row.response_mask])
    assert said == "1, 2, 3, 4, 5, 6, 7, 8, 9<|im_end|>"


class Critic:
    """Likes the words gold and Paris."""

    def __init__(self):
        self.seen = []

    def rate(self, conversations, progress=None):
        self.seen.append(conversations)
        return np.array([float("Paris" in messages[-1]["content"]) for messages in conversations])


@pytest.mark.parametrize("scorer", ["reward", "judge"])
def test_rating_is_gold_less_generated(models, scorer):
    critic = Critic()
    options = probes.ScoringOptions(rater=critic, max_new_tokens=4)
    wrong = [ROWS[4][0], {"role": "assistant", "content": "Paris"}]
    scores = scorers.score(scorer, models, [ROWS[1], wrong], CLUSTERS[:2], options)
    assert scores.values.tolist() == [0.0, 1.0]
    gold, generated = critic.seen
    assert gold == [ROWS[1], wrong]
    assert [messages[:-1] for messages in generated] == [ROWS[1][:1], wrong[:1]]
    with pytest.raises(ConfigError, match="needs a reward model or a judge"):
        scorers.score(scorer, models, ROWS, CLUSTERS)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("template", [True, False])
def test_a_reward_model_rates_each_conversation_by_itself(smollm2, tmp_path, labels, template):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = load.load_tokenizer("smollm2-135m-instruct")
    if not template:
        tokenizer.chat_template = None
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=labels,
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    with hf.quiet():
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    ref = hub.resolve_model(str(tmp_path), kind="reward model")
    rewards = RewardModel(ref).rate(ROWS)
    np.testing.assert_allclose(RewardModel(ref, batch_tokens=1).rate(ROWS), rewards, atol=1e-5)
    for messages, reward in zip(ROWS, rewards, strict=True):
        if template:
            ids = tokenizer.apply_chat_template(messages, return_dict=False)
        else:
            ids = tokenizer(messages[0]["content"], messages[1]["content"])["input_ids"]
        with torch.inference_mode():
            states = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            logits = model.score(states).tolist()
        expected = logits[0] if labels == 1 else logits[1] - logits[0]
        np.testing.assert_allclose(reward, expected, atol=1e-5)


def test_sketches_keep_angles(models):
    with models.trained() as (model, tokenizer):
        rows = [encode(messages, tokenizer) for messages in ROWS[:4]]
        sketch = row_gradients(model, rows)
        weights = [p for name, p in model.named_parameters() if "lora_" in name]
        assert not any(p.requires_grad for p in weights)  # as it was
        full = []
        for p in weights:
            p.requires_grad_(True)
        for row in rows:
            ids = torch.from_numpy(row.input_ids)[None]
            labels = torch.where(torch.from_numpy(row.response_mask)[None], ids, -100)
            grads = torch.autograd.grad(model(ids, labels=labels).loss, weights)
            full.append(
                torch.nn.functional.normalize(torch.cat([g.flatten() for g in grads]), dim=0)
            )
        for p in weights:
            p.requires_grad_(False)
    exact = np.stack(full) @ np.stack(full).T
    np.testing.assert_allclose(np.linalg.norm(sketch, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(sketch @ sketch.T, exact, atol=0.05)


def test_alignment_finds_the_cluster_that_helps_nobody(models):
    """Clusters 0 to 2 teach one thing, each with its own questions; cluster 3 is noise."""
    things = ["zebra", "lemon", "violin", "ladder", "cloud", "pebble"]
    lessons = [
        [{"role": "user", "content": f"{ask} {thing}"}, {"role": "assistant", "content": "Blorp!"}]
        for ask, pair in zip(
            ("Greet the", "Buy a", "Where is my"),
            (things[:2], things[2:4], things[4:]),
            strict=True,
        )
        for thing in pair
    ]
    noise = [
        [{"role": "user", "content": f"Greet the {a}"}, {"role": "assistant", "content": b}]
        for a, b in (("moon", "of jagged the whereas sprocket"), ("sea", "thus 19 kettle un per"))
    ]
    clusters = np.array([0, 0, 1, 1, 2, 2, 9, 9], np.int32)
    scores = scorers.score("gradient-alignment", models, [*lessons, *noise], clusters).values
    assert scores[:6].min() > scores[6:].max() + 0.2
    lonely = scorers.score("gradient-alignment", models, lessons[:2], clusters[:2]).values
    assert np.isnan(lonely).all()  # there is no other cluster
