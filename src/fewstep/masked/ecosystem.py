"""Early commit in other libraries: DiffusionGemma of transformers and LLaDA2Pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers import BlockRefinementScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_block_refinement import BlockRefinementSchedulerOutput
from torch import Tensor, nn
from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaAdaptiveStopping

from ..core.device import widest
from ..core.private import canvas_stopping
from .early import PROPHET, statistic_of
from .schedule import Schedule, Stairs


class GapStopping(DiffusionGemmaAdaptiveStopping):  # type: ignore[misc]
    """Ends the denoising of a canvas once a statistic of its gaps between the two largest logits reaches τ(progress).

    transformers then keeps the most likely token everywhere. The logits here are divided by the temperature.

    Args:
        steps: `max_denoising_steps` of the generation.
        threshold: τ.
        statistic: of the canvas's gaps: mean, minimum or a quantile.

    Reference: Li et al. 2025, Diffusion Language Models Know the Answer Before Decoding.
    """

    def __init__(
        self, steps: int, threshold: Schedule = PROPHET, statistic: Literal["mean", "minimum"] | float = "mean"
    ) -> None:
        self.steps = steps
        self.threshold = threshold
        self.statistic = statistic
        self.index = 0

    def reset(self) -> None:
        """transformers calls it before each canvas."""
        self.index = 0

    def __call__(self, argmax_canvas: Tensor, logits: Tensor, **kwargs: Any) -> Tensor:
        gap = _gap(logits)
        progress = torch.full((len(gap),), self.index / self.steps, dtype=widest(gap.device), device=gap.device)
        self.index += 1
        return statistic_of(gap, torch.ones_like(gap, dtype=torch.bool), self.statistic) >= self.threshold(progress)


@contextmanager
def stopping(model: nn.Module, criterion: DiffusionGemmaAdaptiveStopping) -> Iterator[None]:
    """Makes `model.generate` of a DiffusionGemma stop by `criterion` inside the block; generate has no argument for it."""
    with canvas_stopping(model, criterion):
        yield


class EarlyCommitScheduler(BlockRefinementScheduler):  # type: ignore[misc]
    """The scheduler of LLaDA2Pipeline, which also commits the rest of a row's block once its answer is known.

    A block is known if a statistic of the gaps between the two largest logits at its undecided positions is ≥ τ(p), where p
    is the share of the block's steps done. A full block ends at once, where the stock loop makes one more call.

    Args:
        block_length, num_inference_steps, threshold, editing_threshold, minimal_topk: as for the stock scheduler.
        levels, at: τ, see `Stairs`; an infinite level never commits early.
        statistic: mean, minimum or a quantile.

    Reference: Li et al. 2025, Diffusion Language Models Know the Answer Before Decoding.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        block_length: int = 32,
        num_inference_steps: int = 32,
        threshold: float = 0.95,
        editing_threshold: float | None = None,
        minimal_topk: int = 1,
        levels: tuple[float, ...] = PROPHET.levels,
        at: tuple[float, ...] = PROPHET.at,
        statistic: str | float = "mean",
    ) -> None:
        super().__init__(block_length, num_inference_steps, threshold, editing_threshold, minimal_topk)
        self.early = Stairs(tuple(levels), tuple(at))
        self.full = False

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """The stock step, then early commit; see `BlockRefinementScheduler.step`."""
        if mask_token_id is None:
            raise ValueError("early commit needs a mask token; without one a block has no undecided positions")
        stock = super().step(model_output, timestep, sample, mask_token_id=mask_token_id, return_dict=True, **options)
        masked = sample == mask_token_id
        raw = model_output.float().index_fill(-1, torch.tensor([mask_token_id], device=sample.device), -torch.inf)
        progress = torch.full((len(sample),), float(timestep) / self.num_inference_steps, dtype=widest(sample.device))
        known = statistic_of(_gap(raw), masked, self.config.statistic) >= self.early(progress.to(sample.device))
        commit = masked & known[:, None]
        previous = torch.where(commit, stock.sampled_tokens, stock.prev_sample)
        self.full = not bool((previous == mask_token_id).any())
        output = BlockRefinementSchedulerOutput(
            **dict(stock.items()) | {"prev_sample": previous, "transfer_index": stock.transfer_index | commit}
        )
        return output if return_dict else output.to_tuple()

    def check_block_should_continue(self, **options: Any) -> bool:
        """The stock answer, but no further call for a full block without editing."""
        more: bool = super().check_block_should_continue(**options)
        return more and not (self.full and not options["editing_enabled"])


def _gap(logits: Tensor) -> Tensor:
    top = logits.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]
