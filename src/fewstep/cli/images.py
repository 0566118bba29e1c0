"""The commands that use a model: sample, export, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from ..core.checks import at_least
from ..core.extras import needs
from ..core.words import counted
from ..diffusion.choices import SamplerName
from .after import after_exporting, after_sampling, say_next

if TYPE_CHECKING:
    from ..diffusion.model import Model


def sample(
    checkpoint: Positional[str],
    /,
    *,
    out: Path,
    n: int | None = None,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    middle: float | None = None,
    label: int | None = None,
    number: float | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
    guidance: float | None = None,
    call: tuple[str, ...] = (),
    strength: float | None = None,
    seed: int = 0,
    batch: int = 250,
) -> None:
    """Sample images, one PNG a seed, and a sheet of them; latents go to samples.npz.

    Several processes share the samples: start them with `torchrun --nproc-per-node 2 -m -- fewstep.cli sample …`, or with
    `accelerate launch` on GPUs. A command that was killed goes on when it is run again.

    Args:
        checkpoint: a run, a diffusers folder or a hub id, tuned or not.
        out: folder for the images.
        n: number of images; by default 16, or one for each prompt.
        steps: steps of the sampler; by default those the model was tuned for, else 2, or 18 for heun, which makes
            2·steps − 1 network calls.
        sampler: consistency for a tuned model, ddim for one of several segments, heun or ddim for a diffusion model. By
            default a tuned model is sampled as it was tuned, and a diffusion model by its own pipeline, or by heun where
            it has none.
        middle: noise level of the second of two steps, EDM students only.
        label: class of the images, for conditional models.
        number: condition of a network that takes a number in place of a class.
        prompt: text for a text-to-image pipeline, or any other that takes a text.
        prompts: a text file of prompts instead, one a line; the images take them in turn.
        guidance: scale of the classifier-free guidance of a diffusion pipeline; students have it built in.
        call: arguments for the pipeline in place of its defaults, such as height=256 width=256.
        strength: of a LoRA student: 0 is its base, 1 the student; by default 1.
        seed: of the first image; image k has seed + k and is the same at any batch size.
        batch: images at once.
    """
    from ..diffusion.using import sample_checkpoint

    sampled = sample_checkpoint(
        checkpoint, out, n=n, steps=steps, sampler=sampler, middle=middle, label=label, number=number, prompt=prompt,
        prompts=prompts, guidance=guidance, call=call, strength=strength, seed=seed, batch=batch,
    )  # fmt: skip
    print(f"{counted(sampled.count, 'sample')} in {out}, {counted(sampled.calls, 'network call')} each")
    after_sampling(checkpoint, sampled.model, prompts=prompts, guidance=guidance)


def export(
    checkpoint: Positional[str],
    /,
    *,
    out: Path,
    steps: tuple[int, ...] = (),
    middle: float | None = None,
    measured: Path | None = None,
    form: Literal["pipeline", "adapter", "comfyui"] | None = None,
    strength: float | None = None,
) -> None:
    """Export a tuned model as a folder that plain diffusers samples, verified in a fresh process.

    Args:
        checkpoint: a run or the model in it; the run's receipt says its segments and goes into the model card.
        out: the folder to write; with several numbers of steps it holds a folder for each.
        steps: network calls of the verification and of the card's example, by default those the model was tuned for. A
            student of any number of calls gives a pipeline for each number; one of several segments has its own number.
        middle: noise level of the second of two steps, EDM students only.
        measured: a measure.json whose scores go into the model card.
        form: pipeline fuses a LoRA student with its base; adapter is the LoRA alone, for `load_lora_weights` of diffusers;
            comfyui is the adapter and a second file with ComfyUI's names. By default adapter for a LoRA student that stock
            diffusers can load, else pipeline.
        strength: of a LoRA student: 0 is its base, 1 the student; by default 1.
    """
    from ..diffusion.using import export_checkpoint

    exported = export_checkpoint(
        checkpoint, out, steps=steps, middle=middle, measured=measured, form=form, strength=strength
    )
    for folder, written in exported.items():
        print(f"{folder} is verified: it differs from ours {written.agreement}")
    after_exporting(folder, written)


def import_(
    file: Positional[Path],
    /,
    *,
    out: Path,
    kind: Literal["diffusion", "consistency"] | None = None,
    size: int | None = None,
    head: int | None = None,
    part: str | None = None,
    consistency_time: bool = False,
) -> None:
    """Write a checkpoint file of EDM, EDM2, ECT, FastGen or openai/consistency_models as a folder that every command takes.

    No code in the file runs.

    Args:
        file: a .pkl, .pt, .pth or .safetensors.
        out: the folder to write.
        kind: what the network was trained for, if neither the file nor its name says so.
        size: side of the pictures in pixels, if the weights do not tell it.
        head: channels of an attention head; 64 in all published files.
        part: prefix of the weights' names, if the file holds several networks.
        consistency_time: make an ADM network of EDM take the time that stock pipelines give; do so before a tuning for
            export.
    """
    at_least(1, size=size, head=head)
    from ..diffusion.formats.foreign.importing import import_checkpoint

    model = import_checkpoint(file, out, kind=kind, size=size, head=head, part=part, consistency_time=consistency_time)
    shape = "x".join(map(str, model.denoiser.space.shape))
    print(f"{out} holds a {type(model.denoiser.network).__name__} for {shape}, sampled by {model.walk}")
    say_next("sample", out, "--out", "samples", *_example(model))


def _example(model: Model) -> tuple[str | int, ...]:
    """A condition that the network takes, as a flag."""
    if model.denoiser.classes is not None:
        return "--label", 0
    return ("--number", 0) if "number" in model.denoiser.takes else ()


def check(
    checkpoint: Positional[str],
    /,
    *,
    rank: int = 16,
    call: tuple[str, ...] = (),
    data: str | None = None,
    n: int = 64,
) -> None:
    """Say what a checkpoint is, how it is called, what can be done with it and how much memory a run would take.

    With data the network is also tested, a sentence each: whether f(x, 0) = x; whether all outputs are finite; whether it
    denoises better than a linear filter at every noise level; whether its schedule and weights match its files; and how
    long a run will take.
    Without data the network is not run. The memory is calculated for weights, gradients, optimizer and one average;
    activations come on top, and a teacher for hops or guidance takes the weights once more.

    Args:
        checkpoint: a run, a diffusers folder or a hub id.
        rank: of the LoRA in the table of memory.
        call: arguments for its pipeline in place of the defaults, such as height=256 width=256.
        data: real images like those of its training; for a pipeline a table of latents from `fewstep encode`.
        n: how many of the data to denoise.
    """
    at_least(1, rank=rank)
    at_least(2, n=n)
    from ..diffusion.checking import check_checkpoint

    checked = check_checkpoint(checkpoint, rank=rank, call=call, data=data, n=n)
    wide = max(len(name) for name, _ in checked.facts)
    for name, said in checked.facts:
        print(f"{name:{wide}}  {said}")
    wide = max(len(way.name) for way in checked.memory)
    unit, size_of = ("GiB", 2**30) if checked.memory[0].total >= 2**30 else ("MiB", 2**20)
    print(f"\n{unit:{wide}}  weights  gradients  optimizer  averages    all")
    for way in checked.memory:
        sizes = [f"{size / size_of:.2f}" for size in (way.weights, way.gradients, way.optimizer, way.averages, way.total)]
        print(f"{way.name:{wide}}  {sizes[0]:>7}  {sizes[1]:>9}  {sizes[2]:>9}  {sizes[3]:>8}  {sizes[4]:>5}")


def play(
    checkpoint: Positional[str], /, *, teacher: str | None = None, call: tuple[str, ...] = (), port: int = 7860
) -> None:
    """Serve a page to play with a model beside its teacher: steps, seeds, prompt or class, LoRA strength.

    Only this machine reaches the page, at 127.0.0.1. Under each side it says how many network calls and seconds a sample
    took, and which command draws the same. Needs the extra `play`: pip install 'fewstep[play]'.

    Args:
        checkpoint: a run, a diffusers folder or a hub id, tuned or not.
        teacher: the diffusion checkpoint that the model came from; it draws the same seeds, in as few calls and in its
            usual number.
        call: arguments for the pipeline in place of its defaults, such as height=256 width=256.
        port: of this machine; 0 takes a free one.
    """
    at_least(0, port=port)
    from ..diffusion.playing import Player
    from ..play import serve

    needs("play")
    serve(Player(checkpoint, teacher, call), port=port)


def push(folder: Positional[Path], repository: Positional[str], /, *, private: bool = False) -> None:
    """Upload an exported folder to the hub, as one commit.

    Args:
        folder: what `fewstep export` wrote.
        repository: owner/name; a missing one is created. Log in before with `hf auth login`.
        private: a new repository is visible to its owner only.
    """
    from ..core.hub import push as upload

    print(upload(folder, repository, private=private))


def demo(
    *, out: Path = Path("demo"), text: bool = False, images: int | None = None, n: int | None = None, seed: int = 0
) -> None:
    """Turn the bundled diffusion checkpoint into a few-step generator, with pictures and scores.

    Args:
        out: folder for everything it makes; an earlier demo there is replaced.
        text: use the bundled text-to-image pipeline: a LoRA for few calls, with the guidance built in.
        images: number of training images, by default 12,000, or 16,000 with --text; more improve the quality, fewer take
            less time.
        n: samples for each score, by default 1000, or 300 with --text.
        seed: of everything random.
    """
    at_least(1, images=images)
    at_least(20, n=n)
    at_least(0, seed=seed)
    if text:
        from ..demo_text import demo_text

        demo_text(out, images=images or 16_000, n=n or 300, seed=seed)
    else:
        from ..demo import demo as run

        run(out, images=images or 12_000, n=n or 1000, seed=seed)
