"""Commands that let people look at a run, and tidy it: report, status, trackers, clean."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyids.cli.buckets import in_folder
from pyids.config import RunConfig
from pyids.store.remedies import STAGES
from pyids.terminal import printable

if TYPE_CHECKING:
    from pyids.callbacks import Callback

TRACKERS = ("wandb", "mlflow", "tensorboard", "trackio")


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `pyids run` the options of what is shown of it."""
    command = click.option(
        "--report/--no-report",
        "with_report",
        default=True,
        help="Write report.html and map.parquet in the end.  [default: report]",
    )(command)
    return click.option(
        "--report-to",
        multiple=True,
        type=click.Choice(TRACKERS),
        help="Log each round to this tracker, too; may be repeated.",
    )(command)


def trackers_of(names: tuple[str, ...], config: RunConfig) -> list[Callback]:
    """Start the trackers of these names."""
    if not names:
        return []
    from pyids.trackers import start

    return [start(name, config) for name in dict.fromkeys(names)]


def write(folder: Path) -> None:
    """Write the report of a run folder where it is looked for."""
    from pyids.report.page import write_report

    click.echo(write_report(folder))


def write_comparison(comparison: dict[str, Any], path: str) -> None:
    """Write a comparison of selections as a page."""
    from pyids.report.comparison import write_comparison as write_page

    click.echo(write_page(comparison, Path(path)))


@click.command()
@click.argument("folder", type=click.Path())
@in_folder
@click.option("--to", "path", type=click.Path(), help="page [default: report.html of the folder]")
@click.option(
    "--projection",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    help="how vectors become points; umap needs umap-learn  [default: pca]",
)
def report(folder: str, path: str | None, projection: Any) -> None:
    """Write the report of the run in FOLDER, one page that needs no network, and map.parquet."""
    from pyids.report.page import write_report

    click.echo(write_report(folder, path, projection=projection))


@click.command()
@click.argument("folder", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(folder: str, as_json: bool) -> None:
    """Say what of the run in FOLDER is done, what is next, when it may end, what it takes."""
    from pyids.report.status import status_of

    found = status_of(folder)
    click.echo(found.to_json() if as_json else found)


@click.command()
@click.argument("folder", type=click.Path())
@in_folder
@click.option(
    "--stage",
    type=click.Choice(list(STAGES)),
    help="whose files go; without it, say what each takes, and remove nothing",
)
@click.option(
    "--from",
    "from_round",
    type=click.IntRange(1),
    default=1,
    help="with rounds: the first that goes [default: 1]",
)
@click.option("--yes", is_flag=True, help="Do not ask first.")
def clean(folder: str, stage: str | None, from_round: int, yes: bool) -> None:
    """Remove what one stage has written to a run folder; the next command makes it again.

    At a terminal it asks first.
    """
    from pyids.report.status import size
    from pyids.store.clean import clean as clean_folder
    from pyids.store.clean import found

    held = found(Path(folder), STAGES if stage is None else [stage])
    if stage is None:
        for name, (n_bytes, files) in held.items():
            click.echo(printable(f"{name:16} {size(n_bytes):>10}  {', '.join(files)}"))
        click.echo("nothing was removed: name a stage with --stage")
        return
    if held and not yes and sys.stdin.isatty():
        n_bytes, files = held[stage]
        some = f" of round {from_round} and later" if stage == "rounds" and from_round > 1 else ""
        shown = f"remove {', '.join(files)}{some} ({size(n_bytes)} in all) from {folder}?"
        click.confirm(printable(shown), abort=True)
    removed = clean_folder(Path(folder), stage, from_round=from_round)
    click.echo(printable("\n".join(removed)) or "nothing to remove")
