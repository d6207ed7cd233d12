"""Hidden states times the head of a language model, as its own logits would be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pyids.errors import ModelError

if TYPE_CHECKING:
    import torch


# Keys and values of a beginning that rows share, one pair a layer, each (1, heads, P, head size).
Shared: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"


@dataclass(frozen=True)
class Head:
    """A causal language model taken apart: hidden states, then the LM head on chosen positions.

    Attributes
    ----------
    decoder
        The module that ends in the final hidden states.
    weight, bias
        The LM head, (V, H) and (V,) or None.
    softcap
        Logits become ``softcap * tanh(logits / softcap)``; None for most models.
    scale
        The factor that some models apply to the hidden states or to the logits.
    """

    decoder: torch.nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None
    scale: float

    @classmethod
    def of(cls, model: Any) -> Head:
        """Take a transformers or peft model apart; an adapter's layers stay in the decoder."""
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        head, config = causal.get_output_embeddings(), causal.config
        if head is None:
            raise ModelError(f"model {config.name_or_path!r}: it has no LM head")
        scale = getattr(config, "logit_scale", None) or 1.0
        if divisor := getattr(config, "logits_scaling", None):
            scale /= divisor
        return cls(
            causal.get_decoder(),
            head.weight,
            getattr(head, "bias", None),
            getattr(config, "final_logit_softcapping", None),
            float(scale),
        )

    def remember(self, input_ids: torch.Tensor) -> Shared | None:
        """Return the keys and values of P tokens (P,) with which many rows begin.

        None for models that keep something else of their past: sliding windows, recurrent states.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        past = self.decoder(input_ids=input_ids[None], use_cache=True).past_key_values
        layers: list[Any] = past.layers if isinstance(past, DynamicCache) else []
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        shared: Shared | None = None,
    ) -> torch.Tensor:
        """Return the final hidden states (B, T, H); padding may stand on either side.

        With ``shared``, the rows are continuations of what `remember` was given.
        """
        import torch
        from transformers.cache_utils import DynamicCache

        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        past = None
        if shared is not None:
            rows, length = len(input_ids), shared[0][0].shape[2]
            past = DynamicCache()
            for i, (keys, values) in enumerate(shared):
                past.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), i)
            positions = positions + length
            seen = attention_mask.new_ones(rows, length)
            attention_mask = torch.cat([seen, attention_mask], dim=1)
        states: torch.Tensor = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=past is not None,
        ).last_hidden_state
        return states * self.scale if self.scale != 1.0 else states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (T, V) of hidden states (T, H)."""
        import torch

        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits
