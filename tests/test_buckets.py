"""Buckets as outputs: what does not work is refused before any work, in one line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.errors import ConfigError

URLS = ["s3://bucket/run", "gs://bucket/run", "hf://datasets/a/b", "abfss://c@x/run", "s3:/b/run"]


def refused(*arguments):
    out = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert out.exit_code == 2, out.output
    [line] = out.output.strip().splitlines()
    assert "yet: name a folder or file of this machine" in line
    return line


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, which must stay empty."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    yield place
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("url", URLS)
def test_a_run_folder_in_a_bucket_is_refused_before_any_work(url, pool, here):
    options = ["--budget", 20, "--embeddings-file", pool.vectors]
    refused("run", pool.path, *options, "--output-dir", url)
    refused("run", pool.path, *options, "--output-dir", url, "--dry-run")
    refused("select", pool.path, "--method", "random", *options, "--output-dir", url)
    refused("ask", url, "--data", pool.path, *options)
    for given in (url, Path(url)):
        with pytest.raises(ConfigError, match="nothing can be written to"):
            pyids.select("random", data=pool.rows, budget=9, output_dir=given)


def test_an_export_to_a_bucket_is_refused_before_any_work(pool, here, tmp_path):
    run, url = tmp_path / "run", URLS[0]
    options = ["--method", "random", "--budget", 9, "--output-dir", run]
    refused("select", pool.path, *options, "--to", url)
    assert not run.exists()
    assert CliRunner().invoke(cli, [str(o) for o in ["select", pool.path, *options]]).exit_code == 0
    refused("select", run, "--method", "random", "--budget", 9, "--to", url)
    refused("export", run, "--to", url)
    refused("report", run, "--to", url)
    refused("eval", "nowhere", pool.path, "--json", url)


def test_a_refusal_shows_no_secret(pool, here):
    line = refused(
        "run", pool.path, "--budget", 9, "--output-dir", "s3://key:secret@bucket/run?token=secret"
    )
    assert "secret" not in line
