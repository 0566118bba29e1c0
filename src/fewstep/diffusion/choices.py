"""What one chooses for a tuning, by names and numbers: frozen dataclasses that refuse what cannot be.

They are the flags of `fewstep tune`, and say so where something is wrong. Nothing heavy is imported
until one is resolved.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.checks import at_least, positive

if TYPE_CHECKING:
    from .cond import Cond
    from .denoiser import Denoiser
    from .lora import LoRA
    from .loss import Hop, Weight
    from .model import Model
    from .noise import Gap

RecipeName = Literal["any_step", "ect_demo", "ect_one_hour", "ect_cifar10", "ect_imagenet64"]
HopName = Literal["data", "euler", "heun", "addim", "addim-analytic"]
GapName = Literal["ect", "cosine", "karras", "full"]
WeightName = Literal["gap", "output"]
SamplerName = Literal["consistency", "heun", "ddim"]


@dataclass(frozen=True)
class Lessons:
    """What the student learns from."""

    data: str
    """an .npz, a folder or zip of images, a .parquet, a table, a hub data set, or `bundled` (Fashion-MNIST). `teacher`:
    the teacher makes the images; a pipeline makes latents of --prompts. A pipeline takes `teacher`, or a table of
    `fewstep encode`. `paths`: the student learns its teacher's whole sampling paths by heart, at the noise levels where
    it is sampled and nowhere else."""
    teacher: str | None = None
    """the diffusion checkpoint that makes hops, images and paths. By default it is the checkpoint itself. A run that
    starts from a student needs one."""
    prompts: Path | None = None
    """a text file with a prompt a line, which `--data teacher` asks a pipeline for in turn. A pipeline of classes takes
    their numbers; by default all classes."""
    guidance: float | None = None
    """scale of the classifier-free guidance of a conditional teacher, in its hops, images and paths. For a pipeline it is
    the pipeline's own guidance_scale."""
    null_label: int | None = None
    """the class that means "no class" to the network, for guidance; a pipeline knows what means nothing to it."""
    teacher_images: int | None = None
    """how many images `--data teacher` makes, 4000 unless given."""
    teacher_steps: int | None = None
    """steps of the pipeline's own scheduler that each of them takes; by default as many as the pipeline says."""
    paths: int | None = None
    """how many paths the teacher makes, for `--midtrain` and for `--data paths`, 4000 unless given."""
    mirror: bool = False
    """flip half of the images left to right."""
    dropped: float | None = None
    """share of examples that lose their prompt or class and get the one that means nothing. Guidance needs this to be
    learned."""

    call: tuple[str, ...] = ()
    """arguments for the pipelines of teacher and student where their defaults are not wanted, such as height=256."""

    def __post_init__(self) -> None:
        at_least(1, teacher_images=self.teacher_images, teacher_steps=self.teacher_steps, paths=self.paths)
        at_least(0, guidance=self.guidance, null_label=self.null_label, dropped=self.dropped)
        if self.dropped is not None and self.dropped >= 1:
            raise ValueError(f"--dropped is a share below 1, got {self.dropped:g}")
        given_for_images = given(teacher_images=self.teacher_images, prompts=self.prompts, teacher_steps=self.teacher_steps)
        for name in given_for_images if self.data != "teacher" else ():
            raise ValueError(f"--{name.replace('_', '-')} is for --data teacher; leave it out with other data")

    @property
    def are_paths(self) -> bool:
        """Whether the teacher's paths are all that is learned."""
        return self.data == "paths"

    def guided(self, teacher: Model, null: Cond | None = None) -> Denoiser:
        """The teacher, guided if --guidance is given. `null` is one row of conditions that stands for none.

        Raises:
            ValueError: nothing is known that stands for none, or the teacher cannot be guided.
        """
        import torch

        from .cond import labelled
        from .denoiser import Guided

        if self.guidance is None:
            return teacher.denoiser
        if teacher.pipeline is not None and null is None:
            raise ValueError("the data have no row that means nothing, which --guidance needs; encode them anew")
        if teacher.pipeline is not None and null is not None:
            return teacher.pipeline.guided(teacher.denoiser, self.guidance, null)
        if not teacher.denoiser.takes:
            raise ValueError("guidance needs a conditional checkpoint; leave it out for this one")
        if self.null_label is None:
            raise ValueError('guidance needs --null-label, the class that means "no class" to this network')
        return Guided(teacher.denoiser, self.guidance, labelled(torch.tensor([self.null_label])))


@dataclass(frozen=True)
class Loss:
    """What the student is asked for; what is left out is the recipe's."""

    segments: int | Literal["any"] = 1
    """network calls that the student is made for. 1 is a consistency model, more is a multistep one, `any` is one student
    for all numbers of calls."""
    hop: HopName | None = None
    """how the target is reached: along the data (consistency training), or by the teacher's ODE (distillation). addim
    puts back the spread that long hops lose. It measures the spread on the data; addim-analytic estimates it without
    them. By default data, and heun for a student of any number of calls."""
    gap: GapName | None = None
    """ect shrinks in stages, cosine and karras are grids whose steps grow, full is plain denoising."""
    q: float | None = None
    """the ect gap shrinks by 1/q a stage."""
    stages: int | None = None
    """number of stages of the ect gap."""
    grid: tuple[int, int] | None = None
    """first and last number of steps of the cosine or karras grid."""
    weight: WeightName | None = None
    """gap is (t − r)^−power, output is SNR + 1."""
    power: float | None = None
    """of the gap's weight: 1 is Easy Consistency Tuning's, 0 weighs all noise levels alike."""
    huber: float | None = None
    """constant of the pseudo-Huber distance; 0 is the norm itself."""
    margin: float | None = None
    """how far beyond a picture's limits a student draws what lies at them. So a haze that remains there is cut off. By
    default .1 for pictures and 0 for latents. A student of one segment has none: it is refused a margin, and cannot start
    from a student that has one. With `any`, only segments that end at noise level 0 have it."""

    def __post_init__(self) -> None:
        at_least(1, segments=self.segments if isinstance(self.segments, int) else None)
        at_least(0, margin=self.margin)
        kind = self.gap or "ect"  # the gap of every published recipe here
        if kind != "ect" and (self.q is not None or self.stages is not None):
            raise ValueError(f"--q and --stages belong to the ect gap; the {kind} gap does not take them")
        if kind in ("ect", "full") and self.grid is not None:
            raise ValueError(f"--grid belongs to the cosine and karras gaps; the {kind} gap does not take it")
        if self.weight == "output" and self.power is not None:
            raise ValueError("--power belongs to the gap's weight; --weight output does not take it")
        if self.margin and self.segments == 1:
            raise ValueError("--margin must be 0 for one segment, whose calls see what the last one drew")
        if self.is_any and self.gap == "full":
            raise ValueError("--gap full is plain denoising and knows no segments; leave --segments any out")

    @property
    def is_any(self) -> bool:
        """Whether one student takes any number of calls."""
        return self.segments == "any"

    @property
    def is_taught(self) -> bool:
        """Whether a teacher hops."""
        return (self.hop or ("heun" if self.is_any else "data")) != "data"

    @property
    def is_shaped(self) -> bool:
        """Whether the gap or the weight is another than the recipe's."""
        return any(given is not None for given in (self.gap, self.q, self.stages, self.grid, self.weight, self.power))

    def settings(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """What this changes in a recipe; the hop, the output's weight and the margin's default wait for the checkpoint."""
        from .loss import PseudoHuber
        from .two_times import GRIDS

        distance = None if self.huber is None else PseudoHuber(self.huber)
        changed = given(gap=self._gap(recipe["gap"]), weight=self._weight(), distance=distance, margin=self.margin)
        return changed | {"segments": recipe.get("segments", GRIDS) if self.is_any else self.segments}

    def fitted(self, student: Denoiser, teacher: Denoiser) -> dict[str, Any]:
        """What waited for the checkpoint; a teacher that hops is frozen."""
        from .loss import OutputScale

        weight = OutputScale(student.schedule.sigma_data) if self.weight == "output" else None
        margin = 0.0
        if student.space.limits is not None and self.segments != 1 and self.gap != "full":
            margin = 0.1  # not for latents, which have no limits, nor where a call sees what an earlier one drew
        fitted = given(weight=weight, margin=margin if self.margin is None else None)
        return fitted | {"hop": self._hop(teacher)}

    def _gap(self, ours: Gap) -> Gap:
        from .noise import CosineGap, ECTGap, FullGap, KarrasGap

        if self.gap == "full":
            return FullGap()
        if self.gap in ("cosine", "karras"):
            made = CosineGap if self.gap == "cosine" else KarrasGap
            return made(*self.grid) if self.grid else made()
        base = ours if isinstance(ours, ECTGap) else ECTGap()
        return dataclasses.replace(base, **given(q=self.q, stages=self.stages))

    def _weight(self) -> Weight | None:
        from .loss import InverseGap

        if self.weight == "output" or (self.weight is None and self.power is None):
            return None
        return InverseGap(1.0 if self.power is None else self.power)

    def _hop(self, teacher: Denoiser) -> Hop:
        from .hop import ADDIM, Euler, Heun
        from .loss import from_data

        if not self.is_taught:
            return from_data
        teacher = teacher.requires_grad_(False).eval()
        hops: dict[str, Hop] = {
            "euler": Euler(teacher), "heun": Heun(teacher), "addim": ADDIM(teacher),
            "addim-analytic": ADDIM(teacher, analytic=True),
        }  # fmt: skip
        return hops[self.hop or "heun"]


@dataclass(frozen=True)
class Training:
    """How long and how fast; what is left out is the recipe's."""

    recipe: RecipeName | None = None
    """the settings of the loss and of the training that are not given. By default ect_demo, and any_step for a student of
    any number of calls."""
    images: int | None = None
    """training images to see."""
    batch: int | None = None
    """images a step, over all processes."""
    rate: float | None = None
    """peak of the recipe's learning rate."""
    warmup: int | None = None
    """steps over which the rate rises."""
    average: tuple[float, ...] = ()
    """decay of the averaged weights, or several. The first makes `model`, each other one `model-DECAY` beside it. An
    average begins with the checkpoint's weights, and a share decay^steps of them remains: few images need a low decay."""
    dropout: float | None = None
    """probability in every dropout layer."""
    clip: float | None = None
    """norm at which the gradient is clipped."""
    seed: int = 0
    """of everything random."""
    midtrain: int = 0
    """images of path regression before the tuning. The student learns the ends of whole teacher paths from points on
    them."""
    scratch: bool = False
    """start from new weights in the checkpoint's architecture: consistency training without tuning."""
    lora: int | None = None
    """rank of a LoRA. The checkpoint stays as it is, and only low-rank changes of its layers train. The run's model is
    the adapter alone."""
    lora_targets: tuple[str, ...] = ()
    """ends of the names of the layers that the LoRA changes, such as `to_q`: by default the projections of attention, and
    the residual blocks of a UNet2DModel as well."""
    freeze: int = 0
    """how many of the network's first blocks do not train: a UNet's down blocks, a transformer's blocks."""

    def __post_init__(self) -> None:
        at_least(1, images=self.images, batch=self.batch)
        at_least(1, lora=self.lora)
        at_least(0, seed=self.seed, midtrain=self.midtrain, dropout=self.dropout, freeze=self.freeze)
        positive(clip=self.clip)
        if self.dropout is not None and self.dropout >= 1:
            raise ValueError(f"--dropout must be below 1, got {self.dropout:g}")
        if self.lora_targets and self.lora is None:
            raise ValueError("--lora-targets are the layers of a LoRA; give its rank as well, with --lora")
        if self.scratch and (self.lora is not None or self.freeze):
            raise ValueError("--lora and --freeze keep what the checkpoint knows; leave them out with --scratch")

    @property
    def adapter(self) -> LoRA | None:
        """The LoRA that was asked for."""
        from .lora import LoRA

        return None if self.lora is None else LoRA(self.lora, self.lora_targets)

    def settings(self, name: RecipeName) -> dict[str, Any]:
        """The recipe called `name`, changed as was asked: keyword arguments of `tune`."""
        from .optim import Dropout
        from .recipes import RECIPES, averages, rate_of

        recipe = RECIPES[name](**given(images=self.images))
        changed = given(
            batch=self.batch,
            rate=rate_of(recipe["rate"], self.rate, self.warmup),
            average=averages(self.average, recipe["average"], afresh=self.scratch and not self.midtrain),
            dropout=None if self.dropout is None else Dropout(self.dropout),
            max_grad_norm=self.clip,
        )
        return recipe | changed | {"seed": self.seed}

    @property
    def changing(self) -> dict[str, Any]:
        """What a run that is resumed may go on with that it did not begin with."""
        return given(rate=self.rate if self.warmup is None else self.warmup, max_grad_norm=self.clip)


@dataclass(frozen=True)
class Run:
    """Where and how it is computed."""

    out: Path
    """folder of the run."""
    precision: Literal["no", "bf16"] | None = None
    """no (float32) or bf16; by default bf16 where the hardware computes it."""
    accumulate: int = 1
    """micro-batches a step."""
    workers: int = 0
    """loader processes."""
    compile: bool = False
    """compile the network."""
    checkpointing: bool = False
    """compute the network's activations again for its gradient instead of keeping them: less memory, more time."""
    save_every: float = 120.0
    """seconds between saved states; Ctrl-C and SIGTERM save, too."""
    resume: bool = False
    """go on from the state saved in out, if there is one. More --images and another --rate, --warmup or --clip may be
    given."""

    def __post_init__(self) -> None:
        at_least(1, accumulate=self.accumulate)
        at_least(0, workers=self.workers, save_every=self.save_every)


@dataclass(frozen=True)
class Choices:
    """All of them together."""

    lessons: Lessons
    run: Run
    loss: Loss = Loss()
    training: Training = Training()

    def __post_init__(self) -> None:
        guidance, null_label = self.lessons.guidance, self.lessons.null_label
        if guidance is not None and not self.are_taught:
            raise ValueError(
                "guidance is the teacher's: use it with --hop euler, heun or addim, or --data teacher or paths"
            )
        if null_label is not None and guidance is None:
            raise ValueError("--null-label belongs to --guidance; give both or none")
        if self.loss.is_any and (self.lessons.are_paths or self.training.midtrain):
            raise ValueError(
                "a teacher's paths are cut for one number of segments: leave --midtrain and --data paths out of "
                "--segments any"
            )
        if self.training.recipe == "any_step" and not self.loss.is_any:
            raise ValueError("--recipe any_step is for a student of any number of calls; say --segments any as well")
        if self.lessons.teacher is not None and not self.are_taught:
            raise ValueError("no teacher is asked for anything here; leave --teacher out, or let it hop, as by --hop heun")
        if self.lessons.paths is not None and not (self.lessons.are_paths or self.training.midtrain):
            raise ValueError("--paths is for --midtrain and --data paths; leave it out without them")
        said = self.loss.is_shaped or self.loss.is_taught or self.training.midtrain or self.lessons.mirror
        if self.lessons.are_paths and said:
            raise ValueError("--data paths says what the loss is: leave --hop, --midtrain, --mirror, gap and weight out")

    @property
    def are_taught(self) -> bool:
        """Whether a teacher makes anything."""
        return self.loss.is_taught or self.lessons.data in ("teacher", "paths") or self.training.midtrain > 0

    @property
    def recipe_name(self) -> RecipeName:
        """Of the recipe that is changed."""
        return self.training.recipe or ("any_step" if self.loss.is_any else "ect_demo")

    def recipe(self) -> dict[str, Any]:
        """Keyword arguments of `tune`, as far as they are known without the checkpoint.

        Raises:
            ValueError: a number that cannot be.
        """
        recipe = self.training.settings(self.recipe_name)
        recipe |= self.loss.settings(recipe)
        batch, parts = recipe["batch"], self.run.accumulate
        if batch % parts:
            raise ValueError(f"a batch of {batch} does not split into --accumulate {parts}; use a multiple of {parts}")
        recipe |= given(dropped=self.lessons.dropped) | {"mirror": self.lessons.mirror}
        return recipe | {"workers": self.run.workers, "compile": self.run.compile}


def given(**settings: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in settings.items() if value is not None}
