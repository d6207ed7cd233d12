"""Folders: the split that is meant, what is left out and said, links, names."""

import logging
import os
from pathlib import Path

import orjson
import pytest

from pyids.data.sources import open_sources
from pyids.errors import DataError

ROW = orjson.dumps({"prompt": "q", "completion": "a"}) + b"\n"


def tree(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ROW)
    return folder


def found(name, folder):
    return [str(Path(source.path).relative_to(folder)) for source in open_sources([str(name)])]


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["train.jsonl", "validation.jsonl", "test.jsonl"], ["train.jsonl"]),
        (["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
         ["data/train-00000-of-00001.jsonl"]),
        (["train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"], ["train/a.jsonl", "train/b.jsonl"]),
        (["my_training_set.jsonl", "my_eval.jsonl"], ["my_training_set.jsonl"]),
        (["a.jsonl", "b.jsonl", "test.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["latest.jsonl", "trainer.jsonl", "devices.jsonl"],
         ["devices.jsonl", "latest.jsonl", "trainer.jsonl"]),
        (["test.jsonl"], ["test.jsonl"]),
    ],
)  # fmt: skip
def test_train_is_read_and_the_rest_is_said(names, train, caplog, tmp_path):
    tree(tmp_path, *names)
    with caplog.at_level(logging.INFO, "pyids"):
        assert found(tmp_path, tmp_path) == train
    assert len(caplog.records) == (len(names) > len(train))
    if len(names) > len(train):
        assert "read the split train; left out" in caplog.text
    assert found(f"{tmp_path}:all", tmp_path) == sorted(names)


def test_another_split_is_named(tmp_path):
    tree(tmp_path, "train.jsonl", "validation.jsonl", "test.jsonl")
    assert found(f"{tmp_path}:test", tmp_path) == ["test.jsonl"]
    with pytest.raises(DataError, match="no split 'dev': choose one of"):
        found(f"{tmp_path}:dev", tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match="holds the splits test, validation: name one, such as"):
        found(tmp_path, tmp_path)


README = """---
license: mit
configs:
- config_name: {first}
  data_files:
  - split: train
    path: data/part-*
  - split: test
    path: [held/out.jsonl]
- config_name: small
  data_files: few.jsonl
---
# A set
"""


def test_a_readme_names_configurations_and_splits(caplog, tmp_path):
    folder = tree(tmp_path / "a [v1]", "data/part-1.jsonl", "data/part-2.jsonl", "held/out.jsonl",
                  "few.jsonl", "stray.jsonl")  # fmt: skip
    (folder / "README.md").write_text(README.format(first="default"))
    with caplog.at_level(logging.INFO, "pyids"):
        assert found(folder, folder) == ["data/part-1.jsonl", "data/part-2.jsonl"]
    assert "left out test (1 files), 2 files of no split" in caplog.text
    assert found(f"{folder}:test", folder) == ["held/out.jsonl"]
    assert found(f"{folder}@small", folder) == ["few.jsonl"]
    (folder / "README.md").write_text(README.format(first="big"))
    with pytest.raises(DataError, match=r"configurations big, small: choose one, such as .*@big"):
        found(folder, folder)
    with pytest.raises(DataError, match=r"no configuration 'large' \(its README has: big, small\)"):
        found(f"{folder}@large", folder)
    (folder / "few.jsonl").unlink()
    with pytest.raises(DataError, match=r"no data file matches few\.jsonl, which its README names"):
        found(f"{folder}@small", folder)


def test_a_linked_folder_is_followed_once(tmp_path):
    tree(tmp_path / "elsewhere", "b.jsonl")
    tree(tmp_path / "pool", "a.jsonl")
    for name in ("linked", "twice"):
        (tmp_path / "pool" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pool" / "circle").symlink_to(tmp_path / "pool")
    assert found(tmp_path / "pool", tmp_path) == ["pool/a.jsonl", "pool/linked/b.jsonl"]


def test_a_name_that_is_no_utf_8_is_one_line(tmp_path):
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.jsonl", "wb") as file:
            file.write(ROW)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(DataError, match=r"caf\\udce9\.jsonl: a file name that is no UTF-8: rename"):
        open_sources([str(tmp_path)])
