"""Find out how a causal language model's logits come about, from a few tokens and its own forward.

Nothing here knows a family by its name. What is relied upon is tried: that a token sees nothing of
later ones (an encoder does), that the head's input times the head, times a factor, capped, are the
logits, that padding and a remembered beginning change nothing. What does not hold is not used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyids.errors import ModelError
from pyids.models.hf import one_line, quiet
from pyids.models.limits import Limits
from pyids.models.lm_head import Head, accepts

if TYPE_CHECKING:
    import torch


logger = logging.getLogger("pyids")


# Tokens that a model is tried with, and how many of them, at the end, are changed or left out.
_TOKENS, _LATER = 12, 4


# What a forward may raise where it cannot be run in the way that is tried.
_FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError),
    *(AssertionError, NotImplementedError),
)


# How far logits may be apart, in parts of the largest: rounding in float32, and in half precision.
_ROUNDING, _HALF_ROUNDING = 5e-4, 5e-2


def take_apart(causal: Any) -> Head:
    """Try a model, and return how its logits are to be had.

    Raises
    ------
    ModelError
        It gives no logits for every token, or a token's depend on later tokens.
    """
    import torch

    name = str(getattr(causal.config, "name_or_path", "") or causal.config.model_type)
    limits = Limits.of(causal, name)
    head = Head(causal, limits, output_embeddings(causal))
    training = causal.training
    causal.eval()
    try:
        with torch.no_grad(), quiet():
            ids = _tokens(causal.config, limits.vocabulary)
            ids = ids.to(causal.get_input_embeddings().weight.device)
            return _Trial(head, ids).result()
    finally:
        causal.train(training)


def keeps_apart(causal: Any) -> bool:
    """Whether rows that are packed into one sequence see nothing of each other.

    Not so where a state runs through the sequence, as in recurrent layers, or where the attention
    takes no note of positions.
    """
    import torch

    head = Head.of(causal)
    if "position_ids" not in accepts(head.causal):
        return False
    training = head.causal.training
    head.causal.eval()
    try:
        with torch.no_grad(), quiet():
            ids = _tokens(head.causal.config, head.limits.vocabulary)
            ids = ids.to(head.causal.get_input_embeddings().weight.device)
            trial = _Trial(head, ids)
            return trial.holds(trial.packed)
    finally:
        head.causal.train(training)


class _Trial:
    """A model, T tokens (1, T), and the model's own logits of them (T, V)."""

    def __init__(self, head: Head, ids: torch.Tensor) -> None:
        self.head, self.ids, self.ones = head, ids, ids * 0 + 1
        try:
            own = head.forward(ids, self.ones).logits
        except _FAILURES as error:
            raise ModelError(
                f"model {head.name!r}: it cannot be run on tokens alone as a causal language "
                f"model ({one_line(error)}): use another"
            ) from error
        if getattr(own, "ndim", 0) != 3 or own.shape[:2] != ids.shape:
            raise ModelError(
                f"model {head.name!r}: it gives no logits for every token: use another"
            )
        self.half = next(head.causal.parameters()).dtype.itemsize < 4
        self.own = own[0].float()

    def result(self) -> Head:
        self.check_causal()
        self.head = replace(self.head, pads=self.holds(self.padded))
        self.find_way()
        return replace(self.head, shares=self.holds(self.continued))

    # -- trials: logits that must be `own`, or its beginning --

    def padded(self) -> torch.Tensor:
        """Logits of the first tokens, in a batch beside all of them, with padding behind."""
        mask = self.ones.repeat(2, 1)
        mask[1, -_LATER:] = 0
        ids = self.ids.repeat(2, 1) * mask
        chosen = mask.bool()
        chosen[0] = False
        return self.head.logits_at(ids, mask, chosen)

    def continued(self) -> torch.Tensor | None:
        """Logits of all tokens, in two rows for which the first tokens are computed once."""
        import torch

        shared = self.head.past(self.ids[0, :_LATER])
        if shared is None:
            return None
        ids, mask = self.ids[:, _LATER:].repeat(2, 1), self.ones[:, _LATER:].repeat(2, 1)
        mask[0, -1] = 0  # as batches are: padded
        chosen = mask.bool()
        chosen[0] = False
        rest = self.head.logits_at(ids * mask, mask, chosen, shared)
        return torch.cat([self.own[:_LATER], rest])

    def packed(self) -> torch.Tensor:
        """Logits of all tokens, behind other rows in one sequence."""
        import torch

        before = self.ids.flip(1)
        ids = torch.cat([before, before[:, :_LATER], self.ids], dim=1)
        numbers = torch.cat([self.ones, self.ones[:, :_LATER] * 2, self.ones * 3], dim=1)
        return self.head.logits_at(ids, numbers, numbers == 3)

    def straight(self) -> torch.Tensor:
        """Logits of the first tokens of the second of two rows, in the way that the head says."""
        ids, mask = self.ids.repeat(2, 1), self.ones.repeat(2, 1)
        chosen = mask.bool()
        chosen[0] = False
        chosen[1, -_LATER:] = False
        return self.head.logits_at(ids, mask, chosen)

    def holds(self, trial: Callable[[], torch.Tensor | None]) -> bool:
        """Whether a trial's logits are the model's own; a forward that refuses says no."""
        try:
            found = trial()
        except _FAILURES:
            return False
        return found is not None and self.agrees(found)

    def agrees(self, found: torch.Tensor) -> bool:
        """Whether logits of the first tokens are the model's own, but for rounding.

        In half precision a rounding error may send a token to another expert: most tokens, not all,
        must agree.
        """
        own = self.own[: len(found)]
        if found.shape != own.shape:
            return False
        apart = (found.float() - own).abs().amax(-1) / own.abs().max().clamp(min=1.0)
        if self.half:
            return bool((apart < _HALF_ROUNDING).float().mean() > 0.5)
        return bool((apart < _ROUNDING).all())

    # -- what is found out --

    def check_causal(self) -> None:
        """Refuse a model in which a token sees later ones: its loss would be that of a riddle."""
        later = self.ids.clone()
        later[0, -_LATER:] = self.ids[0, :_LATER]
        early = self.head.forward(later, self.ones).logits[0, :-_LATER]
        if not self.agrees(early):
            raise ModelError(
                f"model {self.head.name!r}: its tokens see later tokens, as those of an encoder "
                f"({self.head.causal.config.model_type}) do: choose a causal language model"
            )

    def find_way(self) -> None:
        """Set the first way that gives the model's own logits; say so where it is a slow one."""
        from torch.nn import Linear

        linear = self.head.linear
        plain = isinstance(linear, Linear) and type(linear).forward is Linear.forward
        if plain and (post := self._after_head()) is not None:
            self.head = replace(self.head, way="states", scale=post[0], softcap=post[1])
            if self.holds(self.straight):
                return
            self.head = replace(self.head, scale=1.0, softcap=None)
        logger.warning(
            "model %s: its logits are not its hidden states times its head; its own are computed, "
            "a block at a time, which takes longer",
            self.head.name,
        )
        for way in ("chosen", "whole") if linear is not None else ("whole",):
            self.head = replace(self.head, way=way)
            if self.holds(self.straight):
                return
        raise ModelError(
            f"model {self.head.name!r}: it gives the same tokens other logits twice: use another"
        )

    def _after_head(self) -> tuple[float, float | None] | None:
        """Return the factor and the cap that turn what the head gives into logits, or None.

        The head is made to give numbers from -50 to 50, so that a cap shows whatever the weights;
        factors and caps that are tried are the configuration's.
        """
        import torch

        count = self.own.numel()
        given = torch.linspace(-50, 50, count, device=self.own.device)
        given = given[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
        calls = []

        def hook(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            calls.append(out.shape)
            return given.reshape(out.shape).to(out.dtype)

        handle = self.head.linear.register_forward_hook(hook)
        try:
            got = self.head.forward(self.ids, self.ones).logits.float().flatten()
        except _FAILURES:
            return None
        finally:
            handle.remove()
        if len(calls) != 1 or got.shape != given.shape:
            return None
        given = given.to(next(self.head.causal.parameters()).dtype).float()
        return _post(given, got, self.head, 2e-2 if self.half else 1e-5)


def _post(
    given: torch.Tensor, got: torch.Tensor, head: Head, rounding: float
) -> tuple[float, float | None] | None:
    import torch

    numbers = list(_numbers(head.causal.config))
    factors = [value for name, value in numbers if re.search("scal|mult", name) and value]
    caps = [float(value) for name, value in numbers if "cap" in name and value > 0]
    # A factor before a bias is not one after it.
    scales = [1.0, *factors, *(1 / value for value in factors)] if head.linear.bias is None else [1]
    for scale in map(float, dict.fromkeys(scales)):
        for cap in [None, *dict.fromkeys(caps)]:
            logits = scale * given
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            if bool(((logits - got).abs() <= rounding * (1 + logits.abs())).all()):
                return scale, cap
    return None


def output_embeddings(causal: Any) -> Any:
    """Return the LM head of a model; None where it has none that it knows of."""
    try:
        return causal.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _tokens(config: Any, vocabulary: int) -> torch.Tensor:
    """Return (1, T) ids from the middle of the vocabulary, none of which the configuration names.

    What it names stands for images, sounds, padding: such a token is not run as any other.
    """
    import torch

    named = {value for name, value in _numbers(config) if re.search("token|index", name)}
    step = max(1, vocabulary // 97)
    ids = [(vocabulary // 3 + i * step) % vocabulary for i in range(4 * _TOKENS)]
    free = [i for i in ids if i not in named] or ids
    return torch.tensor([(free * _TOKENS)[:_TOKENS]])


def _numbers(config: Any) -> Iterator[tuple[str, float]]:
    """Yield every number of a configuration and of those inside it, with its name."""
    for key, value in config.to_dict().items():
        inner = value if isinstance(value, dict) else {key: value}
        for name, number in inner.items():
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield str(name), number
