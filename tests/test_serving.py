"""Serving engines: a real model behind HTTP in three dialects, equal to the local one."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import pyids
from pyids.chat import template
from pyids.errors import ConfigError, ModelError
from pyids.models.endpoint import Endpoint
from pyids.models.serving import Engine, ServedModel

torch = pytest.importorskip("torch", reason="needs the train extra")
peft = pytest.importorskip("peft", reason="needs the train extra")

KEY = "sk-a-secret-of-the-serving-test"


class Vllm:
    """A server as vLLM and SGLang are: completions of token ids, and adapters by name."""

    def __init__(self, folder, form="echo"):
        from pyids.models import load

        self.form, self.requests, self.spoil = form, [], lambda path, body, answer: answer
        self.models = {"base": load.load_model(str(folder))[0]}
        self.folder, self.lock, self.tokenizer = folder, threading.Lock(), None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock, torch.inference_mode():
                    outer.requests.append((self.path, body))
                    status, value = outer.spoil(self.path, body, outer.answer(self.path, body))
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path, body):
        if path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.models:
                return 400, {"message": f"{body['lora_name']} has already been loaded"}
            from pyids.models.checkpoints import load_adapter

            self.models[body["lora_name"]] = load_adapter(body["lora_path"], str(self.folder))[0]
            return 200, b"Success: LoRA adapter added successfully."
        if path == "/v1/chat/completions":  # the judge
            said = body["messages"][-1]["content"]
            rating = 1 + sum(said.encode()) % 10
            return 200, {"choices": [{"message": {"content": f"[[{rating}]]"}}]}
        name = body.get("lora_path", "base") if path == "/generate" else body.get("model")
        if name not in self.models:
            return 404, {"message": f"The model {name} does not exist."}
        ids = body.get("prompt") or body.get("input_ids")
        if path == "/v1/completions" and not {"echo", "prompt_logprobs"} & body.keys():
            return 200, {"choices": [{"text": self.continued(name, ids, body["max_tokens"])}]}
        logits = self.models[name](torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        logs = [None, *logits[range(len(ids) - 1), ids[1:]].tolist()]
        if path == "/generate" and self.form == "generate":
            assert body["return_logprob"] is True
            assert body["logprob_start_len"] == 0
            known = [[log, token, None] for log, token in zip(logs, ids, strict=True)]
            return 200, {"text": "x", "meta_info": {"input_token_logprobs": known}}
        if "prompt_logprobs" in body and self.form == "prompt_logprobs":
            known = [log and {str(t): {"logprob": log}} for t, log in zip(ids, logs, strict=True)]
            return 200, {"choices": [{"text": "x", "prompt_logprobs": known}]}
        if "echo" in body and self.form == "echo":
            known = {"token_logprobs": [*logs, -1.0]}
            return 200, {"choices": [{"text": "x", "logprobs": known}]}
        return (404, {}) if path == "/generate" else (200, {"choices": [{"text": "x"}]})

    def continued(self, name, ids, tokens):
        new = self.models[name].generate(
            input_ids=torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )[0, len(ids) :]
        return self.tokenizer.decode(new, skip_special_tokens=True)


@pytest.fixture
def serve(small, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    started = []

    def start(form="echo"):
        from pyids.models.load import load_tokenizer

        started.append(Vllm(small / "model", form))
        started[-1].tokenizer = load_tokenizer(str(small / "model"))
        return started[-1]

    yield start
    for server in started:
        server.close()


def options(small, run, **more):
    return {
        "data": str(small / "pool.jsonl"),
        "embeddings_file": str(small / "vectors.npy"),
        "model": str(small / "model"),
        "budget": 16,
        "rounds": 2,
        "clusters": 4,
        "probes_per_cluster": 2,
        "oversample": 1,
        "max_length": 64,
        "learning_rate": 3e-2,
        "lora_rank": 2,
        "device": "cpu",
        "output_dir": str(run),
        **more,
    }


def scores(run):
    with pyids.Selection.open(run) as selection:
        return selection.rounds.scores(0).to_pydict()


def encoded(small, n=6):
    from pyids.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(small / "model"))
    rows = []
    for line in (small / "pool.jsonl").read_text().splitlines()[:n]:
        row = json.loads(line)
        turns = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        rows.append(template.encode(turns, tokenizer))
    return rows


@pytest.mark.parametrize("form", ["echo", "prompt_logprobs", "generate"])
def test_log_probabilities_are_the_local_models(form, small, serve, tmp_path):
    from pyids.models.load import load_model
    from pyids.models.nll import encoded_nll

    server, rows = serve(form), encoded(small)
    nothing = template.Encoded(rows[0].input_ids, np.zeros(len(rows[0].input_ids), bool))
    rows = [*rows, nothing, rows[0]]
    model, _ = load_model(str(small / "model"))
    ours = encoded_nll(model, rows)
    engine = Engine(Endpoint(server.url, "base"), tmp_path / "serve.jsonl")
    base = ServedModel("base", "weights 1")
    engine.check(base, rows, lambda few: encoded_nll(model, few).mean, "float32")
    assert engine.form == form
    asked = len(server.requests)
    theirs = engine.nll(base, rows)
    for found, expected in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert len(server.requests) - asked == 6  # the row that stands twice once, nothing for none
    # Kept: for the same weights nothing is asked again, for others everything.
    again = Engine(Endpoint(server.url, "base"), tmp_path / "serve.jsonl", form)
    np.testing.assert_array_equal(again.nll(base, rows).mean, theirs.mean)
    assert len(server.requests) - asked == 6
    again.nll(ServedModel("base", "weights 2"), rows)
    assert len(server.requests) - asked == 12


@pytest.mark.parametrize("scorer", ["ifd", "perplexity", "sound-learnability"])
def test_a_run_scores_as_with_the_local_models(scorer, small, serve, tmp_path):
    server = serve()
    local = pyids.run(options(small, tmp_path / "local", scorer=scorer))
    served = pyids.run(
        options(small, tmp_path / "served", scorer=scorer, serve_url=server.url, serve_model="base")
    )
    ours, theirs = scores(local.run_folder), scores(served.run_folder)
    assert ours.keys() == theirs.keys()
    for name, column in ours.items():
        np.testing.assert_allclose(theirs[name], column, atol=1e-3)
    assert served.ids.tolist() == local.ids.tolist()
    assert any(name.startswith("pyids-") for name in server.models)
    # A folder holds no secret, and where it was asked is no part of what was selected.
    assert not [
        p for p in served.run_folder.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()
    ]
    (tmp_path / "served" / "rounds" / "1" / "weights.json").unlink()
    server.close()


def test_the_answers_of_a_run_that_was_stopped_are_not_asked_again(small, serve, tmp_path):
    server = serve()
    given = options(small, tmp_path / "run", scorer="pmi", serve_url=server.url, serve_model="base")
    with pytest.raises(
        ConfigError, match="the cap of 7 requests is reached: raise it and run again"
    ):
        pyids.run({**given, "serve_max_requests": 7})
    kept = (tmp_path / "run" / "serve.jsonl").read_text().count("\n")
    assert kept > 0
    asked = len(server.requests)
    result = pyids.run(given)
    # 8 probes with and without their prompts; 4 compared; the adapter is there already.
    assert len(server.requests) - asked == 16 - kept + 4 + 1
    assert (
        result.ids.tolist() == pyids.run(options(small, tmp_path / "b", scorer="pmi")).ids.tolist()
    )


@pytest.mark.parametrize("signal", ["perplexity", "ifd"])
def test_the_quality_of_a_pool_is_served(signal, small, serve, tmp_path):
    server = serve("prompt_logprobs")
    given = options(small, tmp_path / "local", quality=signal)
    local = pyids.select("kmq", given)
    served = pyids.select(
        "kmq",
        {**given, "output_dir": str(tmp_path / "served")},
        serve_url=server.url,
        serve_model="base",
    )
    assert served.ids.tolist() == local.ids.tolist()
    assert len(server.requests) > 200
    with pytest.raises(ConfigError, match="gives the quality of rows here: name --quality"):
        pyids.select("random", {**given, "quality": None}, serve_url=server.url)


def test_another_model_is_told_by_a_few_rows(small, serve, tmp_path):
    server = serve()
    with torch.no_grad():
        server.models["base"].lm_head.weight[7] += 1.0
    given = options(small, tmp_path / "run", serve_url=server.url, serve_model="base")
    with pytest.raises(
        ModelError, match=r"gives a row a loss of .* serve the same model in float32"
    ):
        pyids.run(given)
    assert sum(body.get("model") == "base" for _, body in server.requests) == 4
    with pytest.raises(ModelError, match="does not exist"):
        pyids.run({**given, "serve_model": "another"})


SPOILT = {
    "too few": lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].pop(1) and None,
    "null": lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].__setitem__(4, None),
    "positive": lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].__setitem__(4, 2),
    "text": lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"].__setitem__(4, "x"),
    "no choice": lambda answer: answer["choices"].clear(),
    "no logs": lambda answer: answer["choices"][0].__setitem__("logprobs", None),
}


@pytest.mark.parametrize("name", SPOILT)
def test_answers_of_another_kind_are_one_line(name, small, serve, tmp_path):
    server, rows = serve(), encoded(small)

    def spoil(path, body, answer):
        if answer[0] == 200 and "logprobs" in (answer[1].get("choices") or [{}])[0]:
            for _ in range(2 if name == "too few" else 1):
                SPOILT[name](answer[1])
        return answer

    server.spoil = spoil
    engine = Engine(Endpoint(server.url, "base"), tmp_path / "serve.jsonl", "echo")
    with pytest.raises(ModelError) as caught:
        engine.nll(ServedModel("base", "w"), rows)
    assert "\n" not in str(caught.value)
    assert "log-probabilit" in str(caught.value)
    assert not (tmp_path / "serve.jsonl").exists()


def test_a_server_that_takes_no_adapters_is_one_line(small, serve, tmp_path):
    server = serve()
    server.spoil = lambda path, body, answer: (404, {}) if "lora" in path else answer
    with pytest.raises(ModelError, match="start vLLM with --enable-lora") as caught:
        pyids.run(options(small, tmp_path / "run", serve_url=server.url, serve_model="base"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"serve_url": "http://user@host/v1"}, "holds one of @"),
        ({"serve_url": "host"}, "is not a URL"),
        ({"serve_url": None, "serve_model": "x"}, "belongs to --serve-url"),
        ({"finetuning_type": "full"}, "choose --finetuning-type lora"),
        ({"scorer": "gradient-alignment"}, "needs gradients or vectors"),
    ],
)
def test_what_cannot_be_served_is_told_before_any_work(more, words, small, tmp_path):
    given = {"serve_url": "http://127.0.0.1:9/v1", **more}
    with pytest.raises(ConfigError, match=words):
        pyids.run(options(small, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_a_strangers_folder_asks_no_server(small, serve, tmp_path, monkeypatch):
    server = serve()
    given = options(small, tmp_path / "run", serve_url=server.url, serve_model="base")
    with pyids.Selection.open(tmp_path / "run", given) as selection:
        selection.draw()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    with (
        pyids.Selection.open(tmp_path / "run") as selection,
        pytest.raises(ConfigError, match="names a server"),
    ):
        selection.score(selection.train())
    assert server.requests == []


# ---- answers of a served model, rated ------------------------------------------------------------


def test_a_judge_rates_the_answers_of_a_server(small, serve, tmp_path):
    """Capped at the engine, capped at the judge, gone on with: each question is asked once."""
    server = serve()
    given = options(small, tmp_path / "run", scorer="judge", judge_url=server.url, judge_model="j")
    given |= {"serve_url": server.url, "serve_model": "base"}
    with pytest.raises(ConfigError, match="the cap of 7 requests is reached"):
        pyids.run({**given, "serve_max_requests": 7})
    answers = (tmp_path / "run" / "serve.jsonl").read_text().count("\n")
    assert 0 < answers < 8
    with pytest.raises(ConfigError, match="cap of 3 requests is reached"):
        pyids.run({**given, "judge_max_requests": 3})
    assert (tmp_path / "run" / "serve.jsonl").read_text().count("\n") == 8  # the probes
    ratings = (tmp_path / "run" / "judge.jsonl").read_text().count("\n")
    assert 0 < ratings <= 3
    asked = len(server.requests)
    served = pyids.run(given)
    new = [body for path, body in server.requests[asked:] if path == "/v1/chat/completions"]
    assert len(new) == (tmp_path / "run" / "judge.jsonl").read_text().count("\n") - ratings
    assert not [1 for path, body in server.requests[asked:] if "max_tokens" in body
                and "echo" not in body and path == "/v1/completions"]  # fmt: skip
    local = pyids.run(
        options(small, tmp_path / "local", scorer="judge", judge_url=server.url, judge_model="j")
    )
    assert scores(served.run_folder) == scores(local.run_folder)
    assert served.ids.tolist() == local.ids.tolist()


def test_a_reward_model_rates_the_answers_of_a_server(small, serve, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from pyids.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(small / "model"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    server = serve()
    more = {"scorer": "reward", "reward_model": str(tmp_path / "reward")}
    local = pyids.run(options(small, tmp_path / "local", **more))
    more |= {"serve_url": server.url, "serve_model": "base"}
    with pytest.raises(ConfigError, match="the cap of 7 requests is reached"):
        pyids.run(options(small, tmp_path / "served", **more, serve_max_requests=7))
    served = pyids.run(options(small, tmp_path / "served", **more))
    ours, theirs = scores(local.run_folder), scores(served.run_folder)
    assert ours.keys() == theirs.keys()
    for name, column in ours.items():
        np.testing.assert_allclose(theirs[name], column, atol=1e-5)
    assert served.ids.tolist() == local.ids.tolist()


def test_a_server_that_takes_text_alone_is_one_line(small, serve, tmp_path):
    """As that of transformers itself, 5.23."""
    server = serve()

    def spoil(path, body, answer):
        if path == "/v1/completions" and not isinstance(body["prompt"], str):
            return 400, {"detail": "prompt must be a string."}
        return (404, {}) if path == "/generate" else answer

    server.spoil = spoil
    with pytest.raises(ModelError, match=r"gives no log-probabilities of prompts.*vLLM") as caught:
        pyids.run(options(small, tmp_path / "run", serve_url=server.url, serve_model="base"))
    assert "\n" not in str(caught.value)
