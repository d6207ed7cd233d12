"""Pools that the tests share."""

import atexit
import os
import shutil

# The tests never ask the hub: what is not on this machine is an error at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.util
import tempfile
from pathlib import Path

# The tracker reads it once, when whoever comes first (transformers, say) imports it.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="pyids-trackio-")

# Triton decides when it is imported whether it interprets; without a GPU that is all it can do.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import orjson
import pytest

try:
    from hypothesis import settings
except ImportError:
    pass
else:  # how long an example takes says more of the machine than of the code
    settings.register_profile("pyids", deadline=None)
    settings.load_profile("pyids")

TOPICS = ("sums", "colors", "cities", "noise")

# Tests of several files run side by side: each process has clusters of its own, and none joins
# another's by the file in which `ray start` says where one runs.
if (WORKER := os.environ.get("PYTEST_XDIST_WORKER")) and "RAY_TMPDIR" not in os.environ:
    RAY_FOLDER = Path(tempfile.gettempdir(), f"ray-{os.getppid()}-{WORKER}")
    RAY_FOLDER.mkdir(exist_ok=True)
    os.environ["RAY_TMPDIR"] = str(RAY_FOLDER)
    atexit.register(shutil.rmtree, RAY_FOLDER, ignore_errors=True)


class Pool:
    """A pool with known topics and the vectors that show them."""

    def __init__(self, folder: Path, n_rows: int, dim: int = 16, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.topics = rng.integers(0, len(TOPICS), n_rows)
        centers = 4 * rng.standard_normal((len(TOPICS), dim))
        vectors = centers[self.topics] + rng.standard_normal((n_rows, dim))
        self.rows = [
            {
                "name": f"row {n}",
                "messages": [
                    {"role": "user", "content": f"{TOPICS[topic]} question {n}?"},
                    {"role": "assistant", "content": f"{TOPICS[topic]} answer {n * 7 % 13}."},
                ],
            }
            for n, topic in enumerate(self.topics)
        ]
        self.path = folder / "pool.jsonl"
        self.write()
        self.vectors = folder / "vectors.npy"
        np.save(self.vectors, vectors.astype(np.float32))

    def write(self) -> None:
        self.path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in self.rows))

    def options(self, **options) -> dict:
        return {
            "data": str(self.path),
            "embeddings_file": str(self.vectors),
            "budget": 60,
            "clusters": 4,
            **options,
        }


@pytest.fixture(scope="session")
def make_pool():
    """The class of the pools, for those that live longer than a test."""
    return Pool


@pytest.fixture
def pool(tmp_path):
    return Pool(tmp_path, 400)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct and its tokenizer, loaded once; not to be changed."""
    pytest.importorskip("transformers", reason="needs the train extra")
    from pyids.models import load

    return load.load_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny(smollm2, tmp_path_factory):
    """A Llama of a few thousand weights with SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pyids.models import hf

    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=len(smollm2[1]),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with hf.quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
        smollm2[1].save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a tiny model, its pool and vectors, as the examples make them."""
    path = Path(__file__).resolve().parents[1] / "examples" / "small.py"
    spec = importlib.util.spec_from_file_location("small", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("small")
    module.make_pool(folder)
    module.make_model(folder)
    return folder


@pytest.fixture(scope="session")
def object_store_url():
    """The address of a real object store on this machine."""
    pytest.importorskip("boto3", reason="the extra remote is not installed")
    moto = pytest.importorskip("moto.server", reason="the package moto is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def object_store(object_store_url, monkeypatch, tmp_path):
    """A client of the object store, with a bucket, and a machine with an empty work folder."""
    for name, value in {
        "AWS_ENDPOINT_URL": object_store_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test",
        "AWS_REGION": "us-east-1",
        "PYIDS_WORK_DIR": str(tmp_path / "machine 1"),
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3", region_name="us-east-1", endpoint_url=object_store_url)
    client.create_bucket(Bucket="runs-of-tests")
    yield client
    found = client.list_objects_v2(Bucket="runs-of-tests").get("Contents", ())
    for one in found:
        client.delete_object(Bucket="runs-of-tests", Key=one["Key"])
