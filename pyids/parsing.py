"""Options as they are written, on a command line or in a file, made into values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pyids.chat.format_map import PREFIX as MAP_PREFIX
from pyids.chat.format_map import check_format_map
from pyids.errors import ConfigError


def parse_budget(value: object) -> object:
    """Turn "500" into 500; keep "5%" as it is; refuse anything else."""
    remedy = "give a number of rows (--budget 10000) or a share of the pool (--budget 5%)"
    if isinstance(value, str):
        text = value.strip()
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
            if not 0 < float(match[1]) <= 100:
                raise ValueError(f"budget {text} is not above 0% and at most 100%: {remedy}")
            return f"{match[1]}%"
        if not re.fullmatch(r"[+-]?\d+", text):
            raise ValueError(f"budget {text!r} is not a number: {remedy}")
        value = int(text)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"budget {value!r} is not a whole number: {remedy}")
    if value < 1:
        raise ValueError(f"budget {value} is not positive: {remedy}")
    return value


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
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"clusters {value!r} is neither a positive number nor auto")
    return value


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
            f"{shown.partition('?')[0]}: nothing can be written to {match[1]}:// yet: name a "
            "folder or file of this machine, and copy it there afterwards"
        )
    return str(path)


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
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"kmeans_sample {value!r} is neither a positive number of rows nor all")
    return value


def parse_bytes(value: object) -> object:
    """Turn "4GB", "512 MiB" or a number of bytes into bytes."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
    if match is None or not float(match[1]) > 0:
        raise ValueError(f"max_memory {value!r} is no size: write it as 4GB or 512MiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def explain(problem: Any) -> str:
    """Say in one line what pydantic finds wrong with an option."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    names = [str(part) for part in problem["loc"] if isinstance(part, str)]
    option = names[0] if names else ""
    if problem["type"] == "value_error" or not option:
        return message
    if problem["type"] == "missing" and option == "data":
        return "data is missing: name it as DATA (`pyids ask`: --data), or as data in the config"
    if problem["type"] == "missing":
        return f"{option} is missing: give --{option.replace('_', '-')}"
    if problem["type"] == "extra_forbidden":
        return f"{option} is not an option: `pyids run --help` lists them"
    return f"{option} = {_brief(problem['input'])}: {message[0].lower()}{message[1:]}"


def _brief(value: object) -> str:
    """Show a value that was given, on one line, whatever its size."""
    shown = " ".join(repr(value).split()) if isinstance(value, str | int | float | list) else ""
    return shown if 0 < len(shown) <= 60 else f"a {type(value).__name__}"
