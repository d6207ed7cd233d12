"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyids.cli import look
from pyids.cli.buckets import check_results, destination, in_folder
from pyids.cli.options import GroupedCommand, completed, config_options
from pyids.config import ROUND_FIELDS, TRAINER_FIELDS, RunConfig, load_config, make_config
from pyids.errors import ConfigError, as_named
from pyids.terminal import answered, printable, say_error


class _Commands(click.Group):
    """A group whose commands answer a mendable mistake with one line and exit code 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
                say_error(f"{word}: a name that is no UTF-8: rename what it names")
                ctx.exit(2)
        return super().parse_args(ctx, args)

    def invoke(self, context: click.Context) -> Any:
        with answered(debug=context.params["debug"]):
            return super().invoke(context)


class _Printable(logging.Formatter):
    """Messages hold names of files and what servers said."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _say(text: object) -> None:
    click.echo(printable(text))


def _shows_progress(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command show how far its stages are."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        from pyids.bars import showing_progress

        with showing_progress():
            return command(*arguments, **options)

    return wrapped


def _gather(data: tuple[str, ...], config_file: str | None, options: dict[str, Any]) -> RunConfig:
    """Make the config: the file's options, then those of the command line."""
    merged = load_config(config_file) if config_file else {}
    merged.update(_given(options))
    if data:
        merged["data"] = list(data)
    return make_config(**merged)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value not in (None, ())}
    return {name: list(value) if type(value) is tuple else value for name, value in given.items()}


def _parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Read NAME=VALUE, the value as YAML would."""
    import yaml

    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write NAME=VALUE")
        try:
            parsed[name.replace("-", "_")] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError):
            raise ConfigError(
                f"--set {setting}: the value is not YAML: close its brackets, or quote it"
            ) from None
    return parsed


_dry_run = click.option(
    "--dry-run", is_flag=True, help="Check data, config, models and output, then stop."
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyids-select", prog_name="pyids")
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(quiet: bool, debug: bool) -> None:
    """Pick the small subset of an instruction data set that trains the better model."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    logger = logging.getLogger("pyids")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


@cli.command(cls=GroupedCommand)
@click.argument("data", nargs=-1)
@config_options()
@_dry_run
@look.run_options
@_shows_progress
def run(
    data: tuple[str, ...],
    config_file: str | None,
    dry_run: bool,
    with_report: bool,
    report_to: tuple[str, ...],
    **options: Any,
) -> None:
    """Select rows of DATA: files, folders, globs or a hub name.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from pyids.pipeline.inputs import working

    with working(_gather(data, config_file, options)) as config:
        if dry_run:
            from pyids.pipeline.preflight import plan

            _say(plan(config))
        else:
            from pyids.bars import RoundTable
            from pyids.selection import run as run_selection

            trackers = look.trackers_of(report_to, config)
            _say(run_selection(config, [RoundTable(), *trackers]))
            if with_report:
                look.write(config.output_path)


@cli.command(cls=GroupedCommand)
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--method",
    required=True,
    help="`pyids methods` lists them",
    shell_complete=completed("METHODS"),
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="option of the method")
@click.option("--to", "path", type=click.Path(), help="file [default: in the run folder]")
@config_options(ROUND_FIELDS)
@_dry_run
@_shows_progress
def select(
    data: tuple[str, ...],
    method: str,
    settings: tuple[str, ...],
    path: str | None,
    config_file: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Select rows of DATA, or of the run folder DATA, by one method, without rounds."""
    from pyids.methods import planned
    from pyids.methods import select as select_module
    from pyids.methods.select import changes_of, select_from_folder
    from pyids.pipeline.identity import saved_config
    from pyids.pipeline.inputs import working
    from pyids.store.place import inputs_of, is_run_folder

    parsed = _parse_settings(settings)
    named = [config_file] if config_file else []
    if len(data) == 1 and is_run_folder(Path(data[0])):
        in_file = load_config(config_file) if config_file else {}
        changes = {**changes_of(in_file), **_given(options)}
        if dry_run:
            _say(planned.plan_from_folder(data[0], method, parsed, **changes))
            return
        named += inputs_of(saved_config(Path(data[0])).model_dump()) + inputs_of(changes)
        with destination(path, inputs=named) as to:
            to.say(select_from_folder(data[0], method, to.path, settings=parsed, **changes))
    else:
        config = _gather(data, config_file, {**options, "rounds": 1})
        if dry_run:
            with working(config) as made:
                _say(planned.plan_selection(made, method, parsed))
            return
        named += inputs_of(config.model_dump())
        with destination(path, inputs=named) as to, working(config) as made:
            to.say(select_module.select(made, method, to.path, settings=parsed))


@cli.command(cls=GroupedCommand)
@click.argument("data", nargs=-1)
@click.option(
    "--on-workers", type=click.IntRange(1), default=8, help="hours on so many, too [default: 8]"
)
@config_options()
def plan(data: tuple[str, ...], on_workers: int, config_file: str | None, **options: Any) -> None:
    """Say what a run over DATA will take: rows, disk, memory, files, hours of each stage."""
    from pyids.pipeline.estimate import estimate

    config = _gather(data, config_file, options)
    _say(estimate(config).text((1, on_workers)))


@cli.command()
def methods() -> None:
    """List methods, weight updates, scorers, quality signals and encoders with their sources."""
    from pyids.registry import catalog

    for title, entries in catalog().items():
        click.echo(f"{title}:")
        for entry in entries:
            _say(f"  {entry.name:22} {entry.summary} [{entry.source}]")


@cli.command()
@click.argument("folder", type=click.Path())
@in_folder
@click.option(
    "--format", "form", default="jsonl", help="jsonl, parquet, indices or a trainer's name"
)
@click.option("--to", "path", type=click.Path(), help="file or folder [default: in the run folder]")
@click.option("--push-to-hub", "hub_name", help="then push it to this hub data set")
@_shows_progress
def export(folder: str, form: str, path: str | None, hub_name: str | None) -> None:
    """Write what the run in FOLDER has selected, in the form that a trainer reads."""
    from pyids.data.destination import own_place
    from pyids.data.hub import push_to_hub
    from pyids.pipeline.identity import saved_config
    from pyids.pipeline.prepare import reopen
    from pyids.selection import Selection
    from pyids.store.place import inputs_of
    from pyids.store.rounds import has_drawn

    run = Path(folder)
    config = saved_config(run)
    if not has_drawn(run):
        raise ConfigError(
            f"{folder}: no round has drawn rows yet: go on with `pyids run` or `pyids ask` (what "
            "`pyids select` has selected it has written)"
        )
    manifest = run / "manifest.json"
    with (
        destination(path, form, inputs_of(config.model_dump()), own_place(run, form)) as to,
        Selection(reopen(config, finish=True), config) as selection,
    ):
        ended = selection.round == config.rounds and not manifest.is_file()
        if ended and not selection.store.read_only:
            selection.finish()  # the last `tell` was stopped before this
        written = selection.export(to.path, format=form)
        if hub_name:
            _say(push_to_hub(written, hub_name))
        else:
            to.say(written)


@cli.command(cls=GroupedCommand)
@click.argument("folder", type=click.Path())
@click.option("--data", "data", multiple=True, help="start a selection from this; may be repeated")
@config_options(TRAINER_FIELDS | {"output_dir"})
@_dry_run
@_shows_progress
def ask(
    folder: str, data: tuple[str, ...], config_file: str | None, dry_run: bool, **options: Any
) -> None:
    """Draw the next rows for a trainer of your own; exit code 3 when all rounds are done.

    With --data and --budget a selection is started in FOLDER. Two paths are printed: everything
    selected so far, to train on, and the rows to score for `pyids tell`.
    """
    from pyids.selection import Selection

    given = data or config_file or _given(options)
    config = _gather(data, config_file, {**options, "output_dir": folder}) if given else None
    if dry_run:
        from pyids.pipeline.identity import saved_config
        from pyids.pipeline.preflight import plan

        _say(plan(config or saved_config(Path(folder)), trains=False))
        return
    with Selection.open(folder, config) as selection:
        if not selection.draw():
            click.echo("all rounds are done: `pyids export` writes the selection", err=True)
            sys.exit(3)
        train = selection.export()
        to_score = selection.export_probes()
    _say(f"{train}\n{to_score}")


@cli.command()
@click.argument("folder", type=click.Path())
@in_folder
@click.argument("scores", type=click.Path())
def tell(folder: str, scores: str) -> None:
    """Tell this round's scores: a JSON object {"_pyids_id": 7, "score": 0.5} a line of SCORES."""
    from pyids.pipeline.identity import saved_config
    from pyids.pipeline.prepare import reopen
    from pyids.scoring.told import read_scores
    from pyids.selection import Selection

    config = saved_config(Path(folder))
    with Selection(reopen(config, finish=True), config) as selection:
        given, n = read_scores(Path(scores)), selection.round
        if selection.rounds.were_told(given):
            following = "export" if n == config.rounds else "ask"
            said = f"round {n} was told these scores before; next: `pyids {following} {folder}`"
            click.echo(printable(as_named(said)), err=True)
        else:
            selection.tell(given)
        if selection.round == config.rounds and not (Path(folder) / "manifest.json").is_file():
            selection.finish()


def _writable(context: click.Context, option: click.Parameter, path: str | None) -> str | None:
    """Check that a file could be written, before the work that it is for."""
    if path is None:
        return None
    from pyids.store.place import check_writable_place

    check_writable_place(path)
    folder = Path(path).parent
    if Path(path).is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"{option.opts[0]} {path}: cannot be written there: name a file in a folder that exists"
        )
    return path


def _evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of an evaluation."""
    longest = RunConfig.model_fields["max_length"].default
    for decorate in reversed(
        [
            click.option("--format", default="auto", help="how a row holds its conversation"),
            click.option("--format-map", help="columns of prompt and response, as for `run`"),
            click.option("--limit", type=click.IntRange(1), help="only the first rows"),
            click.option(
                "--max-length",
                type=click.IntRange(16),
                default=longest,
                help=f"longest conversation in tokens [default: {longest}]",
            ),
            click.option("--device", default="auto", help="auto, cpu or cuda"),
            click.option(
                "--dtype",
                type=click.Choice(["float32", "bfloat16", "float16"]),
                default="float32",
                help="[default: float32]",
            ),
            click.option(
                "--json",
                "json_path",
                type=click.Path(),
                callback=_writable,
                help="write everything to this file, too",
            ),
        ]
    ):
        command = decorate(command)
    return command


def _write_result(result: Any, json_path: str | None) -> None:
    from pyids.store.files import write_json

    _say(result)
    if json_path is not None:
        write_json(Path(json_path), result.as_json())


@cli.command("eval")
@click.argument("model")
@click.argument("data", nargs=-1)
@click.option("--base-model", help="model under an adapter [default: where the adapter says]")
@click.option(
    "--group-by", metavar="COLUMN", help="group rows by it [default: source, if they have it]"
)
@click.option("--tasks", metavar="A,B", help="tasks of the LM evaluation harness (extra eval)")
@click.option("--include-path", type=click.Path(), help="folder of task definitions of your own")
@click.option(
    "--apply-chat-template", is_flag=True, help="put tasks' questions into the chat template"
)
@click.option(
    "--system",
    type=click.Choice(["error", "fold", "drop"]),
    default="error",
    help="a system turn that the chat template refuses [default: error]",
)
@_evaluation_options
@_shows_progress
def evaluate(
    model: str, data: tuple[str, ...], tasks: str | None, json_path: str | None, **options: Any
) -> None:
    """Evaluate MODEL on the held-out rows of DATA, and on tasks of the LM evaluation harness.

    MODEL is a folder, a hub name, an alias, an adapter, or a run folder: its last checkpoint.
    """
    from pyids.evaluation.evaluate import evaluate as evaluate_model

    read = (model, *data, options["base_model"], options["include_path"])
    check_results(read, json_path, None, {"groups", "tasks"})
    named = [task.strip() for task in (tasks or "").split(",") if task.strip()]
    _write_result(evaluate_model(model, data, tasks=named, **options), json_path)


@cli.command()
@click.argument("selections", nargs=-1)
@click.option(
    "--group-by", metavar="COLUMN", help="topics [default: clusters of the first, or source]"
)
@click.option("--quality", help="column or signal whose histogram is wanted, as for `run`")
@click.option("--data", multiple=True, help="held-out rows to evaluate each run's model on")
@click.option("--model", help="base model: counts tokens, and is evaluated too")
@click.option("--html", "html_path", type=click.Path(), callback=_writable, help="as a page, too")
@_evaluation_options
@_shows_progress
def compare(
    selections: tuple[str, ...], json_path: str | None, html_path: str | None, **options: Any
) -> None:
    """Compare SELECTIONS, run folders or exported files: overlap, topics, lengths, scores, loss."""
    from pyids.evaluation.compare import compare as compare_selections

    read = (*selections, *options["data"], options["model"])
    check_results(read, json_path, html_path, {"selections", "overlaps"})
    result = compare_selections(selections, **options)
    _write_result(result, json_path)
    if html_path is not None:
        look.write_comparison(result.as_json(), html_path)


@cli.command()
@click.argument("folder", type=click.Path())
@in_folder
@click.option("--replay", is_flag=True, help="derive every draw and weight again, and compare")
def verify(folder: str, replay: bool) -> None:
    """Hash every file of a run folder again and compare with its manifest and ledgers."""
    from pyids.store.manifest import verify as verify_folder

    problems = verify_folder(Path(folder))
    if replay and not problems:
        from pyids.pipeline.replay import replay_rounds

        problems = replay_rounds(Path(folder))
    _say("\n".join(problems) or f"{folder} is what its run left behind")
    sys.exit(1 if problems else 0)


cli.add_command(look.report)
cli.add_command(look.status)
cli.add_command(look.clean)
