"""Response NLLs against the naive code, and the round scorers."""

import numpy as np
import pytest

from pyids import chat, finetune, lm, scoring

pytest.importorskip("transformers", reason="needs the train extra")

ROWS = [
    [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    for q, a in [
        ("What is the capital of France?", "Paris"),
        ("Count to nine.", "1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("Say it thrice: ho", "ho ho ho"),
        ("Name three colours and the moods that go with them.", "Red for anger, blue for calm."),
        ("2 + 2 =", "4"),
    ]
]


@pytest.fixture(scope="session")
def smollm2():
    return lm.load_model("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("round") / "checkpoint"
    checkpoint = finetune.finetune(
        "smollm2-135m-instruct", ROWS[1:3], output_dir=folder, learning_rate=1e-3, epochs=2
    )
    return scoring.Models(lm.resolve_model("smollm2-135m-instruct"), checkpoint.path)


def naive(model, tokenizer, messages):
    import torch

    ids, mask = chat.encode(messages, tokenizer)
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids)[None]).logits[0].double()
    nll = -logits.log_softmax(-1)[np.arange(len(ids) - 1), ids[1:]].numpy()
    return nll[mask[1:]].mean(), mask[1:].sum()


def test_response_nll_is_the_naive_mean(smollm2):
    expected = [naive(*smollm2, messages) for messages in ROWS]
    nll, counts = scoring.response_nll(*smollm2, ROWS)
    np.testing.assert_allclose(nll, [e[0] for e in expected], atol=1e-4)
    assert counts.tolist() == [e[1] for e in expected]
    assert nll.dtype == np.float64


@pytest.mark.parametrize(
    "options", [{"batch_tokens": 1}, {"padding_side": "left"}, {"batch_tokens": 150}]
)
def test_response_nll_does_not_depend_on_the_batch(smollm2, options):
    together, _ = scoring.response_nll(*smollm2, ROWS)
    other, _ = scoring.response_nll(*smollm2, ROWS, **options)
    np.testing.assert_allclose(other, together, atol=1e-4)
    backwards, _ = scoring.response_nll(*smollm2, ROWS[::-1], **options)
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-4)


def test_rows_without_a_response_are_nan(smollm2):
    rows = [ROWS[0], [{"role": "user", "content": "Hello?"}], ROWS[1]]
    nll, counts = scoring.response_nll(*smollm2, rows)
    assert np.isnan(nll).tolist() == [False, True, False]
    assert counts[1] == 0
    assert scoring.response_nll(*smollm2, [])[0].shape == (0,)


def test_an_adapter_switched_off_is_the_base_model(smollm2, models):
    alone, _ = scoring.response_nll(*smollm2, ROWS)
    with models.base() as pair:
        beside, _ = scoring.response_nll(*pair, ROWS)
    with models.trained() as pair:
        trained, _ = scoring.response_nll(*pair, ROWS)
    assert (beside == alone).all()
    assert (trained != alone).all()


def test_learnability_is_highest_on_what_was_taught(models):
    clusters = np.arange(len(ROWS), dtype=np.int32)
    scores = scoring.score("learnability", models, ROWS, clusters)
    columns = scores.columns
    np.testing.assert_array_equal(scores.values, columns["base_nll"] - columns["checkpoint_nll"])
    assert scores.values[1:3].min() > 0
    relative = scoring.score("relative-learnability", models, ROWS, clusters)
    np.testing.assert_allclose(relative.values, scores.values / columns["base_nll"])


def test_known_base_losses_are_taken_as_they_are(models):
    known = np.array([1.0, np.nan, 3.0])
    clusters = np.zeros(3, np.int32)
    columns = scoring.score("learnability", models, ROWS[:3], clusters, base_nll=known).columns
    assert columns["base_nll"][[0, 2]].tolist() == [1.0, 3.0]
    fresh = scoring.score("learnability", models, ROWS[:3], clusters).columns
    np.testing.assert_allclose(columns["base_nll"][1], fresh["base_nll"][1], atol=1e-4)


def test_centred_learnability_has_no_trend_on_the_base_loss(models):
    clusters = np.zeros(len(ROWS), np.int32)
    scores = scoring.score("centred-learnability", models, ROWS, clusters)
    assert abs(scores.values.mean()) < 1e-12
    base = scores.columns["base_nll"]
    assert abs(scores.values @ (base - base.mean())) < 1e-9


def test_loss_is_the_checkpoints(models):
    scores = scoring.score("loss", models, ROWS, np.zeros(len(ROWS), np.int32))
    np.testing.assert_array_equal(scores.values, scores.columns["checkpoint_nll"])


def test_an_unknown_scorer_is_named(models):
    with pytest.raises(ValueError, match=r"one of learnability.*not 'vibes'"):
        scoring.score("vibes", models, ROWS, np.zeros(len(ROWS), np.int32))
