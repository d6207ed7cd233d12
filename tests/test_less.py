"""LESS: influence by the naive code, and what is picked from it."""

import numpy as np
import pytest

from pyids.errors import ConfigError, ModelError
from pyids.methods import get_method, pool_from_arrays
from pyids.nearest import deal

torch = pytest.importorskip("torch", reason="needs the train extra")


def row(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


ROWS = [row(f"What is {a} plus 4?", f"It is {a + 4}.") for a in range(5)]
OTHERS = [row(f"Name color {n}.", "red, green, blue and a long list of others") for n in range(3)]
TARGET = [row("What is 9 plus 4?", "It is 13."), OTHERS[0]]


def test_influence_is_the_definition(tiny):
    """The warm-up written out, and cosines of whole gradients, which the sketch keeps nearly."""
    from pyids.chat.template import encode
    from pyids.models import adapter, finetune, load
    from pyids.models.influence import Influence

    found = Influence(tiny, epochs=2, batch_size=3, learning_rate=1e-2, dims=1 << 15, seed=4)
    scores = found.scores(ROWS, [*ROWS, *OTHERS], TARGET)

    with finetune.seeded(4):
        model, tokenizer = load.load_model(tiny)
        model = adapter.add_adapter(model, 16)
    weights = [p for p in model.parameters() if p.requires_grad]
    steps = finetune.plan_steps(5, 2, 3, 4)
    mean, square = ([torch.zeros_like(w) for w in weights] for _ in range(2))

    def gradient(messages):
        ids, mask = encode(messages, tokenizer)
        logits = model(torch.from_numpy(ids)[None]).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="none")
        return nll[torch.from_numpy(mask[1:])]

    def grads(loss):
        return torch.autograd.grad(loss, weights)

    expected = np.zeros((8, 2))
    for n, step in enumerate(steps):
        rate = 1e-2 * (len(steps) - n) / len(steps)
        loss = torch.cat([gradient(ROWS[i]) for i in step]).mean()
        for w, m, v, g in zip(weights, mean, square, grads(loss), strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            step_size = (m / (1 - 0.9 ** (n + 1))) / ((v / (1 - 0.999 ** (n + 1))).sqrt() + 1e-8)
            w.data -= rate * step_size
        if n % 2:
            theirs = [torch.cat([g.flatten() for g in grads(gradient(t).mean())]) for t in TARGET]
            for i, messages in enumerate([*ROWS, *OTHERS]):
                ours = torch.cat(
                    [
                        (
                            (0.9 * m + 0.1 * g) / ((0.999 * v + 0.001 * g * g).sqrt() + 1e-8)
                        ).flatten()
                        for m, v, g in zip(
                            mean, square, grads(gradient(messages).mean()), strict=True
                        )
                    ]
                )
                epoch = [1e-2 * (4 - k) / 4 for k in (n - 1, n)]
                for q, other in enumerate(theirs):
                    cosine = torch.nn.functional.cosine_similarity(ours, other, dim=0)
                    expected[i, q] += np.mean(epoch) * float(cosine)
    np.testing.assert_allclose(scores, expected, atol=3e-4)
    assert np.abs(expected).max() > 1e-3


def test_a_target_without_answers_is_refused(tiny):
    from pyids.models.influence import Influence

    with pytest.raises(ModelError, match="no row of the target has a response token"):
        Influence(tiny).scores(ROWS, ROWS, [[{"role": "user", "content": "?"}]])


def test_rankings_are_dealt_in_turn():
    rankings = [iter([3, 1, 0]), iter([3, 2, 1, 4, 0]), iter([3])]
    assert deal(rankings, 5, tasks=["a", "b", "b"]).tolist() == [3, 2, 1, 0, 4]


def make_pool(asked=None):
    """Four clusters; rows of the third have influence on the target's first row."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4, dtype=np.int32), 30)
    x = (np.eye(4, 6)[labels] + 0.1 * rng.normal(size=(120, 6))).astype(np.float32)

    def influences(warm_up, rows, *, seed, epochs, dims):
        if asked is not None:
            asked.append((warm_up, rows))
        return (rows[:, None] // 10 // 30 == [2, 1]) + 1e-4 * rows[:, None] / 1200

    return pool_from_arrays(
        embeddings=[x[:50], x[50:]], labels=labels, row_ids=np.arange(120) * 10,
        target=x[[70, 40]].astype(float), gradients=influences,
    )  # fmt: skip


def test_a_few_rows_stand_for_their_cluster():
    asked = []
    rows = get_method("less")(make_pool(asked), 40, seed=3) // 10
    ((warm_up, looked),) = asked
    assert len(warm_up) == 64
    assert np.bincount(looked // 10 // 30).tolist() == [3, 3, 3, 3]
    assert np.bincount(rows // 30, minlength=4).tolist() == [0, 20, 20, 0]
    assert rows[0] == 70  # the nearest of the best cluster first
    assert rows[1] == 40


def test_exact_looks_at_every_row():
    asked = []
    rows = get_method("less")(make_pool(asked), 40, exact=True) // 10
    assert len(asked[0][1]) == 120
    assert rows[:4].tolist() == [89, 59, 88, 58]


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        get_method("less")(make_pool(), 4, rows_per_cluster=0)


def test_by_command(pool, tiny, tmp_path):
    import orjson
    from click.testing import CliRunner

    from pyids.cli import cli

    target = tmp_path / "dev.jsonl"
    target.write_bytes(orjson.dumps(pool.rows[0]) + b"\n")
    np.save(tmp_path / "dev.npy", np.load(pool.vectors)[:1])
    command = [
        *("select", pool.path, "--embeddings-file", pool.vectors, "--clusters", 4, "--budget", 30),
        *("--target", target, "--target-embeddings-file", tmp_path / "dev.npy", "--model", tiny),
        *("--output-dir", tmp_path / "run", "--method", "less", "--set", "epochs=1"),
    ]
    result = CliRunner().invoke(cli, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "run" / "selected-less.jsonl").read_bytes().splitlines()
    assert len(lines) == 30
    assert 0 not in [orjson.loads(line)["_pyids_id"] for line in lines]
