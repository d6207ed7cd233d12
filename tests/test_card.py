"""The card beside an export: valid for the hub, true, and never in the place of another file."""

import pytest
import yaml

import pyids
from pyids.data.card import card_of, size_category
from pyids.store.manifest import verify


@pytest.fixture
def selection(pool, tmp_path):
    def open_(**options):
        options = {**pool.options(rounds=1), **options}
        selection = pyids.Selection.open(tmp_path / "run", **options)
        selection.draw()
        return selection

    return open_


def front_matter(card):
    text = card.read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_what_the_rows_are_and_the_hub_reads_it(pool, selection, tmp_path):
    for row in pool.rows:
        row["license"] = "CC-BY-4.0"
        row["source"] = "a | b ` <script>"
    pool.write()
    with selection() as made:
        made.finish()
    card = tmp_path / "run" / "README.md"
    front = front_matter(card)
    assert front["license"] == "cc-by-4.0"
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"] == [{"config_name": "default", "data_files": "selected.jsonl"}]
    text = card.read_text(encoding="utf-8")
    for said in ("60 of 400 usable rows", "| seed | `0` |", "| clusters | `4` |", "_pyids_weight"):
        assert said in text
    assert "<script>" not in text
    assert str(tmp_path) not in text
    assert verify(tmp_path / "run") == []


def test_the_hub_library_reads_the_front_matter(selection, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface-hub")
    with selection() as made:
        made.export()
    card = hub.DatasetCard.load(tmp_path / "run" / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "unknown"  # no row and no source names one: it is not made up
    assert card.data.configs[0]["data_files"] == "selected.jsonl"
    assert "look it up at the source" in card.text


def test_datasets_loads_the_folder_by_its_card(selection, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    with selection() as made:
        made.export(tmp_path / "share" / "rows.jsonl")
    loaded = datasets.load_dataset(
        str(tmp_path / "share"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 60


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["MIT", "apache-2.0"], ["apache-2.0", "mit"]),
        (["mit", "my own"], "other"),
        (None, "gpl-3.0"),
    ],
)
def test_licenses_pass_through(pool, selection, tmp_path, named, expected):
    if named is None:  # that of the data set's own card
        (pool.path.parent / "README.md").write_text("---\nlicense: gpl-3.0\n---\n# Pool\n")
    else:
        for n, row in enumerate(pool.rows):
            row["license"] = named[n % len(named)]
        pool.write()
    with selection() as made:
        made.export()
    assert front_matter(tmp_path / "run" / "README.md")["license"] == expected


def test_a_readme_of_another_is_never_replaced(selection, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "README.md").write_text("my project\n")
    with selection() as made:
        rows = made.export(folder / "rows.jsonl")
        assert (folder / "README.md").read_text() == "my project\n"
        assert card_of(rows) == folder / "rows.README.md"
        # A second export into one folder, and the first one again.
        own = made.export()
        other = made.export(format="parquet")
        assert card_of(own) == own.with_name("README.md")
        assert card_of(other) == other.with_name("selected.README.md")
        before = card_of(own).read_bytes()
        made.export()
        assert card_of(own).read_bytes() == before
        folder = made.export(format="trl")
        assert "_pyids_weight" not in card_of(folder / "selected.jsonl").read_text()
        assert "position of a row" in card_of(made.export(format="indices")).read_text()


def test_rows_to_score_have_no_card(selection, tmp_path):
    with selection(rounds=2) as made:
        probes = made.export_probes()
    assert card_of(probes) is None
    assert not list((tmp_path / "run").glob("*README.md"))


def test_a_method_without_rounds_is_named(pool, tmp_path):
    made = pyids.select("random", {**pool.options(), "output_dir": str(tmp_path / "run")})
    text = card_of(made.path).read_text()
    assert "by the method `random`" in text
    assert "pyids select --method random pool.jsonl" in text


def test_sizes_are_those_of_the_hub():
    sizes = [size_category(n) for n in (0, 999, 10**3, 10**6, 10**12)]
    assert sizes == ["n<1K", "n<1K", "1K<n<10K", "1M<n<10M", "n>1T"]
