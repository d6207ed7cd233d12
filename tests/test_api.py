"""What a caller meets in Python and on a terminal: types, results, bars, parts of one's own."""

import fcntl
import importlib.util
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.cli.options import FIRST, FIRST_TITLE, GROUPS
from pyids.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
PYIDS = str(Path(sys.executable).with_name("pyids"))


@pytest.fixture(scope="module")
def small():
    """The module that the examples make their pool and their model with."""
    spec = importlib.util.spec_from_file_location("small", ROOT / "examples" / "small.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(small, tmp_path_factory):
    """A folder with a pool of 60 rows, its vectors and a tiny random model."""
    pytest.importorskip("transformers", reason="needs the train extra")
    folder = tmp_path_factory.mktemp("place")
    small.make_pool(folder, 60)
    small.make_model(folder)
    return folder


def options(place, **changed):
    """Fields of a run of two rounds that takes seconds."""
    return {
        "data": str(place / "pool.jsonl"),
        "embeddings_file": str(place / "vectors.npy"),
        "model": str(place / "model"),
        "budget": 12,
        "rounds": 2,
        "clusters": 4,
        "probes_per_cluster": 2,
        "oversample": 1,
        **changed,
    }


def words(fields):
    """The same on the command line, but for the data."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in fields.items())
    return [word for pair in pairs if pair[0] != "--data" for word in pair]


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


# ---- types ---------------------------------------------------------------------------------------

RIGHT = """
import numpy as np
import pyids

labels = pyids.KMeans(4, n_threads=1).fit(np.eye(8, dtype=np.float32)).labels_
rows = pyids.sample_by_cluster(labels, [1, 1, 1, 1], seed=0)
result: pyids.Result = pyids.run(data="pool.jsonl", budget=3)
try:
    count: int = len(pyids.select("random", {"data": "pool.jsonl"}, budget=3).ids)
except pyids.PyidsError as error:
    print(error)


class Mine(pyids.Callback):
    def on_draw(self, selection: pyids.Selection, n: int) -> None:
        print(selection.config.budget, n)
"""
WRONG = {
    'pyids.KMeans("x", nonsense=3)': "call-arg",
    "pyids.doesnotexist": "attr-defined",
    "pyids.run(progress=3)": "arg-type",
    "pyids.run(data='x', budget=3).rows": "attr-defined",
    "pyids.sample_by_cluster(np.zeros(3, int), [1], sed=0)": "call-overload",
    "pyids.Selection.open()": "call-arg",
}


@pytest.mark.slow
def test_a_type_checker_sees_the_api(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text("\n".join(["import numpy as np, pyids", *WRONG]) + "\n")
    command = [sys.executable, "-P", "-m", "mypy", "--strict", "right.py", "wrong.py"]
    # The cache that `make types` leaves: what pyids imports has been read there.
    command += ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.returncode == 1, out.stdout + out.stderr
    assert "right.py" not in out.stdout
    found = re.findall(r"^wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", out.stdout, re.M)
    for number, (line, code) in enumerate(WRONG.items(), start=2):
        assert (str(number), code) in found, f"{line}\n{out.stdout}"


def test_every_public_name_is_there():
    for name in pyids.__all__:
        assert getattr(pyids, name).__name__ == name
        assert name in dir(pyids)
    with pytest.raises(AttributeError, match="doesnotexist"):
        _ = pyids.doesnotexist


# ---- help ----------------------------------------------------------------------------------------


def test_help_shows_groups_and_what_matters_first():
    text = invoke("run", "--help").output
    places = [text.index(f"{title}:\n") for title in (FIRST_TITLE, *GROUPS[:-1])]
    assert places == sorted(places)
    assert len(FIRST) == 10
    first = text[places[0] : places[1]]
    flags = re.findall(r"^  --([a-z-]+)", first, re.M)
    assert flags == [name.replace("_", "-") for name in FIRST]
    named = [
        "Data",
        "Selection",
        "Embedding",
        "Clustering",
        "Training",
        "Scoring",
        "Machine",
        "Output",
    ]
    assert [title for title in GROUPS if title in named] == named
    for name in RunConfig.model_fields:
        assert len(re.findall(rf"^  --{name.replace('_', '-')} ", text, re.M)) == (name != "data")


# ---- the result, callbacks, progress -------------------------------------------------------------


class Watch(pyids.Callback):
    def __init__(self):
        self.seen = []

    def on_draw(self, selection, n):
        self.seen.append(("draw", n, len(selection.rounds.selected(n))))

    def on_train(self, selection, n, checkpoint):
        self.seen.append(("train", n, checkpoint.rows))

    def on_score(self, selection, n, scores):
        self.seen.append(("score", n, len(scores.values)))

    def on_round_end(self, selection, n):
        self.seen.append(("end", n, selection.round))


@pytest.fixture(scope="module")
def done(place, tmp_path_factory):
    """A run from Python: its result, what a callback saw, and what was said of progress."""
    folder = tmp_path_factory.mktemp("done") / "a<b"
    watch, said = Watch(), []
    result = pyids.run(
        **options(place, output_dir=str(folder)), callbacks=[watch], progress=said.append
    )
    return result, watch.seen, said


def test_callbacks_are_called_in_order(done):
    _, seen, _ = done
    assert seen == [
        ("draw", 0, 6), ("train", 0, 6), ("score", 0, 8), ("end", 0, 1),
        ("draw", 1, 6), ("train", 1, 12), ("end", 1, 1),
    ]  # fmt: skip


def test_progress_is_told_to_the_end_of_every_stage(done):
    _, _, said = done
    stages = list(dict.fromkeys(one.stage for one in said))
    assert [stage for stage in stages if stage in ("read", "train", "score")] == [
        "read", "train", "score",
    ]  # fmt: skip
    for stage in ("train", "score"):
        last = [one for one in said if one.stage == stage][-1]
        assert last.done == last.total


def test_a_callback_that_raises_ends_the_run_which_goes_on(place, tmp_path, done):
    class Stop(pyids.Callback):
        def on_train(self, selection, n, checkpoint):
            raise RuntimeError("enough")

    fields = options(place, output_dir=str(tmp_path / "run"))
    with pytest.raises(RuntimeError, match="enough"):
        pyids.run(**fields, callbacks=[Stop()])
    assert pyids.run(fields).path.read_bytes() == done[0].path.read_bytes()


def test_a_result_prints_well(done):
    result, *_ = done
    rows = [orjson.loads(line) for line in result.path.read_bytes().splitlines()]
    assert result.ids.tolist() == [row["_pyids_id"] for row in rows]
    assert result.clusters.tolist() == [row["_pyids_cluster"] for row in rows]
    assert result.rounds.tolist() == [row["_pyids_round"] for row in rows]
    assert len(result) == 12
    assert result.weights.shape == (2, 4)
    np.testing.assert_allclose(result.weights.sum(1), 1)
    assert result.manifest["rows"]["kept"] == 60
    text = repr(result)
    assert "rows        12" in text
    assert "rounds      6 rows, 6 rows" in text
    assert str(result.path) in text
    page = result._repr_html_()
    assert page.startswith("<table>")
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert result.dataset["_pyids_id"][:] == result.ids.tolist()


def test_select_returns_a_result_too(place, tmp_path):
    result = pyids.select("random", options(place), output_dir=str(tmp_path / "run"))
    assert len(result) == 12
    assert result.rounds is None
    assert "rounds" not in repr(result)
    assert result.path.name == "selected-random.jsonl"


# ---- a terminal ----------------------------------------------------------------------------------


def on_a_terminal(command, cwd):
    """Run a command in a terminal of 120 columns; return what it writes there, and its code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so where the other end is closed
            piece = b""
        if not piece:
            break
        written += piece
    os.close(ours)
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", written).decode()
    return text.replace("\r", "\n"), process.wait()


def test_a_terminal_shows_bars_and_a_table_for_each_round(place, tmp_path):
    fields = options(place, output_dir=tmp_path / "run")
    text, code = on_a_terminal([PYIDS, "run", place / "pool.jsonl", *words(fields)], tmp_path)
    assert code == 0, text
    units = {
        "read": "bytes", "deduplicate": "rows", "k-means": "iterations", "train": "tokens",
        "score": "tokens", "export": "rows",
    }  # fmt: skip
    for stage, unit in units.items():  # each bar ends at what there is of it
        assert re.search(rf"^ *{stage} +━+ ([\d,]+)/\1 {unit}", text, re.M), (stage, text)
    for n in (1, 2):
        table = text.partition(f"round {n} of 2: ")[2]
        assert re.match(r"\d+ s *\n+  training loss +\d+\.\d{3}", table), text
    assert re.search(r"loss of probes +\d+\.\d{3} before training, \d+\.\d{3} after", text)
    assert re.search(r"clusters up +\d", text)
    assert "selected.jsonl" in text


# ---- parts of one's own --------------------------------------------------------------------------

PARTS = '''
import numpy as np
from pyids.methods import method
from pyids.scoring.probes import Scores


@method(source="a test")
def last(pool, budget, *, seed):
    """Take the last rows."""
    return np.arange(len(pool) - budget, len(pool))


def first_cluster(probes):
    return Scores((probes.clusters == 0).astype(float))


def tenfold(scores, temperature):
    return np.where(scores.values == scores.values.max(), np.log(10.0), 0.0)


class Short:
    identity = {"signal": "short"}

    def score(self, rows):
        return np.array([-float(len(row[-1]["content"])) for row in rows])


def short(model, *, default_model, device, **options):
    return Short()


class Letters:
    name, revision, dim = "letters", "1", 26

    def encode(self, texts, progress=None):
        counts = [[text.count(chr(97 + i)) for i in range(26)] for text in texts]
        return np.array(counts, np.float32)


def letters(*, max_length, device, dtype, **options):
    return Letters()
'''


def test_parts_of_all_five_kinds_are_found_by_module_and_function(place, tmp_path, monkeypatch):
    module = f"mine_{tmp_path.name}".replace("-", "_")  # imported by no other test
    (tmp_path / f"{module}.py").write_text(PARTS)
    fields = options(place, quality=f"{module}:short", encoder=f"{module}:letters")
    fields |= {"scorer": f"{module}:first_cluster", "weight_update": f"{module}:tenfold"}
    del fields["embeddings_file"]
    command = [PYIDS, "run", fields["data"], *words(fields), "--output-dir", "there"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    monkeypatch.chdir(tmp_path)
    result = pyids.run(**fields, output_dir="here")
    assert result.path.read_bytes() == (tmp_path / "there" / "selected.jsonl").read_bytes()
    before, after = result.weights
    assert after.argmax() == 0
    assert after[0] / before[0] > 1.5
    assert np.load(next((tmp_path / "here" / "embeddings").glob("*.npy"))).shape == (60, 26)
    assert list((tmp_path / "here" / "quality").glob("*.npy"))

    command = [PYIDS, "select", "here", "--method", f"{module}:last", "--to", "last.jsonl"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    chosen = pyids.select(f"{module}:last", options(place), output_dir=str(tmp_path / "other"))
    assert chosen.ids.tolist() == list(range(48, 60))
    assert chosen.path.read_bytes() == (tmp_path / "last.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--scorer", "nowhere:f", "scorer 'nowhere:f'"),
        ("--weight-update", "nowhere:f", "weight update 'nowhere:f'"),
        ("--encoder", "nowhere:f", "encoder 'nowhere:f'"),
        ("--quality", "nowhere:f", "quality 'nowhere:f'"),
    ],
)
def test_a_part_that_is_not_there_is_answered_before_the_work(place, tmp_path, option, value, says):
    fields = options(place, output_dir=tmp_path / "run")
    if option == "--encoder":
        del fields["embeddings_file"]
    out = invoke("run", place / "pool.jsonl", *words(fields), option, value, "--dry-run")
    assert out.exit_code == 2, out.output
    assert says in out.output.splitlines()[-1]


# ---- drivers in any order ------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import pyids

class Kill(pyids.Callback):
    def {when}(self, selection, n, *rest):
        os.kill(os.getpid(), signal.SIGKILL)

pyids.run(sys.argv[1], callbacks=[Kill()])
"""


def tell(folder):
    """Score the rows that `ask` has named, and tell it."""
    rows = [orjson.loads(line) for line in (folder / "probes.jsonl").read_bytes().splitlines()]
    scores = folder.with_suffix(".scores")
    lines = ({"_pyids_id": row["_pyids_id"], "score": row["_pyids_id"] % 7} for row in rows)
    scores.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return invoke("-q", "tell", folder, scores)


@pytest.fixture(params=[1, 3], ids=["not screened", "screened"])
def mixed(request, place, tmp_path):
    """Fields of a run that takes three rows of four, so that clusters run out; and its folder."""
    fields = options(place, budget=45, rounds=3, output_dir=str(tmp_path / "run"))
    fields |= {"probes_per_cluster": 1, "oversample": request.param}
    (tmp_path / "run.yaml").write_bytes(orjson.dumps(fields))
    return tmp_path / "run", tmp_path / "run.yaml"


def selected(folder):
    assert invoke("verify", folder).exit_code == 0
    rows = [orjson.loads(line) for line in (folder / "selected.jsonl").read_bytes().splitlines()]
    assert len({row["_pyids_id"] for row in rows}) == 45
    return [row["_pyids_round"] for row in rows]


def test_ask_and_tell_then_run(mixed):
    folder, config = mixed
    assert invoke("ask", folder, "--config", config).exit_code == 0
    assert tell(folder).exit_code == 0
    out = invoke("run", "--config", config)
    assert out.exit_code == 0, out.output
    rounds = selected(folder)
    assert np.bincount(rounds).tolist() == [0, 15, 15, 15]
    # `run` trains in the last round and scores nothing: whoever likes may still tell that.
    assert invoke("ask", folder).exit_code == 0
    assert tell(folder).exit_code == 0
    assert selected(folder) == rounds
    assert invoke("ask", folder).exit_code == 3
    assert tell(folder).exit_code == 0  # told before
    assert selected(folder) == rounds


@pytest.mark.parametrize("when", ["on_draw", "on_round_end"])
def test_run_killed_then_ask_and_tell_then_run(mixed, when):
    folder, config = mixed
    command = [sys.executable, "-P", "-c", KILLED.format(when=when), config]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == -9, out.stderr
    out = invoke("-q", "ask", folder)
    assert out.exit_code == 0, out.output
    assert tell(folder).exit_code == 0
    assert invoke("-q", "ask", folder).exit_code == 0
    out = invoke("run", "--config", config)
    assert out.exit_code == 0, out.output
    assert np.bincount(selected(folder)).tolist() == [0, 15, 15, 15]
