"""Causal language models as readers: they read texts piece by piece and keep keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

POSITIONS = ("wpe", "embed_positions", "position_embeddings")  # names of tables of learned positions


class Reader:
    """A causal model and a batch of texts that it has read so far.

    Args:
        network: a causal language model of transformers, or a peft model around one.
        adapters: name of the adapter for each row, "__base__" for none; by default the network decides.
        known: the network has no tokens from this id on; None is the size of its table.
    """

    def __init__(self, network: nn.Module, adapters: Sequence[str] | None = None, known: int | None = None) -> None:
        inner = network.get_base_model() if is_peft(network) else network  # type: ignore[operator]
        self.takes = inspect.signature(inner.forward).parameters
        self.network = network
        self.adapters, self.known, self.room, self.length = adapters, known, learned_positions(network), 0
        self.cache: Any = None
        self.mask: Tensor | None = None  # (B, L), of all that was read; None without padding

    def read(self, ids: Tensor, mask: Tensor | None = None, *, keep: int = 1, more: bool = True) -> Tensor:
        """Reads the next tokens, and returns the logits of the tokens after them.

        Args:
            ids: the next tokens, (B, T).
            mask: 1 at tokens, 0 at padding, (B, T), in the first call only; by default there is no padding.
            keep: number of last positions to return logits for, at most T.
            more: whether more tokens are read later; if not, no keys and values are kept.

        Returns:
            Logits, (B, keep, V), after the model's own soft-capping or scaling.

        Raises:
            ValueError: a token is unknown to the network, or the text is longer than its learned positions.
        """
        ids = ids.to(next(self.network.parameters()).device)
        self.length += ids.shape[1]
        if self.room is not None and self.length > self.room:
            raise ValueError(
                f"this {type(self.network).__name__} has learned {self.room} positions, and the text has more tokens; "
                "shorten the prompt, or generate fewer"
            )
        if self.known is not None and self.cache is None:  # generated tokens are always known
            ids = self._known(ids, mask)
        if self.cache is None:  # a mask that hides nothing would only cost time
            self.mask = None if mask is None or bool(mask.all()) else mask.to(ids)
        else:
            assert mask is None, "padding comes before a text"
            self.mask = None if self.mask is None else torch.cat([self.mask, torch.ones_like(ids)], 1)
        options: dict[str, Any] = {"past_key_values": self.cache, "use_cache": more}
        if self.mask is not None:
            options["attention_mask"] = self.mask
            if "position_ids" in self.takes:  # positions count from a text's first token, not from its padding
                options["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self.takes:
            options["logits_to_keep"] = keep
        if self.adapters is not None:
            options["adapter_names"] = list(self.adapters)
        output = self.network(ids, **options)
        self.cache = getattr(output, "past_key_values", None)
        if more and self.cache is None:
            raise ValueError(f"{type(self.network).__name__} returns no keys and values; take a model with a cache")
        logits: Tensor = output.logits[:, -keep:]
        return logits

    def _known(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The ids with 0 at padding. Raises ValueError if a token is unknown to the small models."""
        found = ids if mask is None else ids.masked_fill(mask.to(ids.device) == 0, 0)
        assert self.known is not None, "there is a limit"
        if bool((found >= self.known).any()):
            raise ValueError(
                f"the text holds token {int(found.max())}, which is none of the small models' {self.known}; "
                "leave it out of the prompt"
            )
        return found

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on with the text of row rows[i], rows (B,)."""
        self.cache.reorder_cache(rows)
        if self.mask is not None:
            self.mask = self.mask[rows.to(self.mask.device)]


class Pair:
    """An expert and an antiexpert that read the same continuations, each after its own prompt.

    Two models read one after the other. One peft model reads both in one batch: the first half of the rows through the
    adapter, the second half without.

    Args:
        expert: the tuned model, or a peft model if `antiexpert` is None.
        antiexpert: the untuned model.
        known: the models have no tokens from this id on; None is the size of their tables.
    """

    def __init__(self, expert: nn.Module, antiexpert: nn.Module | None, known: int | None = None) -> None:
        for name, model in (("expert", expert), ("antiexpert", antiexpert)):
            if model is not None and model.training:
                raise ValueError(
                    f"the {name} is in training mode, where dropout changes its logits; call {name}.eval() first"
                )
        self.models, self.known = (expert, antiexpert), known
        self.readers: list[Reader] = []

    def read(
        self,
        own: Tensor,
        own_mask: Tensor | None,
        plain: Tensor,
        plain_mask: Tensor | None,
        *,
        keep: int = 1,
        more: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Logits of both, (B, keep, V) each, after the expert has read `own` (B, T) and the antiexpert `plain` (B, S)."""
        expert, antiexpert = self.models
        if antiexpert is not None:
            self.readers = self.readers or [Reader(expert, None, self.known), Reader(antiexpert, None, self.known)]
            up, down = self.readers
            return up.read(own, own_mask, keep=keep, more=more), down.read(plain, plain_mask, keep=keep, more=more)
        if not self.readers:
            adapters = [adapter_of(expert)] * len(own) + ["__base__"] * len(own)
            self.readers = [Reader(expert, adapters, self.known)]
        both, both_mask = stack_left(own, own_mask, plain, plain_mask)
        logits = self.readers[0].read(both, both_mask, keep=keep, more=more)
        return logits[: len(own)], logits[len(own) :]

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on with the text of row rows[i], rows (B,)."""
        if self.models[1] is None:
            rows = torch.cat([rows, rows + len(rows)])
        for reader in self.readers:
            reader.reorder(rows)


def stack_left(a: Tensor, a_mask: Tensor | None, b: Tensor, b_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows of `a` (B, T) above rows of `b` (B, S), the shorter padded on the left, and their mask; None without padding."""
    if a.shape == b.shape and a_mask is None and b_mask is None:
        return torch.cat([a, b]), None
    width = max(a.shape[1], b.shape[1])
    masks = [torch.ones_like(ids) if mask is None else mask.to(ids) for ids, mask in ((a, a_mask), (b, b_mask))]
    ids, mask = (
        torch.cat([nn.functional.pad(rows, (width - rows.shape[1], 0)) for rows in pair]) for pair in ((a, b), masks)
    )
    return ids, mask


def learned_positions(network: nn.Module) -> int | None:
    """Number of learned positions of a network, such as GPT-2 or OPT; None if positions are computed."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None


def is_peft(model: nn.Module) -> bool:
    """Whether `model` is a peft model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def adapter_of(model: nn.Module) -> str:
    """The name of a peft model's one active adapter. Raises ValueError if rows with and without it cannot share a batch."""
    if not is_peft(model):
        raise ValueError(
            "without an antiexpert the expert must be a peft model; give an antiexpert, or an expert with a LoRA adapter"
        )
    active = list(model.active_adapters)  # type: ignore[arg-type]
    if len(active) != 1:
        raise ValueError(f"one adapter must be active in the expert, not {active}; choose it with set_adapter")
    config: Any = model.peft_config[active[0]]  # type: ignore[index]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA" or config.use_dora or config.bias != "none":
        raise ValueError(
            "an adapter that shares its batch with the plain weights must be LoRA without DoRA and with bias 'none'; "
            "merge it (merge_and_unload) and give the expert and the antiexpert as two models"
        )
    return str(active[0])
