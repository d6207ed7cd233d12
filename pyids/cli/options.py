"""Options of the command line, made from the fields of the configuration, in groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click

from pyids.config import RunConfig, group_of
from pyids.options import REPEATED

# The options that are shown first, in this order.
FIRST = (
    "budget", "rounds", "model", "encoder", "clusters", "quality", "seed", "device", "workers",
    "output_dir",
)  # fmt: skip
FIRST_TITLE = "Options that matter first"
# What is written in forms that the configuration knows.
_PARSED = ("budget", "clusters", "kmeans_sample", "max_memory", "proportional_to")
# Options whose value is a name of a list of `pyids.registry`.
_LISTS = {
    "scorer": "SCORERS",
    "weight_update": "WEIGHT_UPDATES",
    "quality": "SIGNALS",
    "encoder": "ENCODERS",
}
# All fields, in the order of the configuration; what it inherits comes last in each group.
FIELDS = tuple(
    dict.fromkeys(
        name
        for name in (*RunConfig.__annotations__, *RunConfig.model_fields)
        if name in RunConfig.model_fields
    )
)
# The groups that options are shown in: these first, in this order.
GROUPS = tuple(
    dict.fromkeys(["Data", "Selection", "Budget", "Exclusion", "Target", *map(group_of, FIELDS)])
)


def shown_in(name: str) -> str:
    """Return the group that the option of a field is shown in."""
    return FIRST_TITLE if name in FIRST else group_of(name)


class GroupedCommand(click.Command):
    """A command whose help shows the options of the configuration in groups."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, the options that matter first before all others."""
        groups: dict[str, list[tuple[str, str]]] = {
            title: [] for title in (FIRST_TITLE, *GROUPS, "This command")
        }
        order = {name: n for n, name in enumerate(FIRST)}
        parameters = sorted(self.get_params(context), key=lambda p: order.get(p.name or "", 99))
        for parameter in parameters:
            if (record := parameter.get_help_record(context)) is None:
                continue
            own = parameter.name not in RunConfig.model_fields
            groups["This command" if own else shown_in(parameter.name or "")].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def completed(kind: str) -> Callable[[Any, Any, str], list[str]]:
    """Complete names of a list of `pyids.registry` in the shell, those of other packages, too."""

    def complete(context: Any, parameter: Any, incomplete: str) -> list[str]:
        from pyids import registry

        names: list[str] = getattr(registry, kind).names()
        return [name for name in names if name.startswith(incomplete)]

    return complete


def config_options(without: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """Give a command one option for every field of the configuration but the data.

    Parameters
    ----------
    without
        Fields that the command does not look at.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(FIELDS):
            field = RunConfig.model_fields[name]
            if name == "data" or name in without:
                continue
            flag = f"--{name.replace('_', '-')}"
            text = field.description or ""
            if name in REPEATED:
                option = click.option(flag, name, multiple=True, help=text)
            elif field.annotation is bool:
                option = click.option(flag, name, is_flag=True, default=None, help=text)
            else:
                if field.default is not None and not field.is_required():
                    text = f"{text} [default: {field.default}]"
                # These are parsed by the config, which knows their forms.
                kind = str if name in _PARSED else _option_type(field.annotation)
                names = completed(_LISTS[name]) if name in _LISTS else None
                option = click.option(
                    flag, name, type=kind, default=None, help=text, shell_complete=names
                )
            command = option(command)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(),
            help="YAML file of options; options on the command line win",
        )(command)

    return decorate


def _option_type(annotation: Any) -> Any:
    """Find the click type of a config field."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return click.Choice([str(choice) for choice in get_args(part)])
    for plain in (int, float):
        if annotation is plain or annotation == (plain | None):
            return plain
    return str
