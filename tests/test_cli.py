"""What a user meets at the command line: help, and an answer to every mistake."""

import gzip
from importlib.metadata import version
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from pyids.cli import cli
from pyids.config import RunConfig

GOOD = {"prompt": "Say one.", "completion": "One."}


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def lines(*rows):
    return b"".join(row if isinstance(row, bytes) else orjson.dumps(row) + b"\n" for row in rows)


def messages(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


MANY = [{"prompt": f"Say {n}.", "completion": f"{n}."} for n in range(8)]

BAD_DATA = {
    "broken JSON line": (lines(GOOD, b'{"prompt": "a", \n', GOOD), ["line 2"]),
    "empty file": (b"", ["empty"]),
    "wrong encoding": (lines(GOOD) + b'{"prompt": "\xe9", "completion": ""}\n', ["line 2", "UTF"]),
    "no assistant turn": (lines(messages(("user", "Hello?"))), ["line 1", "assistant"]),
    "unknown role": (lines(messages(("user", "Hi"), ("robot", "Beep"))), ["line 1", "robot"]),
    "content, no text": (lines(messages(("user", 7), ("assistant", "x"))), ["line 1", "content"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_answered_with_file_row_and_remedy(tmp_path, kind):
    content, words = BAD_DATA[kind]
    path = tmp_path / "pool.jsonl"
    path.write_bytes(content)
    result = invoke("run", path, "--budget", 3, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    for word in ("pool.jsonl", *words):
        assert word in result.output


def test_a_truncated_gz_is_answered(tmp_path):
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*MANY * 50))[:-40])
    result = invoke("run", path, "--budget", 3, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "pool.jsonl.gz" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "0"], "budget 0 is not positive"),
        (["--budget=-4"], "budget -4 is not positive"),
        (["--budget", "lots"], "budget 'lots' is not a number"),
        (["--budget", "9"], "budget 9 is above the 8 usable rows"),
        (["--budget", "3", "--clusters", "9"], "clusters 9 is above the 8 usable rows"),
        ([], "budget is missing"),
        (["--budget", "3", "--encoder", "no/such-encoder"], "no/such-encoder"),
        (["--budget", "3", "--model", "no/such-model"], "no/such-model"),
        (["--budget", "3", "--scorer", "guess"], "there is no scorer 'guess'"),
        (["--budget", "3", "--output-dir", "/proc/nowhere"], "/proc"),
        (["--budget", "3", "--embeddings-file", "none.npy"], "none.npy"),
        (["--budget", "3", "--config", "none.yaml"], "none.yaml"),
    ],
)
def test_a_bad_option_is_answered_in_one_line(tmp_path, options, words):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(lines(*MANY))
    output = [] if "--output-dir" in options else ["--output-dir", tmp_path / "run"]
    result = invoke("run", path, *output, *options)
    assert result.exit_code == 2, result.output
    assert words in result.output.splitlines()[-1]
    assert sum("pyids: " in line for line in result.output.splitlines()) == 1


JUDGE = ["--scorer", "judge", "--judge-url", "example.org", "--judge-model", "m"]
VECTORS = ["--clusters", 4, "--embeddings-file"]


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quality", "lenght"], "quality 'lenght' is neither a signal (length, "),
        (["--quality", "name"], "the column 'name' of --quality holds 'row 0'"),
        (["--quality", "perplexity:no/such-model"], "no/such-model"),
        (JUDGE, "endpoint 'example.org' is not a URL"),
        ([*VECTORS, "few.npy"], "few.npy: 10 vectors for 400 rows"),
        (["--device", "cuda:64"], "--device cuda:64: torch finds no such device"),
    ],
)
def test_a_wrong_option_is_answered_before_the_folder_is_claimed(
    pool, tmp_path, monkeypatch, dry_run, options, words
):
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", np.load(pool.vectors)[:10])
    result = invoke("run", pool.path, "--budget", 30, "--output-dir", "run", *options, *dry_run)
    assert result.exit_code == 2, result.output
    assert words in result.output.splitlines()[-1]
    assert not Path("run", "identity.json").exists()


def test_vectors_that_cannot_be_used_leave_the_folder_nobodys(pool, tmp_path):
    vectors = np.load(pool.vectors)
    np.save(pool.vectors, np.where(np.arange(400)[:, None] == 7, np.nan, vectors))
    arguments = ["ask", tmp_path / "run", "--data", pool.path, "--budget", 30]
    arguments += [*VECTORS, pool.vectors]
    assert "row ids 7" in invoke(*arguments).output
    np.save(pool.vectors, vectors)
    assert invoke(*arguments).exit_code == 0


def test_a_dry_run_in_the_folder_of_another_run_is_refused(pool, tmp_path):
    arguments = ["--budget", 30, *VECTORS, pool.vectors]
    folder = tmp_path / "run"
    assert invoke("ask", folder, "--data", pool.path, *arguments).exit_code == 0
    arguments = ["run", pool.path, "--output-dir", folder, *arguments, "--dry-run"]
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments, "--seed", 1)
    assert result.exit_code == 2
    assert "is the folder of another run: seed was 0, now 1" in result.output


@pytest.mark.parametrize("data", ["nowhere.jsonl", "empty-folder", "notes.txt"])
def test_data_that_is_not_there_is_answered(tmp_path, data):
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    result = invoke("run", tmp_path / data, "--budget", 3, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert data in result.output


def test_a_run_folder_of_other_data_is_refused(pool, tmp_path):
    def ask(path):
        options = ["--budget", 30, "--clusters", 4, "--embeddings-file", pool.vectors]
        return invoke("ask", tmp_path / "run", "--data", path, *options)

    assert ask(pool.path).exit_code == 0
    other = tmp_path / "other.jsonl"
    other.write_bytes(lines(*pool.rows[:-1], GOOD | {"messages": pool.rows[0]["messages"]}))
    result = ask(other)
    assert result.exit_code == 2
    assert "is the folder of another run" in result.output


def test_unusable_rows_are_skipped_counted_and_listed(pool, tmp_path):
    rows = list(pool.rows)
    rows[7] = messages(("user", "Hello?"), ("assistant", " "))
    pool.path.write_bytes(lines(*rows))
    arguments = ["ask", tmp_path / "run", "--data", pool.path, "--embeddings-file", pool.vectors]
    arguments += ["--budget", 30, "--clusters", 4]
    strict = invoke(*arguments, "--strict")
    assert strict.exit_code == 2
    assert "line 8" in strict.output
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    [skipped] = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert orjson.loads(skipped)["row_id"] == 7


def test_dry_run_says_what_would_run_and_writes_nothing(pool, tmp_path):
    options = [
        "--budget",
        "10%",
        "--embeddings-file",
        pool.vectors,
        "--output-dir",
        tmp_path / "run",
    ]
    result = invoke("run", pool.path, *options, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "400 stay" in result.output
    assert "draw 40 rows in all" in result.output
    assert not (tmp_path / "run").exists()


def test_options_come_from_the_file_and_the_command_line_wins(pool, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"data: {pool.path}\nbudget: 30\nembeddings_file: {pool.vectors}\nclusters: 4\n"
    )
    result = invoke("run", "--config", path, "--budget", 40, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "draw 40 rows in all" in result.output
    assert "clusters  4" in result.output


def test_every_option_of_the_config_is_an_option_of_run():
    text = invoke("run", "--help").output
    for name in RunConfig.model_fields:
        if name != "data":
            assert f"--{name.replace('_', '-')} " in text, name


def asked(pool, folder):
    """Ask for a first round; return the file of its scores."""
    options = [
        "--data",
        pool.path,
        "--embeddings-file",
        pool.vectors,
        "--budget",
        30,
        "--clusters",
        4,
    ]
    result = invoke("-q", "ask", folder, *options)
    assert result.exit_code == 0, result.output
    return score(result.output.split()[-1])


def score(probes):
    rows = [orjson.loads(line) for line in Path(probes).read_bytes().splitlines()]
    scores = Path(probes).with_name("scores.jsonl")
    scores.write_bytes(lines(*({"_pyids_id": row["_pyids_id"], "score": 1} for row in rows)))
    return scores


def test_a_round_is_not_told_before_it_was_asked_for(pool, tmp_path):
    folder = tmp_path / "run"
    scores = asked(pool, folder)
    assert invoke("tell", folder, scores).exit_code == 0
    for _ in range(2):
        again = invoke("tell", folder, scores)
        assert again.exit_code == 0
        said = f"round 1 was told these scores before; next: `pyids ask {folder}`"
        assert said in again.output
    told = (folder / "rounds" / "1" / "weights.json").read_bytes()
    scores.write_bytes(scores.read_bytes().replace(b"1}", b"2}"))
    other = invoke("tell", folder, scores)
    assert other.exit_code == 2
    assert "round 2 of 3 has not been asked for" in other.output
    assert (folder / "rounds" / "1" / "weights.json").read_bytes() == told
    assert not (folder / "rounds" / "2").exists()
    # With the next round asked for, they are scores of rows that nobody waits for.
    first = scores.read_bytes().replace(b"2}", b"1}")
    assert invoke("-q", "ask", folder).exit_code == 0
    scores.write_bytes(first)
    assert invoke("tell", folder, scores).exit_code == 2


def test_a_selection_whose_last_tell_was_stopped_can_be_finished(pool, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    scores = asked(pool, folder)
    for _ in range(2):
        assert invoke("tell", folder, scores).exit_code == 0
        scores = score(invoke("-q", "ask", folder).output.split()[-1])
    with monkeypatch.context() as patch:
        patch.setattr("pyids.selection.Selection.finish", lambda selection: 1 / 0)
        assert invoke("tell", folder, scores).exit_code == 1
    assert "its run has not ended" in invoke("verify", folder).output
    assert invoke("export", folder).exit_code == 0
    assert invoke("verify", folder).exit_code == 0
    # The same scores, told again, finish it as well.
    (folder / "manifest.json").unlink()
    again = invoke("tell", folder, scores)
    assert again.exit_code == 0
    assert f"told these scores before; next: `pyids export {folder}`" in again.output
    assert invoke("verify", folder).exit_code == 0


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_a_place_for_json_that_cannot_be_written_is_answered_before_the_work(
    tmp_path, monkeypatch, command
):
    for work in ("evaluation.evaluate.evaluate", "evaluation.compare.compare"):
        monkeypatch.setattr(f"pyids.{work}", lambda *arguments, **options: pytest.fail("worked"))
    for place in (tmp_path / "none" / "out.json", tmp_path):
        result = invoke(command, "x", "y", "--json", place)
        assert result.exit_code == 2
        assert result.output == (
            f"pyids: --json {place}: cannot be written there: name a file in a folder that exists\n"
        )


def test_the_table_is_shown_even_if_the_file_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pyids.evaluation.compare.compare", lambda *arguments, **options: "the table"
    )
    result = invoke("compare", "x", "y", "--json", tmp_path / "out.json")  # a text has no as_json
    assert result.exit_code == 1
    assert result.output == "the table\n"


def test_verify_notices_a_changed_byte(pool, tmp_path):
    import pyids

    with pyids.Selection.open(tmp_path / "run", **pool.options(rounds=1)) as selection:
        selection.draw()
        selection.tell({int(row): 1.0 for row in selection.probes()})
        selected = selection.finish()
    assert invoke("verify", tmp_path / "run").exit_code == 0
    content = bytearray(selected.read_bytes())
    content[10] ^= 1
    selected.write_bytes(content)
    result = invoke("verify", tmp_path / "run")
    assert result.exit_code == 1
    assert "selected.jsonl: the content has changed" in result.output


def test_the_version_is_that_of_the_package():
    import pyids

    assert pyids.__version__ == version("pyids-select")
    assert invoke("--version").output == f"pyids, version {pyids.__version__}\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["select", "pool", "--method", "km"], ["km-closest", "km-median", "km-random", "kmq"]),
        (["run", "pool", "--scorer", "target-g"], ["target-gradient"]),
        (["run", "pool", "--weight-update", "u"], ["ucb"]),
        (["select", "pool", "--quality", "perplexity-"], ["perplexity-difference"]),
        (["clean", "run", "--stage", "emb"], ["embed"]),
    ],
)
def test_names_are_completed_in_the_shell(words, found):
    from click.shell_completion import BashComplete

    complete = BashComplete(cli, {}, "pyids", "_PYIDS_COMPLETE")
    assert [one.value for one in complete.get_completions(words[:-1], words[-1])] == found
