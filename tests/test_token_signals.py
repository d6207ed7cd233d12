"""S-IFD and the perplexity difference against naive code."""

import numpy as np
import pytest

from pyids.chat.template import encode
from pyids.errors import ConfigError
from pyids.scoring.signals import Ifd, Perplexity, make_signal
from pyids.scoring.token_signals import PerplexityDifference, SIfd, selective_ratio

torch = pytest.importorskip("torch", reason="needs the train extra")


def row(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


ROWS = [
    row("What is the capital of France?", "Paris"),
    row("Count to nine.", "1, 2, 3, 4, 5, 6, 7, 8, 9"),
    row("Say it thrice: ho", "ho ho ho"),
]


def test_token_losses_are_the_naive_ones(tiny):
    from pyids.models import load
    from pyids.models.token_nll import token_nlls

    model, tokenizer = load.load_model(tiny)
    rows = [encode(messages, tokenizer) for messages in ROWS]
    for batch_tokens in (1, 4096):
        found = token_nlls(model, rows, batch_tokens=batch_tokens)
        for nll, (ids, mask) in zip(found, rows, strict=True):
            with torch.inference_mode():
                logits = model(torch.from_numpy(ids)[None]).logits[0].double()
            naive = -logits.log_softmax(-1)[np.arange(len(ids) - 1), ids[1:]].numpy()
            np.testing.assert_allclose(nll, naive[mask[1:]], atol=1e-4)


def test_noise_is_a_rows_own(tiny):
    from pyids.models import load
    from pyids.models.token_nll import token_nlls

    model, tokenizer = load.load_model(tiny)
    rows = [encode(messages, tokenizer) for messages in ROWS]
    plain = token_nlls(model, rows)
    noisy = token_nlls(model, rows, noise=5.0, seed=1)
    for i in range(3):
        (one,) = token_nlls(model, [rows[i]], noise=5.0, seed=1)
        np.testing.assert_allclose(one, noisy[i], atol=1e-4)
        assert np.abs(noisy[i] - plain[i]).max() > 1e-3
    assert np.abs(token_nlls(model, rows, noise=5.0, seed=2)[1] - noisy[1]).max() > 1e-3
    np.testing.assert_array_equal(token_nlls(model, rows)[1], plain[1])  # the hook is gone


def test_the_tokens_that_change_most_count():
    given, alone = np.array([1.0, 2.0, 0.5, 3.0]), np.array([1.1, 6.0, 0.4, 2.0])
    assert selective_ratio(given, alone, 0.25) == pytest.approx(2 / 6)
    assert selective_ratio(given, alone, 0.5) == pytest.approx(5 / 8)
    assert selective_ratio(given, alone, 1.0) == pytest.approx(6.5 / 9.5)
    assert selective_ratio(given, alone, 0.01) == pytest.approx(2 / 6)
    assert selective_ratio(alone, given, 1.0) == 0  # the prompt misleads
    assert np.isnan(selective_ratio(given[:0], alone[:0], 0.5))


def test_over_all_tokens_without_noise_it_is_ifd(tiny):
    np.testing.assert_allclose(
        SIfd(tiny, share=1.0, draws=0).score(ROWS), Ifd(tiny).score(ROWS), atol=1e-4
    )
    robust = SIfd(tiny).score(ROWS)
    assert ((robust >= 0) & (robust <= 1)).all()


def test_the_difference_is_of_two_models(tiny, smollm2):
    found = PerplexityDifference("smollm2-135m-instruct", other=tiny).score(ROWS)
    ours, theirs = (-Perplexity(name).score(ROWS) for name in ("smollm2-135m-instruct", tiny))
    np.testing.assert_allclose(found, ours - theirs, atol=1e-4)
    assert (found < 0).all()  # random weights know nothing
    signal = make_signal(f"perplexity-difference:{tiny}", default_model="smollm2-135m-instruct")
    assert signal == PerplexityDifference("smollm2-135m-instruct", other=tiny)
    with pytest.raises(ConfigError, match="needs a model"):
        make_signal("perplexity-difference", default_model=tiny)
