"""Ask and tell: the loop with a trainer of your own, here a tiny network over bytes.

`ask` gives everything selected so far, `probes` names unseen rows of every cluster, `tell` takes
their scores: higher means that more rows like this should come.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from small import make_pool

import pyids


def as_bytes(messages: list[dict[str, str]]) -> torch.Tensor:
    return torch.tensor(list("".join(m["content"] for m in messages).encode()))


def loss(model: torch.nn.Module, text: torch.Tensor) -> torch.Tensor:
    """Predict each byte from the one before it."""
    return torch.nn.functional.cross_entropy(model(text[:-1]), text[1:])


def train(model: torch.nn.Module, rows: list[list[dict[str, str]]]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for messages in rows:
        loss(model, as_bytes(messages)).backward()
        optimizer.step()
        optimizer.zero_grad()


def main(folder: Path) -> None:
    pool, vectors = make_pool(folder)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(256, 16), torch.nn.Linear(16, 256))
    with pyids.Selection.open(
        folder / "run", data=str(pool), embeddings_file=str(vectors), budget=30, clusters=4
    ) as selection:
        while (subset := selection.ask()) is not None:
            probes = selection.probes()
            unseen = [as_bytes(messages) for messages in selection.conversations(probes)]
            with torch.no_grad():
                before = [float(loss(model, text)) for text in unseen]
            train(model, subset["messages"])
            with torch.no_grad():
                after = [float(loss(model, text)) for text in unseen]
            taught = [b - a for b, a in zip(before, after, strict=True)]
            selection.tell(dict(zip(probes.tolist(), taught, strict=True)))
            print(f"{len(subset)} rows, loss of unseen ones {sum(after) / len(after):.2f}")
        print("written to", selection.finish())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
