"""The stock pipeline around a network: its own code encodes prompts into conditions and decodes latents."""

from __future__ import annotations

import gc
import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.seeds import generators, normal
from .cond import Cond, Tokens, padded
from .denoiser import Denoiser, Guided, takes_of
from .manner import COUNT, Manner, check_shared, learn
from .prediction import Prediction
from .recording import Call, answering, caught, leave_early, record, replaced, run, watched
from .schedule import PURE_NOISE, Rectified, Schedule
from .space import Latents, Pixels, Space, Video, Waveform

PROMPTS = ("", "a picture", "a picture of a small house beside a large tree at night")  # COUNT prompts of different lengths
AT_ONCE = 16  # prompts or pictures in one call
FPS = 16  # frames per second of videos, which no pipeline says
CODES = ("latent_dist", "latents", "latent")  # names in the output of diffusers' encoders
DIGIT = 4096  # base of the two digits for a place in a sample; float32 represents each exactly
ASKED = {"prompt", "class_labels"}  # required arguments that fewstep gives
OURS = {  # arguments that fewstep itself gives
    "prompt", "class_labels", "negative_prompt", "guidance_scale", "true_cfg_scale", "num_inference_steps", "latents",
    "generator", "batch_size", "num_images_per_prompt", "output_type", "return_dict",
}  # fmt: skip
Asked = Sequence[str | int]  # prompts, or the numbers of classes


class Pipeline:
    """A stock pipeline of diffusers around one network, opened from its folder when it is needed.

    No code here is for one family of pipelines. Their differences are read from a recorded run (`learn`).

    Args:
        source: folder of the pipeline.
        network: the denoising part.
        opened: opens the pipeline around a network.
        call: further arguments of its calls, such as height and width.
    """

    def __init__(
        self, source: Path, network: nn.Module, opened: Callable[[nn.Module], Any], call: Mapping[str, object]
    ) -> None:
        self.source = source
        self.network = network
        self.call = dict(call)
        self._open = opened
        self._stock: Any = None
        self._manner: Manner | None = None

    def __repr__(self) -> str:
        return f"Pipeline({str(self.source)!r})"

    def around(self, network: nn.Module) -> Pipeline:
        """The same pipeline around another network of the same architecture."""
        made = Pipeline(self.source, network, self._open, self.call)
        made._manner = self._manner
        return made

    @property
    def stock(self) -> Any:
        """The pipeline of diffusers, in memory until `let_go`."""
        if self._stock is None:
            self._stock = self._open(self.network)
            self._check()
        device = next(self.network.parameters()).device
        for part in self._stock.components.values():
            if isinstance(part, nn.Module) and part is not self.network:
                part.to(device)
        return self._stock

    def let_go(self) -> None:
        """Frees its encoders and decoders. They are loaded again when they are needed."""
        if self._stock is None:
            return
        parts = [part for part in self._stock.components.values() if isinstance(part, nn.Module)]
        kept = [weakref.ref(part) for part in parts if part is not self.network]
        del parts
        self._stock = None
        if any(part() is not None for part in kept):  # a reference cycle, which only the collector frees
            gc.collect()

    @property
    def manner(self) -> Manner:
        """How the pipeline calls its network."""
        if self._manner is None:
            rows: Asked = list(PROMPTS) if self.prompted else [0] * COUNT
            with _silence():  # warnings about these prompts would mislead
                self._manner = learn(self.stock, self.network, self._told(rows) | {"num_inference_steps": COUNT + 1})
        return self._manner

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.stock.__call__).parameters

    def accepts(self, name: str) -> bool:
        """Whether the pipeline has an argument of that name."""
        return name in self._parameters

    @property
    def prompted(self) -> bool:
        """Whether it takes prompts."""
        return "prompt" in self._parameters

    @property
    def by_class(self) -> bool:
        """Whether it takes classes."""
        return not self.prompted and "class_labels" in self._parameters

    def denoiser(self, schedule: Schedule, prediction: Prediction) -> Denoiser:
        """The pipeline's network as a denoiser, with the schedule as the pipeline sets up its scheduler.

        Raises:
            ValueError: the pipeline calls its network in a way that fewstep does not support.
        """
        manner = self.manner
        known = takes_of(self.network)
        takes = {
            name: known[name] if value.ndim == 1 and name in known else Tokens(tuple(value.shape[1:]))
            for name, value in manner.first.rows.items()
        }
        if isinstance(schedule, Rectified):
            schedule = _as_set_up(schedule, self.stock.scheduler.config, manner)
        return Denoiser(
            self.network, schedule, prediction, space=Latents(manner.shape), takes=takes, call=manner.calling,
            blank=manner.first.part(slice(0, 1)),
        )  # fmt: skip

    def examples(self, count: int) -> Asked:
        """`count` example prompts or classes."""
        if self.prompted:
            return [PROMPTS[1 + k % (COUNT - 1)] for k in range(count)]
        return list(range(count))

    @torch.no_grad()
    def conditions(self, prompts: Asked) -> tuple[Cond, Cond | None]:
        """The conditions of `prompts` (or classes), one row each, and the null condition, one row of the same shape.

        The null condition is None if the pipeline has no classifier-free guidance. Both are on the CPU.

        Raises:
            ValueError: an argument of the network depends on the prompts but has no row for each.
        """
        manner, found = self.manner, []
        for part in _parts(prompts):
            told = self._told(part) | dict(manner.off)
            found.append(manner.cond(record(self.stock, self.network, told)[0].calls[0]))
            check_shared(found[-1], manner.first)
        if manner.null is None:
            return Cond.stack(*padded(found)), None
        *conds, null = padded([*found, manner.null.part(slice(0, 1))])
        return Cond.stack(*conds), null

    @torch.no_grad()
    def latents(self, prompts: Asked, seeds: Sequence[int], *, steps: int, guidance: float | None = None) -> Tensor:
        """Samples that the pipeline draws for `prompts` with its own scheduler, x0 (B, *) float32 on the CPU.

        Args:
            prompts: prompts, classes, or anything of that length for an unconditional pipeline.
            seeds: seeds of the noise, one per sample; `sample` starts from the same noise.
            steps: steps of the scheduler.
            guidance: the pipeline's guidance scale; None is without guidance.

        Raises:
            ValueError: the pipeline has no guidance.
        """
        manner, made = self.manner, []
        for part, numbers in zip(_parts(prompts), _parts(seeds), strict=True):
            told = self._told(part) | manner.on(guidance, len(part)) | {"num_inference_steps": steps}
            made.append(run(self.stock, told | self._noise(numbers))[: len(part)].float().cpu())
        return torch.cat(made)

    def guided(self, denoiser: Denoiser, guidance: float, null: Cond) -> Denoiser:
        """`denoiser` with the pipeline's guidance at that scale, around a null condition of this pipeline."""
        guide = self.manner.guide
        assert guide is not None, "a pipeline with a null condition has guidance"
        return Guided(denoiser, guidance + guide.plus, null, keeps_norm=guide.keeps_norm)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Decodes samples x0 (B, *) as the pipeline does, channels first: uint8 pictures or videos, int16 sound."""
        return torch.cat([_shown(self._tail(part)) for part in x0.split(AT_ONCE)])

    def space_of(self, raw: Tensor) -> Space:
        """The space that saves samples of `decode`."""
        if raw.dtype == torch.int16:
            return Waveform(tuple(raw.shape[1:]), self._rate())  # type: ignore[arg-type]
        shape = tuple(raw.shape[1:])
        return Video(shape, FPS) if len(shape) == 4 else Pixels(shape)  # type: ignore[arg-type]

    def _rate(self) -> int:
        """The sampling rate of sound, from the configuration of a part of the pipeline."""
        for part in self.stock.components.values():
            config = getattr(part, "config", None)
            for name in ("sampling_rate", "sample_rate"):
                if isinstance(rate := getattr(config, name, None), int):
                    return rate
        raise ValueError(f"no part of {self.source} has a sampling_rate in its configuration; add it")

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape of one decoded sample, channels first."""
        return tuple(self.decode(torch.zeros(1, *self.manner.shape)).shape[1:])

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Encodes uint8 pictures (B, C, H, W) or videos (B, C, F, H, W) as samples x0 (B, *), float32 on the CPU.

        It takes the mean of the encoder's distribution and inverts the pipeline's steps between scheduler and decoder.

        Raises:
            ValueError: there is no encoder, or the pictures have another size than the pipeline makes.
        """
        coder = self._coder()
        place, scale, shift = self._layout(coder)
        x0 = torch.empty(len(pictures), place.numel())
        for rows in torch.arange(len(pictures)).split(AT_ONCE):
            shown = (pictures[rows].float() / 127.5 - 1).to(scale.device)
            code = coder.encode(shown.unsqueeze(2) if scale.ndim == 4 and shown.ndim == 4 else shown)
            latents = next(found for found in (_mean(code, name) for name in CODES) if found is not None)
            if latents.shape[1:] != scale.shape:
                have, want = ("x".join(map(str, shape)) for shape in (pictures.shape[1:], self.shown))
                raise ValueError(f"this pipeline encodes pictures of {want}, not {have}; resize them")
            x0[rows[:, None], place.flatten()] = ((latents.float() - shift) / scale).flatten(1).cpu()
        return x0.view(-1, *self.manner.shape)

    def _coder(self) -> Any:
        """The part that encodes and decodes pictures."""
        for part in self.stock.components.values():
            if isinstance(part, nn.Module) and hasattr(part, "encode") and hasattr(part, "decode"):
                return part
        raise ValueError(f"{self.source} has no part that encodes pictures; give pictures to a pipeline with an encoder")

    def _layout(self, coder: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The place in a sample of each value of the decoder's input, and its scale and shift.

        They are found by decoding four samples: zeros, ones, and two digits of each place.
        """
        total = math.prod(self.manner.shape)
        place = torch.arange(total)
        probes = torch.stack([torch.zeros(total), torch.ones(total), (place % DIGIT).float(), (place // DIGIT).float()])
        with caught(coder, "decode") as given:
            self._tail(probes.view(4, *self.manner.shape))
        shift, one, low, high = given[0].float()
        scale = one - shift
        found = (((low - shift) / scale).round() + DIGIT * ((high - shift) / scale).round()).long().cpu()
        if not torch.equal(found.flatten().sort().values, place):
            raise ValueError(
                f"a {type(self.stock).__name__} changes its latents in a way that fewstep cannot invert for encoding"
            )
        return found, scale, shift

    def _told(self, rows: Asked) -> dict[str, object]:
        """The arguments of the pipeline for these prompts or classes."""
        told: dict[str, object] = dict(self.call)
        if self.prompted:
            told["prompt"] = list(rows)  # a copy, because some pipelines change it
        elif self.by_class:
            told["class_labels"] = list(rows)
        elif "batch_size" in self._parameters:
            told["batch_size"] = len(rows)
        return told

    def _noise(self, seeds: Sequence[int]) -> dict[str, object]:
        """The arguments for the noise with which `sample` starts as well."""
        rngs = generators(seeds)
        if "latents" not in self._parameters:
            return {"generator": rngs}
        return {"latents": normal(rngs, self.manner.shape), "generator": rngs}

    def _tail(self, x0: Tensor) -> Any:
        """The pipeline's result if its scheduler ends at x0."""
        count, done = len(x0), 0
        x0 = x0.to(next(self.network.parameters()).device)

        def end(output: Tensor, time: object, state: Tensor) -> Tensor:
            nonlocal done
            done += 1
            return x0.to(state.dtype) if done == len(self.stock.scheduler.timesteps) else state

        asked: Asked = [""] * count if self.prompted else [0] * count
        told = self._told(asked) | dict(self.manner.off) | {"num_inference_steps": 2}
        if "output_type" in self._parameters:
            told["output_type"] = "np"
        with replaced(self.network, "forward", answering(self.network, _ignore)), watched(self.stock.scheduler, end):
            return leave_early(self.stock, told)

    def _check(self) -> None:
        """Raises ValueError if the pipeline needs other arguments, or does not take those of `call`."""
        unknown = sorted(self.call.keys() - self._parameters.keys())
        if unknown:
            raise ValueError(f"a {type(self._stock).__name__} takes no {', '.join(unknown)}; leave that out of --call")
        if ours := sorted(self.call.keys() & OURS):
            raise ValueError(f"fewstep itself sets {', '.join(ours)}; leave that out of --call")
        needed = {
            name
            for name, parameter in self._parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
        missing = sorted(needed - ASKED - self.call.keys())
        if missing:
            raise ValueError(
                f"a {type(self._stock).__name__} needs {', '.join(missing)} for each sample; fewstep tunes pipelines that "
                "take a prompt, a class or nothing"
            )


def _as_set_up(schedule: Rectified, config: Mapping[str, Any], manner: Manner) -> Rectified:
    """The schedule with pure noise as its start, shifted as by the pipeline for samples of this size."""
    shift, mu = schedule.shift, manner.mu
    if config.get("use_dynamic_shifting") and mu is not None:
        shift = math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
    return replace(schedule, shift=shift, sigma_max=PURE_NOISE, stretched=manner.sigmas is None)


@contextmanager
def _silence() -> Iterator[None]:
    """In this context diffusers logs only errors."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))


def _ignore(call: Call) -> None:
    """Ignores a call of the network."""


def _shown(result: Any) -> Tensor:
    """A pipeline's result as uint8 pictures or videos or int16 sound, channels first."""
    name, raw = next(iter(result.items()))
    values = torch.from_numpy(np.asarray(raw, dtype=np.float32))
    if name.startswith("audio"):
        sound = values if values.ndim == 3 else values.unsqueeze(1)
        return (sound.clamp(-1, 1) * 32767).round().to(torch.int16)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-1, 1)


def _mean(code: Any, name: str) -> Tensor | None:
    """The entry `name` of an encoder's output; the mean if it is a distribution. None if there is none."""
    found: Any = getattr(code, name, None)
    mean: Tensor | None = found.mode() if hasattr(found, "mode") and not isinstance(found, Tensor) else found
    return mean
