"""What a model's chat template and embedding make of the rows, before anything costs time."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pyids.chat.formats import BadRow, UnusableRow, to_messages, tools_of
from pyids.chat.render import Renderer, name_of_tool
from pyids.config import RunConfig
from pyids.data.readers import Reader
from pyids.data.sources import Source
from pyids.errors import DataError, ModelError

if TYPE_CHECKING:
    from pyids.chat.template import Conversation
    from pyids.models.limits import Limits


logger = logging.getLogger("pyids")


# Orders of turns that are tried: data have few, and each costs a rendering.
_MOST_SHAPES = 1000


class Located(NamedTuple):
    """A conversation, and where it stands: ``file line 7``."""

    place: str
    messages: Conversation


def check_conversations(config: RunConfig, sources: Sequence[Source]) -> None:
    """Give one row of every order of turns to the chat templates of the models that read them.

    Rows that cannot be read are passed over: the reading will say so. Where the model has learned
    positions, or fewer embeddings than its tokenizer has tokens, long rows and those with such a
    token are encoded as well.

    Raises
    ------
    DataError
        With file, row and remedy: the template refuses it, or the model cannot take it.
    """
    from pyids.models.hub import resolve_model, tokenizer_folder
    from pyids.models.limits import limits_of
    from pyids.models.load import load_tokenizer

    names = [config.round_model]
    signal, _, named = (config.quality or "").partition(":")
    if signal in ("perplexity", "ifd"):
        names.append(named or config.model)
    for name in dict.fromkeys(names):
        ref = replace(resolve_model(name), system=config.system)
        folder = tokenizer_folder(ref)
        tokenizer = load_tokenizer(replace(ref, path=folder))
        limits = limits_of(ref, folder)
        rows = islice(_rows(sources), config.limit)
        check_rows(rows, tokenizer, limits, max_length=config.max_length)


def _rows(sources: Sequence[Source]) -> Iterator[Located]:
    for source in sources:
        for line, _, record in Reader(source.path, source.kind, source.compression):
            if isinstance(record, dict):
                try:
                    messages = to_messages(record, source.format)
                except (BadRow, UnusableRow):
                    continue
                yield Located(f"{source.path} {source.unit} {line}", messages)


def check_rows(rows: Iterable[Located], tokenizer: Any, limits: Limits, *, max_length: int) -> None:
    """Do what `check_conversations` does, for rows that are read already."""
    from pyids.chat.template import encode

    beyond = _tokens_beyond(tokenizer, limits.vocabulary)
    short = limits.positions if (limits.positions or max_length) < max_length else None
    seen: set[str] = set()
    for place, messages in rows:
        shape = _shape(messages)
        if shape not in seen and len(seen) < _MOST_SHAPES:
            seen.add(shape)
            _check_shape(Renderer.of(tokenizer, messages), place, messages)
        text = str(messages) if beyond or short is not None else ""
        # A token has a byte or more, and a template's own are few beside a turn's keys.
        long = short is not None and 4 * len(text) > short
        if long or any(token in text for token in beyond):
            try:
                limits.check(encode(messages, tokenizer, max_length).input_ids)
            except ModelError as error:
                raise DataError(f"{place}: {error}") from error


def _tokens_beyond(tokenizer: Any, vocabulary: int) -> list[str]:
    """Return the tokens of a tokenizer that the embedding has no row for."""
    if len(tokenizer) <= vocabulary:
        return []
    return sorted(text for text, i in tokenizer.get_vocab().items() if i >= vocabulary)


def _shape(messages: Conversation) -> str:
    """Return the order of a conversation's turns; many of the same two count as a few."""
    marks = []
    for turn in messages:
        mark = str(turn["role"])[:1]
        mark += "c" if turn.get("tool_calls") else ""
        marks.append(mark + ("+" if turn.get("tool_calls") and turn.get("content") else ""))
    order = re.sub(r"(u a )(u a )(u a )+", "u a u a ", " ".join([*marks, ""]))
    return f"{order} {bool(tools_of(messages))}"


def _check_shape(render: Any, place: str, messages: Conversation) -> None:
    turns = render.turns_of(messages)
    try:
        text = render(turns)
    except ModelError as error:
        rest = [turn for turn in turns if turn["role"] not in ("system", "developer")]
        if len(rest) < len(turns) and not render.refuses(rest):
            remedy = (
                "--system fold puts the system turn before the first user turn, --system drop "
                "leaves it out"
            )
        else:
            remedy = (
                "mend the row's turns (one after the other of the same role become one), leave it "
                "out, or choose another --model"
            )
        raise DataError(f"{place}: {error}: {remedy}") from error
    for turn in turns:
        said = turn["content"].strip()
        if turn.get("tool_calls") and said and said not in text:
            logger.warning("%s: the chat template leaves out the text beside a tool call", place)
    names = [name_of_tool(tool) for tool in tools_of(messages)]
    if missing := [name for name in names if name and name not in text]:
        logger.warning("%s: the chat template does not show the tool %.60r", place, missing[0])
