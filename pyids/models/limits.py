"""Rows that a model cannot take: tokens without an embedding, positions that were never learned."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pyids.errors import ModelError
from pyids.models.hf import one_line, quiet

if TYPE_CHECKING:
    from pyids.models.hub import ModelRef


class Limits(NamedTuple):
    """What a model's rows must keep to.

    Attributes
    ----------
    name
        What messages call the model.
    vocabulary
        Rows of the embedding: ids from here on do not exist.
    positions
        The longest row that learned positions allow; None where there is no such limit.
    """

    name: str
    vocabulary: int
    positions: int | None

    @classmethod
    def of(cls, causal: Any, name: str) -> Limits:
        """Read them off a model, or off its skeleton."""
        embedding = causal.get_input_embeddings()
        if getattr(embedding, "weight", None) is None:
            raise ModelError(f"model {name!r}: it has no token embedding: use another")
        return cls(name, len(embedding.weight), learned_positions(causal))

    def check(self, ids: Any) -> None:
        """Refuse a row of token ids, int64 (T,), that the model cannot take."""
        if len(ids) and (largest := int(ids.max())) >= self.vocabulary:
            raise ModelError(
                f"model {self.name!r}: token {largest} of its tokenizer is beyond its embedding of "
                f"{self.vocabulary} rows: take that token out of the data, or resize the embedding"
            )
        if self.positions is not None and len(ids) > self.positions:
            raise ModelError(
                f"model {self.name!r}: a row of {len(ids)} tokens is longer than the "
                f"{self.positions} positions that it has learned: set --max-length "
                f"{self.positions} or less"
            )


def learned_positions(causal: Any) -> int | None:
    """Return the longest row for which a model has a position, where it keeps a table of them.

    A table is a weight or buffer that is named for positions and has a row for each that the
    configuration allows (a few more where the first are reserved). Rotations and slopes that are
    computed have no end.
    """
    config = causal.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if not isinstance(limit, int):
        return None
    for name, table in [*causal.named_parameters(), *causal.named_buffers()]:
        named = re.search(r"pos|wpe", name.lower()) and not re.search("vision|visual|audio", name)
        if named and table.ndim >= 2 and limit <= table.shape[0] <= limit + 4:
            return limit
    return None


def limits_of(ref: ModelRef, folder: Any) -> Limits:
    """Read a model's limits off its configuration: a skeleton is built, no weight is read.

    Raises
    ------
    ModelError
        It is no configuration of a causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            skeleton = auto.from_config(config)
    except Exception as error:  # files of any content make any error; re-raised
        raise ModelError(
            f"model {ref.name!r}: cannot be loaded ({one_line(error)}): get its files "
            "again, or use another"
        ) from error
    return Limits.of(skeleton, ref.name)
