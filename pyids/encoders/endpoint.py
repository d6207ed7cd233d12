"""Vectors from an OpenAI-compatible embeddings endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pyids._typing import Float32
from pyids.models.batching import Progress
from pyids.models.endpoint import Endpoint

if TYPE_CHECKING:
    pass


@dataclass
class EndpointEncoder:
    """An encoder (`pyids.encoders.Encoder`) behind an embeddings endpoint.

    Attributes
    ----------
    endpoint
        The server and the model.
    batch_rows
        Texts of one request.
    max_characters
        Longer texts are cut on their right: servers refuse what is above their limit.
    """

    endpoint: Endpoint
    batch_rows: int = 64
    max_characters: int = 16_000

    @property
    def name(self) -> str:
        """The model's name on the server."""
        return self.endpoint.model

    @property
    def revision(self) -> str:
        """Server and model: their version is not known."""
        return f"{self.endpoint.url}#{self.endpoint.model}"

    @cached_property
    def dim(self) -> int:
        """D, found out by one request."""
        return int(self.endpoint.embed(["dimension"]).shape[1])

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        """Return the vectors of N texts, (N, D) float32, in their order; progress counts texts."""
        cut = [text[: self.max_characters] or " " for text in texts]  # servers refuse empty texts
        batches = [cut[i : i + self.batch_rows] for i in range(0, len(cut), self.batch_rows)]
        if not batches:
            return np.empty((0, self.dim), np.float32)
        parts = []
        with ThreadPoolExecutor(self.endpoint.workers) as pool:
            for vectors in pool.map(self.endpoint.embed, batches):
                parts.append(vectors)
                if progress is not None:
                    progress(sum(map(len, parts)), len(texts))
        return np.concatenate(parts)
