"""Options as they are written, on a command line or in a file, made into values."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any

import yaml

from pyids.chat.format_map import PREFIX as MAP_PREFIX
from pyids.chat.format_map import check_format_map
from pyids.errors import ConfigError

_POWERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


# A whole number, or one with a power behind it: 20M, 1.5K.
_NUMBER = re.compile(r"([+-]?\d+)|(\d+(?:\.\d+)?)([KMB])", re.IGNORECASE)


_WITH_UNIT = re.compile(r"(.*\S)\s*-\s*(rows|response-tokens|tokens)")


def parse_budget(value: object) -> object:
    """Turn "500" into 500, "20M" into 20000000; keep "5%" as it is; refuse anything else."""
    remedy = (
        "give a number of rows (--budget 10000) or tokens (--budget 20M-tokens), or a share of the "
        "pool (--budget 5%)"
    )
    if isinstance(value, str):
        text = value.strip()
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
            if not 0 < Fraction(match[1]) <= 100:
                raise ValueError(f"budget {text} is not above 0% and at most 100%: {remedy}")
            return f"{match[1]}%"
        if (number := _whole(text)) is None:
            raise ValueError(f"budget {text!r} is not a number: {remedy}")
        value = number
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"budget {value!r} is not a whole number: {remedy}")
    if value < 1:
        raise ValueError(f"budget {value} is not positive: {remedy}")
    return int(value)


def check_rounds(share: str, budget: int, rounds: int) -> None:
    """Check that what a share comes to reaches for one row, or token, in each round.

    Raises
    ------
    ConfigError
        It does not.
    """
    if budget >= rounds:
        return
    if rounds == 1:  # as of a selection by one method, which has no --rounds
        raise ConfigError(f"{share} is {budget}, and nothing is selected: raise --budget")
    raise ConfigError(
        f"{share} is {budget}, below the {rounds} rounds: raise --budget or lower --rounds"
    )


def _whole(text: str) -> int | None:
    """Read a whole number, such as 500 or 1.5M; None where it is none."""
    if not (match := _NUMBER.fullmatch(text)):
        return None
    if match[1]:
        return int(match[1])
    number = Fraction(match[2]) * _POWERS[match[3].upper()]
    return int(number) if number.denominator == 1 else None


def split_budget(options: dict[str, Any]) -> dict[str, Any]:
    """Take a budget that names its unit apart: 20M-tokens are response tokens unless said.

    Raises
    ------
    ValueError
        The unit that is given beside it is another.
    """
    budget, unit = options.get("budget"), options.get("budget_unit")
    if not isinstance(budget, str) or not (match := _WITH_UNIT.fullmatch(budget.strip())):
        return options
    fits = {"tokens": ("response-tokens", "tokens")}.get(match[2], (match[2],))
    if unit not in (None, *fits):
        raise ValueError(f"budget {budget} is not in {unit}: give one unit (--budget-unit)")
    return {**options, "budget": match[1], "budget_unit": unit or fits[0]}


def parse_amounts(value: object) -> object:
    """Take ``["code=30%", "math=500"]`` or a mapping; give the amounts by name."""
    if value is None:
        return None
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        pairs = [str(item).rpartition("=") for item in value]
        if wrong := [item for item, pair in zip(value, pairs, strict=True) if not pair[0]]:
            raise ValueError(f"{wrong[0]!r} is no NAME=AMOUNT: write it as code=30% or code=2000")
        names = [name for name, _, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"group {twice[0]!r} is given twice: give it once")
        value = {name: amount for name, _, amount in pairs}
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} holds no amounts of groups: write NAME=AMOUNT")
    return {str(name): _amount(str(name), given) for name, given in value.items()}


def _amount(name: str, given: object) -> int | str:
    text = str(given).strip()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        if Fraction(match[1]) <= 100:
            return f"{match[1]}%"
    elif not isinstance(given, bool) and (number := _whole(text)) is not None and number >= 0:
        return number
    raise ValueError(
        f"{name}={text}: neither a share of the budget up to 100% (30%) nor a whole number (2000)"
    )


def parse_mix(value: object) -> object:
    """Take a mapping of groups to numbers, or the YAML file that holds it, or the word equal."""
    if value is None or value == "equal":
        return value
    if isinstance(value, str):
        try:
            read = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{value}: cannot be read as a YAML mix of groups: {reason}") from None
        where = f"{value}: "
    else:
        read, where = value, ""
    if not isinstance(read, dict) or not read:
        raise ValueError(f"{where}no mapping of groups to numbers: write lines such as `code: 2`")
    for name, number in read.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{where}group {name!r} has {number!r:.40}: give it a number")
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{where}group {name!r} has {number}: give it 0 or more")
    if not any(read.values()):
        raise ValueError(f"{where}every group has 0: give at least one more")
    return {str(name): float(number) for name, number in read.items()}


def parse_data(value: object) -> object:
    """Take one path or several, as texts or as paths."""
    if isinstance(value, str | Path):
        return [str(value)]
    if isinstance(value, list | tuple):
        return [str(item) if isinstance(item, Path) else item for item in value]
    return value


def parse_clusters(value: object) -> object:
    """Turn "256" into 256; keep "auto"; refuse anything else."""
    if value is None or value == "auto":
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"clusters {value!r} is neither a positive number nor auto")
    return int(value)


def check_url(url: str, *, key_variable: str = "OPENAI_API_KEY") -> str:
    """Return the URL of an endpoint.

    Raises
    ------
    ValueError
        It is not a URL, or it may hold a secret (which is not shown): it is written to the run
        folder, and paths are put behind it.
    """
    if set("@?#") & set(url):
        raise ValueError(
            "the URL of the endpoint holds one of @ ? #, and would be written to the run folder: "
            f"leave user and query out (https://host/v1), and give the key in {key_variable}"
        )
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"endpoint {url!r} is not a URL: give one such as https://host/v1")
    return url


def check_on_disk(path: str | Path) -> str:
    """Return the path of something that is to be written, if it lies on a disk.

    ``Path("s3://bucket")`` is ``s3:/bucket``, which would be made as a folder of that name here.

    Raises
    ------
    ValueError
        It is the address of a bucket, or another URL.
    """
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", str(path)):
        shown = re.sub(r"//[^/@]*@", "//", f"{match[1]}://{str(path)[match.end() :]}")
        raise ValueError(
            f"{shown.partition('?')[0]}: nothing can be written there yet: name a folder or file "
            "of this machine, and copy it there afterwards"
        )
    return str(path)


def check_output_dir(path: str) -> str:
    """Return the run folder, if it lies on a disk or in a bucket that can be written to."""
    return path if path.startswith("s3://") and not set("@?#*") & set(path) else check_on_disk(path)


def parse_format_map(given: str | None) -> str | None:
    """Check how columns are mapped; give its canonical text."""
    return None if given is None else check_format_map(given)


def parse_row_format(format: str, format_map: str | None) -> str:
    """Return how rows are read: in a format, or as the map of columns says.

    Raises
    ------
    ConfigError
        Both are named, or the map does not fit.
    """
    if format_map is None:
        return format
    if format != "auto":
        raise ConfigError("--format and --format-map exclude each other: leave one out")
    try:
        return f"{MAP_PREFIX}{check_format_map(format_map)}"
    except ValueError as error:
        raise ConfigError(f"--format-map: {error}") from None


def check_encoder(name: str) -> str:
    """Check the name of an encoder, if it is a URL."""
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        check_url(url)
        if set("?&=#") & set(model):
            raise ValueError(
                "the model behind # of the encoder's endpoint holds one of ? & = #, and would be "
                "written to the run folder: name the model alone (https://host/v1#model), and give "
                "the key in OPENAI_API_KEY"
            )
    return name


def parse_sample(value: object) -> object:
    """Turn "100000" into 100000; keep "all"; refuse anything else."""
    if value is None or value == "all":
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"kmeans_sample {value!r} is neither a positive number of rows nor all")
    return int(value)


def parse_bytes(value: object) -> object:
    """Turn "4GB", "512 MiB" or a number of bytes into bytes."""
    if value is None:
        return value
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0:
        return int(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
    if match is None or not float(match[1]) > 0:
        raise ValueError(f"max_memory {value!r} is no size: write it as 4GB or 512MiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))
