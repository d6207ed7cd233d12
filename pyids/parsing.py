"""Options as they are written, on a command line or in a file, made into values."""

from __future__ import annotations

import re
from pathlib import Path

from pyids.chat.format_map import check_format_map


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
