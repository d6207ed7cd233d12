"""The endpoint client, the judge and the endpoint encoder against scripted and real servers."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pyids.config import make_config
from pyids.encoders.endpoint import EndpointEncoder
from pyids.errors import ConfigError, ModelError
from pyids.models.endpoint import Endpoint
from pyids.models.judge import (
    DIMENSIONS,
    Judge,
    parse_rating,
    parse_ratings,
    quality_prompt,
)

KEY = "sk-a-secret-of-this-test"


class Server:
    """Answers each POST by `respond(path, body, number of the request)` -> (status, value)."""

    def __init__(self, respond):
        self.requests, self.headers = [], []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    number = len(outer.requests)
                status, value = respond(self.path, body, number)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                try:
                    self.send_response(status)
                    if status == 429:
                        self.send_header("Retry-After", "0")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up waiting, as a test wants

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def says(text, tokens=10):
    return 200, {
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"total_tokens": tokens},
    }


def talk(answer, question="What is 2 + 2?"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def endpoint(server, **options):
    return Endpoint(
        server.url, "a-model", **{"key_variable": "A_TEST_KEY", "pause_s": 0.01, **options}
    )


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("[[7]]", 7),
        ("It is fine. Rating: [[ 8.5 ]].", 8.5),
        ("Not [[2]] but [[9]]", 9),
        ("[[10]]", 10),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[7]", None),
        ("seven", None),
        ("", None),
    ],
)
def test_ratings_are_parsed(answer, rating):
    assert parse_rating(answer) == rating


def test_good_ratings_reach_their_rows(monkeypatch):
    monkeypatch.setenv("A_TEST_KEY", KEY)

    def respond(path, body, n):
        assert path == "/v1/chat/completions"
        assert body["model"] == "a-model"
        content = body["messages"][0]["content"]
        return says(f"[[{9 if 'ASSISTANT: 4' in content else 2}]]")

    with Server(respond) as server:
        judge = Judge(endpoint(server))
        rows = [talk("5"), talk("4"), talk("4")[:1], talk("{braces} 6")]
        np.testing.assert_array_equal(judge.rate(rows), [2, 9, np.nan, 2])
        assert {h["Authorization"] for h in server.headers} == {f"Bearer {KEY}"}
        assert judge.endpoint.requests_sent == 3
        assert judge.endpoint.tokens_used == 30


def test_garbage_is_nan_and_much_garbage_an_error():
    with Server(lambda path, body, n: says("[[6]]" if n > 1 else "I would rather not.")) as server:
        ratings = Judge(endpoint(server, workers=1)).rate([talk(str(i)) for i in range(4)])
        np.testing.assert_array_equal(ratings, [np.nan, 6, 6, 6])
    with (
        Server(lambda path, body, n: says("no")) as server,
        pytest.raises(ModelError, match=r"3 of 3 answers .* hold no rating"),
    ):
        Judge(endpoint(server)).rate([talk(str(i)) for i in range(3)])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_asked_again(status):
    with Server(lambda path, body, n: says("[[4]]") if n > 2 else (status, {})) as server:
        judge = Judge(endpoint(server))
        assert judge.rate([talk("4")]).tolist() == [4]
        assert judge.endpoint.requests_sent == len(server.requests) == 3


def test_time_outs_are_asked_again_and_end():
    def respond(path, body, n):
        if n == 1:
            time.sleep(0.6)
        return says("[[4]]")

    with Server(respond) as server:
        assert Judge(endpoint(server, timeout_s=0.2)).rate([talk("4")]).tolist() == [4]
        assert len(server.requests) == 2

    def never(path, body, n):
        time.sleep(0.4)
        return says("[[4]]")

    with (
        Server(never) as server,
        pytest.raises(ModelError, match="no answer after 3 requests"),
    ):
        Judge(endpoint(server, timeout_s=0.1, retries=2)).rate([talk("4")])


def test_lasting_failures_are_named_without_the_key(monkeypatch):
    monkeypatch.setenv("A_TEST_KEY", KEY)
    cases = [
        ((400, {"error": "no such model"}), ModelError, "status 400 .*no such model"),
        ((401, {}), ConfigError, "refuses the key .*set A_TEST_KEY"),
        ((500, b"oops"), ModelError, r"status 500 after 3 requests \(oops\)"),
        ((200, b"<html>"), ModelError, "status 200"),
        ((200, {"choices": []}), ModelError, "holds no message"),
        ((307, {}), ModelError, "status 307"),
    ]
    for reply, error, message in cases:
        with Server(lambda path, body, n, reply=reply: reply) as server:
            with pytest.raises(error, match=message) as caught:
                Judge(endpoint(server, retries=2)).rate([talk("4")])
            assert KEY not in str(caught.value)
    gone = Endpoint("http://127.0.0.1:9/v1", "a-model", retries=1, pause_s=0.01)
    with pytest.raises(ModelError, match="no answer after 2 requests"):
        Judge(gone).rate([talk("4")])
    for url, model, message in (("ftp://x", "m", "not a URL"), ("http://x", "", "name a model")):
        with pytest.raises(ConfigError, match=message):
            Endpoint(url, model)


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{KEY}@host/v1",
        f"https://host/v1?api-key={KEY}",
        f"https://host/v1#{KEY}",
        f"user:{KEY}@host/v1",
    ],
)
def test_a_url_that_may_hold_a_secret_is_refused_and_not_shown(url):
    given = [lambda: Endpoint(url, "m", key_variable="A_TEST_KEY")]
    given.append(lambda: make_config(data="x.jsonl", budget=10, judge_url=url))
    if url.startswith("https") and "#" not in url:
        # Vectors of one's own, so that nobody looks for the encoder.
        options = {"embeddings": "x.npy", "encoder": f"{url}#model"}
        given.append(lambda: make_config(data="x.jsonl", budget=10, **options))
    for make in given:
        with pytest.raises(ConfigError, match=r"give the key in (A_TEST|OPENAI_API)_KEY") as caught:
            make()
        assert KEY not in str(caught.value)


def test_ratings_are_kept_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TEST_KEY", KEY)
    file = tmp_path / "judge" / "ratings.jsonl"
    with Server(lambda path, body, n: says(f"[[{n}]]")) as server:
        first = Judge(endpoint(server, workers=1), cache=file)
        ratings = first.rate([talk("1"), talk("2"), talk("1")])
        assert ratings.tolist() == [1, 2, 1]
        with file.open("ab") as out:
            out.write(b'{"key": "half a li')
        again = Judge(endpoint(server), cache=file)
        assert again.rate([talk("2"), talk("1")]).tolist() == [2, 1]
        assert len(server.requests) == 2
        other = Judge(Endpoint(server.url, "another", pause_s=0.01), cache=file)
        assert other.rate([talk("2")]).tolist() == [3]
    assert KEY.encode() not in file.read_bytes()


def test_the_caps_hold_and_what_was_paid_for_is_kept(tmp_path):
    file = tmp_path / "ratings.jsonl"
    rows = [talk(str(i)) for i in range(20)]
    with Server(lambda path, body, n: says("[[5]]", tokens=100)) as server:
        with pytest.raises(ConfigError, match="cap of 6 requests is reached"):
            Judge(endpoint(server, max_requests=6), cache=file).rate(rows)
        assert len(server.requests) == 6
        with pytest.raises(ConfigError, match="cap of 500 tokens is reached"):
            Judge(endpoint(server, max_tokens=500, workers=1), cache=file).rate(rows)
        assert len(server.requests) == 6 + 5
        assert Judge(endpoint(server), cache=file).rate(rows).tolist() == [5] * 20
        assert len(server.requests) == 20


def test_the_endpoint_encoder_keeps_the_order_of_texts():
    def respond(path, body, n):
        assert path == "/v1/embeddings"
        assert all(body["input"]), "an empty text"
        data = [{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(body["input"])]
        return 200, {"data": data[::-1], "usage": {"total_tokens": 1}}

    seen = []
    with Server(respond) as server:
        encoder = EndpointEncoder(endpoint(server), batch_rows=7, max_characters=30)
        vectors = encoder.encode(["x" * i for i in range(40)], lambda *done: seen.append(done))
        assert encoder.dim == 2
        assert encoder.encode([]).shape == (0, 2)
    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == [1, *range(1, 31), *[30] * 9]
    assert seen[-1] == (40, 40)
    for reply in ({"data": []}, {"data": [{"index": 0, "embedding": ["x"]}]}, {"vectors": 1}):
        with (
            Server(lambda path, body, n, reply=reply: (200, reply)) as server,
            pytest.raises(ModelError, match="vectors"),
        ):
            EndpointEncoder(endpoint(server)).encode(["a"])


@pytest.mark.slow
def test_a_real_model_answers_as_judge():
    """The wiring, with real weights; so small a model rates only where decoding is guided."""
    from pyids.models import load

    model, tokenizer = load.load_model("smollm2-135m-instruct")
    lock = threading.Lock()
    digits = tokenizer("123456789", add_special_tokens=False)["input_ids"]
    assert len(digits) == 9

    def respond(path, body, n):
        text = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, tokenize=False
        )
        guided = body["max_tokens"] == 3
        inputs = tokenizer(text + "Rating: [[" * guided, return_tensors="pt")
        allowed = {"prefix_allowed_tokens_fn": lambda *_: digits} if guided else {}
        length = 1 if guided else body["max_tokens"]
        with lock:
            out = model.generate(**inputs, max_new_tokens=length, do_sample=False, **allowed)
        new = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return says(f"Rating: [[{new}]]" if guided else new, tokens=len(out[0]))

    with Server(respond) as server:
        judge = Judge(endpoint(server, timeout_s=300), answer_tokens=3)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in judge.endpoint.chat(question, max_tokens=12)
        ratings = judge.rate([talk("4"), talk("I do not know")])
        assert np.all((ratings >= 1) & (ratings <= 9))
        assert judge.endpoint.tokens_used > 100


# ---- ratings as quality --------------------------------------------------------------------------


def test_several_dimensions_are_rated_in_one_answer():
    answer = "Accuracy: [[8]]\nhelpfulness - [[6]]\nClarity: [[9]] no, clarity: [[7]]"
    assert parse_ratings(answer, ["accuracy", "helpfulness", "clarity"]) == 7
    assert parse_ratings(answer, ["accuracy", "complexity"]) is None
    assert parse_ratings("accuracy: [[0]]", ["accuracy"]) is None
    prompt = quality_prompt(("accuracy", "depth"))
    assert "accuracy: [[n]]\ndepth: [[n]]" in prompt
    assert "{conversation}" in prompt


def rate_by_topic(path, body, n):
    """Rate rows of noise 2 in all dimensions, the others 8."""
    mark = 2 if "noise question" in body["messages"][0]["content"] else 8
    return says("\n".join(f"{name}: [[{mark}]]" for name in DIMENSIONS))


def select(pool, server, folder, *more):
    from click.testing import CliRunner

    from pyids.cli import cli

    command = [
        *("select", pool.path, "--embeddings-file", pool.vectors, "--clusters", 4, "--budget", 60),
        *("--output-dir", folder, "--method", "deita", "--set", "threshold=2"),
        *("--quality", "judge", "--judge-url", server.url, "--judge-model", "m", *more),
    ]
    return CliRunner().invoke(cli, [str(word) for word in command])


def chosen(result):
    assert result.exit_code == 0, result.output
    with open(result.output.splitlines()[-1], "rb") as file:
        return [json.loads(line)["_pyids_id"] for line in file]


def test_a_judge_is_a_quality_that_goes_on_after_its_cap(pool, tmp_path):
    with Server(rate_by_topic) as server:
        result = select(pool, server, tmp_path / "run", "--judge-max-requests", 150)
        assert result.exit_code == 2
        assert "the cap of 150 requests is reached" in result.output
        rows = chosen(select(pool, server, tmp_path / "run"))
        assert len(server.requests) == 400  # one a row, none twice
        assert (pool.topics[rows] != 3).all()
        chosen(select(pool, server, tmp_path / "run", "--correct-ratings"))
        assert len(server.requests) == 400


def test_a_few_ratings_a_cluster_suffice(pool, tmp_path):
    with Server(rate_by_topic) as server:
        rows = chosen(select(pool, server, tmp_path / "run", "--rating-half-width", 0.5))
        assert len(server.requests) < 100
    assert (pool.topics[rows] != 3).mean() > 0.95


def test_a_judge_needs_a_server(pool):
    with pytest.raises(ConfigError, match="the quality judge needs --judge-url"):
        make_config(**pool.options(quality="judge"))
    with pytest.raises(ConfigError, match="--correct-ratings needs --quality"):
        make_config(**pool.options(correct_ratings=True))
