"""The log-likelihood of chosen tokens under any causal language model, without all its logits.

A batch of T tokens has T x V logits, gigabytes for one long row; only response tokens need theirs.
So the model's own forward runs with a hook on its LM head: the head is handed one position, what
it would have been given is kept, and the head is applied afterwards, to what is needed and in
blocks. `pyids.models.take_apart` finds out, when a model is loaded, whether that gives the
model's own logits, and which of the three ways of `Way` is to be taken.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from pyids.errors import ModelError
from pyids.models.limits import Limits

if TYPE_CHECKING:
    import torch


# Keys and values of a beginning that rows share, one pair a layer, each (1, heads, P, head size).
Shared: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"


# How logits come about: hidden states times the head, blockwise; the model's own, at the chosen
# positions alone; or the model's own, at every position, row by row.
Way: TypeAlias = Literal["states", "chosen", "whole"]


# The largest block of logits that exists at a time.
LOGITS_BYTES = 128 << 20


@dataclass(frozen=True)
class Head:
    """A causal language model taken apart: hidden states, then the LM head on chosen positions.

    Attributes
    ----------
    causal
        The model whose forward is run; an adapter's layers stand inside it.
    limits
        Rows that it cannot take, and its name.
    linear
        The LM head, V x H, the input of which are the final hidden states; None where its forward
        calls no such module.
    way
        See `Way`.
    softcap
        Logits become ``softcap * tanh(logits / softcap)``; None for most models.
    scale
        The factor that some models apply to the logits.
    shares
        Whether the keys and values of a common beginning can be computed once.
    pads
        Whether rows of unlike length can be padded to one batch; else each is run alone.
    """

    causal: Any
    limits: Limits
    linear: Any
    way: Way = "whole"
    softcap: float | None = None
    scale: float = 1.0
    shares: bool = False
    pads: bool = True

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.limits.name

    @classmethod
    def of(cls, model: Any) -> Head:
        """Take a transformers or peft model apart, once; later calls find what was found.

        Raises
        ------
        ModelError
            It is no causal language model, or one that cannot be run on tokens alone.
        """
        from pyids.models.take_apart import output_embeddings, take_apart

        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        found = _FOUND.get(causal)
        # An adapter of another's making may have put itself around the head since.
        if found is None or found["head"] is not output_embeddings(causal):
            head = take_apart(causal)
            parts = {name: value for name, value in vars(head).items() if name != "causal"}
            found = _FOUND[causal] = {"head": output_embeddings(causal), "parts": parts}
        return cls(causal=causal, **found["parts"])

    # -- forward passes --

    def options(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of the model's forward for B rows (B, T).

        Where a row holds several one after the other (`pyids.models.batching.micro_batches`), their
        positions begin anew, and no mask is given: that is how transformers' attention tells them
        apart.
        """
        import torch

        accepted = accepts(self.causal)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if bool((attention_mask > 1).any()):
            if "position_ids" not in accepted:
                raise ModelError(
                    f"model {self.name!r}: it takes no rows that are packed: leave --packing out"
                )
            del given["attention_mask"]
            given["position_ids"] = _positions(attention_mask)
        elif bool((attention_mask[:, :1] == 0).any()):  # padding on the left
            if "position_ids" not in accepted:
                raise ModelError(
                    f"model {self.name!r}: it takes no padding on the left: use another"
                )
            given["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if hasattr(self.causal.config, "text_config"):
            # Some that see images, too, want to be told in training that there are none.
            for name in ("token_type_ids", "mm_token_type_ids"):
                if name in accepted:
                    given[name] = torch.zeros_like(input_ids)
        return {name: value for name, value in given.items() if name in accepted}

    def prefill(self, input_ids: torch.Tensor) -> Shared | None:
        """Return the keys and values of P tokens (P,) with which many rows begin.

        None for models that keep something else of their past: sliding windows, recurrent states.
        """
        return self.past(input_ids) if self.shares else None

    def past(self, input_ids: torch.Tensor) -> Shared | None:
        """Do what `prefill` does, for a model of which it is not known whether it is right."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        if not {"past_key_values", "use_cache"} <= accepts(self.causal):
            return None
        options = self.options(input_ids[None], input_ids[None] * 0 + 1)
        with self._stubbed():
            out = self.causal(**{**options, "use_cache": True})
        past = getattr(out, "past_key_values", None)
        layers: list[Any] = past.layers if type(past) is DynamicCache else []
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        if any(layer.keys is None for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, shared: Shared | None = None
    ) -> Any:
        """Run the model's own forward; with ``shared``, on continuations of `prefill`'s tokens."""
        import torch
        from transformers.cache_utils import DynamicCache

        options = self.options(input_ids, attention_mask)
        if shared is not None:
            rows, length = len(input_ids), shared[0][0].shape[2]
            past = DynamicCache()
            for i, (keys, values) in enumerate(shared):
                past.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), i)
            if "position_ids" in options:
                options["position_ids"] = options["position_ids"] + length
            seen = attention_mask.new_ones(rows, length)
            options["attention_mask"] = torch.cat([seen, attention_mask], dim=1)
            options.update(past_key_values=past, use_cache=True)
        return self.causal(**options)

    def hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, shared: Shared | None = None
    ) -> torch.Tensor:
        """Return what the head is given, (B, T, H), times `scale`."""
        with self._stubbed() as given:
            self.forward(input_ids, attention_mask, shared)
        (states,) = given
        return states * self.scale if self.scale != 1.0 else states

    @contextlib.contextmanager
    def _stubbed(
        self, instead: Callable[[torch.Tensor], torch.Tensor] = lambda x: x[:, :1]
    ) -> Iterator[list[torch.Tensor]]:
        """Hand the head something smaller; give the list of what it would have been handed."""
        given: list[torch.Tensor] = []

        def hook(module: Any, args: Any) -> Any:
            given.append(args[0])
            return (instead(args[0]), *args[1:])

        if self.linear is None:
            yield given
            return
        handle = self.linear.register_forward_pre_hook(hook)
        try:
            yield given
        finally:
            handle.remove()

    # -- logits --

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N, V) of what `hidden` returned, (N, H)."""
        import torch

        weight, bias = self.linear.weight, self.linear.bias
        logits = torch.nn.functional.linear(states, weight, bias).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def logits_at(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        chosen: torch.Tensor,
        shared: Shared | None = None,
    ) -> torch.Tensor:
        """Return float32 logits (N, V) at the N positions where ``chosen`` (B, T) is True."""
        if self.way == "states":
            return self.logits(self.hidden(input_ids, attention_mask, shared)[chosen])
        if self.way == "chosen":
            with self._stubbed(lambda states: states[chosen][None]) as given:
                own = self.forward(input_ids, attention_mask, shared).logits[0]
            if len(given) != 1:
                raise RuntimeError("the forward does not call the head once")
        else:
            own = self.forward(input_ids, attention_mask, shared).logits[chosen]
        logits: torch.Tensor = own.float()
        return logits

    def blocks(self, chosen: torch.Tensor) -> list[tuple[slice, torch.Tensor]]:
        """Cut the chosen positions (B, T) so that each part's logits have at most `LOGITS_BYTES`.

        Each part is a run of rows, and the positions that are chosen of them. The parts' positions
        one after the other are those of ``chosen``, in its order.
        """
        import torch

        most = max(1, LOGITS_BYTES // (4 * self.limits.vocabulary))
        if self.way == "whole":
            step = max(1, most // chosen.shape[1])
            return [(slice(i, i + step), chosen[i : i + step]) for i in range(0, len(chosen), step)]
        number = (chosen.flatten().cumsum(0) - 1).reshape(chosen.shape)
        parts = []
        for start in range(0, int(chosen.sum()), most):
            part = chosen & (number >= start) & (number < start + most)
            rows = torch.nonzero(part.any(1)).flatten()
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            parts.append((at, part[at]))
        return parts

    # -- losses --

    def nll(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        targets: torch.Tensor,
        shared: Shared | None = None,
    ) -> torch.Tensor:
        """Return the NLL of every token of ``targets`` (B, T) that is not -100, float32 (N,)."""
        import torch

        from pyids.ops import token_nll

        chosen = targets != -100
        if self.way == "states":
            states = self.hidden(input_ids, attention_mask, shared)[chosen]
            head = self.linear
            found: torch.Tensor = token_nll(
                states, head.weight, targets[chosen], bias=head.bias, softcap=self.softcap
            )
            return found
        parts = [
            torch.nn.functional.cross_entropy(
                self.logits_at(input_ids[at], attention_mask[at], part, shared),
                targets[at][part],
                reduction="none",
            )
            for at, part in self.blocks(chosen)
        ]
        return torch.cat(parts)

    def loss(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum of `nll`, with its gradient.

        Blocks of logits beyond the first keep none for the backward pass but compute them again.
        """
        import torch
        from torch.utils.checkpoint import checkpoint

        chosen = targets != -100
        if self.way == "states":
            states, wanted = self.hidden(input_ids, attention_mask)[chosen], targets[chosen]
            rows = max(1, LOGITS_BYTES // (4 * self.linear.weight.shape[0]))
            starts = range(0, len(states), rows)
            pieces = [(states[i : i + rows], wanted[i : i + rows]) for i in starts]
        else:
            parts = self.blocks(chosen)
            pieces = [(torch.arange(len(chosen))[at], part) for at, part in parts]

        def block(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            if self.way == "states":
                logits, wanted = self.logits(first), second
            else:
                at = slice(int(first[0]), int(first[-1]) + 1)
                logits = self.logits_at(input_ids[at], attention_mask[at], second)
                wanted = targets[at][second]
            return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")

        if len(pieces) == 1:
            return block(*pieces[0])
        total = torch.zeros((), dtype=torch.float32, device=input_ids.device)
        for piece in pieces:
            total = total + checkpoint(block, *piece, use_reentrant=False)
        return total


def _positions(numbers: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its row, of the rows' numbers (B, T)."""
    import torch

    places = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    begins = torch.ones_like(numbers, dtype=torch.bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return places - torch.where(begins, places, 0).cummax(1).values


def accepts(causal: Any) -> frozenset[str]:
    """Return the names of the arguments that a model's forward takes."""
    return frozenset(inspect.signature(type(causal).forward).parameters)


# Model -> what was found; without the model itself, which would never be let go of.
_FOUND: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def response_loss(model: torch.nn.Module, micro: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the NLLs of a micro-batch's response tokens, with its gradient."""
    return Head.of(model).loss(micro["input_ids"], micro["attention_mask"], micro["targets"])
