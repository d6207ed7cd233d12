"""Groups of options that `pyids.config.RunConfig` is put together from.

A group that has a subject of its own stands here: what a budget counts and how it is shared, what
must not be drawn, and what is selected for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field

from pyids.parsing import parse_amounts, parse_data, parse_mix

BudgetUnit: TypeAlias = Literal["rows", "tokens", "response-tokens"]


Files = Annotated[list[str] | None, BeforeValidator(parse_data)]


# What a group may have at most or at least: a number, or a share such as 30%.
Amounts = Annotated[dict[str, int | str] | None, BeforeValidator(parse_amounts)]


Mix = Annotated[dict[str, float] | Literal["equal"] | None, BeforeValidator(parse_mix)]


# Options that the command line takes several times.
REPEATED = frozenset({"target", "cap", "floor", "exclude", "already"})


def option(group: str, help_text: str, default: Any = ..., **constraints: Any) -> Any:
    """Declare a field with its help text and the group that the command line shows it in."""
    return Field(default, description=help_text, json_schema_extra={"group": group}, **constraints)


class BudgetOptions(BaseModel):
    """What the budget counts, and how much of it a group of rows may have."""

    budget_unit: BudgetUnit | None = option(
        "Budget",
        "what --budget counts: rows, tokens of whole conversations, or tokens of the responses, by "
        "the tokenizer of --model (default: rows, or response-tokens for 20M-tokens)",
        None,
    )
    group_by: str | None = option(
        "Budget",
        "column that groups rows, such as source; `file` is the name of a row's file",
        None,
    )
    cap: Amounts = option(
        "Budget",
        "most that a group of --group-by may have: NAME=30% of the budget, or NAME=2000; may be "
        "repeated",
        None,
    )
    floor: Amounts = option(
        "Budget", "least that a group of --group-by must have, as --cap; may be repeated", None
    )
    proportional_to: Mix = option(
        "Budget",
        "`equal`: each group of --group-by gets the same part of the budget, or all that it has; "
        "or a YAML file with a number for each group: the budget is shared in these proportions",
        None,
    )


class ExclusionOptions(BaseModel):
    """Which rows are never drawn: what is reported later, and what is trained on already."""

    exclude: Files = option(
        "Exclusion",
        "held-out rows (files, as DATA, or a benchmark such as gsm8k or owner/name@config:split; "
        "may be repeated): rows that repeat them, or share words with them, are never drawn",
        None,
        min_length=1,
    )
    exclude_ngram: int | None = option(
        "Exclusion", "words in a row that --exclude looks for (default: 13)", None, ge=2
    )
    exclude_overlap: float | None = option(
        "Exclusion",
        "share of a held-out row's n-grams that a row must have to be excluded (default: one "
        "n-gram is enough)",
        None,
        gt=0,
        le=1,
    )
    exclude_cosine: float | None = option(
        "Exclusion",
        "exclude rows, too, whose vector has at least this cosine to a held-out row's, such as "
        "0.95 (default: vectors are not compared)",
        None,
        gt=0,
        lt=1,
    )
    exclude_embeddings_file: str | None = option(
        "Exclusion",
        "precomputed vectors of the held-out rows: a .npy file, row i for held-out row i",
        None,
    )
    already: Files = option(
        "Exclusion",
        "rows that are trained on already (files, as DATA; may be repeated): they are not drawn "
        "again, and the clusters that they lie in are charged for them",
        None,
        min_length=1,
    )


class TargetOptions(BaseModel):
    """What is selected for."""

    target: Files = option(
        "Target",
        "rows that show what the model is to learn (files, as DATA; may be repeated): rows like "
        "them are preferred, they and near copies of them are never selected",
        None,
        min_length=1,
    )
    target_by: str | None = option(
        "Target",
        "column of the target's rows that groups them into tasks (default: a task a file)",
        None,
    )
    target_embeddings_file: str | None = option(
        "Target", "precomputed vectors of the target: a .npy file, row i for its row i", None
    )


def check_budget_options(config: Any) -> None:
    """Check that options of the groups above go together.

    Raises
    ------
    ValueError
        One belongs to another that is not given, or they contradict each other.
    """
    for name in ("cap", "floor", "proportional_to"):
        if getattr(config, name) is not None and config.group_by is None:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --group-by: name that too")
    if config.group_by is not None and not (config.cap or config.floor or config.proportional_to):
        raise ValueError(
            "--group-by alone changes nothing: give --cap, --floor or --proportional-to, too"
        )
    for name in ("exclude_ngram", "exclude_overlap", "exclude_cosine", "exclude_embeddings_file"):
        if getattr(config, name) is not None and config.exclude is None:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --exclude: name that too")
    if config.exclude_embeddings_file is not None and config.exclude_cosine is None:
        raise ValueError("--exclude-embeddings-file belongs to --exclude-cosine: give that too")


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
