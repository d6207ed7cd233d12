import pytest

from pyids.config import RunConfig, load_config, make_config
from pyids.errors import ConfigError


def config(**options):
    return make_config(**{"data": "pool.jsonl", "budget": 100, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0}, "budget 0 is not positive"),
        ({"budget": "-5"}, "budget -5 is not positive"),
        ({"budget": "many"}, "budget 'many' is not a number"),
        ({"budget": 1.5}, "budget 1.5 is not a whole number"),
        ({"budget": True}, "budget True is not a whole number"),
        ({"budget": "0%"}, "not above 0%"),
        ({"budget": "101%"}, "at most 100%"),
        ({"budget": 2}, "below the 3 rounds"),
        ({"clusters": 0}, "neither a positive number nor auto"),
        ({"clusters": "some"}, "neither a positive number nor auto"),
        ({"min_weight": 1.0}, "min_weight = 1.0"),
        ({"device": "tpu"}, "device = 'tpu'"),
        ({"data": []}, "data"),
        ({"bugdet": 5}, "bugdet is not an option"),
    ],
)
def test_a_bad_option_is_named_in_one_line(options, words):
    with pytest.raises(ConfigError) as caught:
        config(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_option_is_named():
    with pytest.raises(ConfigError, match="data is missing: name it as DATA"):
        make_config(budget=10)
    with pytest.raises(ConfigError, match="budget is missing: give --budget"):
        make_config(data="pool.jsonl")


@pytest.mark.parametrize(
    ("budget", "rows", "expected"), [(100, 1000, 100), ("5%", 1000, 50), ("0.7%", 1000, 7)]
)
def test_budget_rows(budget, rows, expected):
    assert config(budget=budget).budget_rows(rows) == expected


@pytest.mark.parametrize(("budget", "rows"), [(100, 99), ("1%", 200)])
def test_a_budget_that_the_pool_cannot_fill(budget, rows):
    with pytest.raises(ConfigError, match="budget"):
        config(budget=budget).budget_rows(rows)


def test_a_share_of_nothing_names_an_option_that_is_there():
    with pytest.raises(ConfigError, match=r"budget 1% of 200 rows is 2, .* or lower --rounds"):
        config(budget="1%").budget_rows(200)
    with pytest.raises(ConfigError, match=r"is 0, and nothing is selected: raise --budget$"):
        config(budget="0.1%", rounds=1).budget_rows(200)


def test_cluster_count():
    assert config(clusters=7).cluster_count(1000) == 7
    assert config(clusters="12").cluster_count(1000) == 12
    assert config(budget=600).cluster_count(5000) == 50
    assert config(budget=30).cluster_count(5000) == 5
    assert config(budget=3).cluster_count(5000) == 1
    with pytest.raises(ConfigError, match="above the 6 usable rows"):
        config(clusters=7, budget=3).cluster_count(6)


def test_yaml_round_trip(tmp_path):
    written = config(budget="5%", clusters="auto", temperature=0.5)
    path = tmp_path / "run.yaml"
    path.write_text(written.to_yaml())
    assert make_config(**load_config(path)) == written


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\xff"])
def test_a_bad_yaml_file_is_named(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_a_yaml_file_that_cannot_be_opened_is_named_with_what_helps(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file: name "):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"Is a directory\): "):
        load_config(tmp_path)


def test_every_option_has_help_and_a_group():
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        assert field.json_schema_extra["group"], name


def test_default_output_is_named_after_the_data():
    assert str(config(data="some/pool.jsonl.gz").output_path) == "runs/pool"
    assert str(config(data="owner/name").output_path) == "runs/name"
    assert str(config(data="*.jsonl", output_dir="x").output_path) == "x"
