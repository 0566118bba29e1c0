"""The settings of a tuning: frozen dataclasses whose fields are the flags of `fewstep tune`.

They check their values, and their errors name the flags. Heavy packages are imported only when a setting is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.checks import at_least, given, positive
from .objective import Loss

if TYPE_CHECKING:
    from .cond import Cond
    from .denoiser import Denoiser
    from .lora import LoRA
    from .model import Model

RecipeName = Literal["any_step", "ect_demo", "ect_one_hour", "ect_cifar10", "ect_imagenet64"]
SamplerName = Literal["consistency", "heun", "ddim"]


@dataclass(frozen=True)
class Lessons:
    """What the student learns from."""

    data: str
    """an .npz file, a folder or zip of images, a .parquet file, a table, a hub data set, or `bundled` (Fashion-MNIST).
    With `teacher` the teacher makes the images; a pipeline makes latents from --prompts. Pipelines take only `teacher` and
    tables of `fewstep encode`. With `paths` the student learns the teacher's sampling paths, only at the noise levels at
    which it is sampled."""
    teacher: str | None = None
    """the diffusion model that makes hops, images and paths; by default the checkpoint. Give it if the checkpoint is a
    student."""
    prompts: Path | None = None
    """a text file with one prompt per line, which `--data teacher` uses in turn. For a pipeline of classes the lines are
    class numbers; by default all classes."""
    guidance: float | None = None
    """scale of the classifier-free guidance of the teacher, in its hops, images and paths; a pipeline's
    guidance_scale."""
    null_label: int | None = None
    """the class that means "no class" to the network. --guidance needs it, except for pipelines."""
    teacher_images: int | None = None
    """number of images that `--data teacher` makes, 4000 by default."""
    teacher_steps: int | None = None
    """steps of the pipeline's scheduler for each of these images; by default the pipeline's own number."""
    paths: int | None = None
    """number of paths that the teacher makes for `--midtrain` and `--data paths`, 4000 by default."""
    mirror: bool = False
    """flip half of the images left to right."""
    dropped: float | None = None
    """share of training examples, below 1, whose prompt or class is replaced by the empty one. Classifier-free guidance of
    the student needs this."""

    call: tuple[str, ...] = ()
    """arguments for the calls of the teacher's and the student's pipeline, such as height=256."""

    def __post_init__(self) -> None:
        at_least(1, teacher_images=self.teacher_images, teacher_steps=self.teacher_steps, paths=self.paths)
        at_least(0, guidance=self.guidance, null_label=self.null_label, dropped=self.dropped)
        if self.dropped is not None and self.dropped >= 1:
            raise ValueError(f"--dropped must be below 1, got {self.dropped:g}")
        given_for_images = given(teacher_images=self.teacher_images, prompts=self.prompts, teacher_steps=self.teacher_steps)
        for name in given_for_images if self.data != "teacher" else ():
            raise ValueError(f"--{name.replace('_', '-')} is for --data teacher; leave it out with other data")

    @property
    def are_paths(self) -> bool:
        """Whether the data are the teacher's paths."""
        return self.data == "paths"

    def guided(self, teacher: Model, null: Cond | None = None) -> Denoiser:
        """The teacher's denoiser, with classifier-free guidance if --guidance is given.

        Args:
            teacher: the diffusion model.
            null: the null condition of a pipeline, one row.

        Raises:
            ValueError: the null condition is not known, or the teacher cannot be guided.
        """
        import torch

        from .cond import labelled
        from .denoiser import Guided

        if self.guidance is None:
            return teacher.denoiser
        if teacher.pipeline is not None and null is None:
            raise ValueError("--guidance needs the empty prompt in the data, and these data lack it; encode them again")
        if teacher.pipeline is not None and null is not None:
            return teacher.pipeline.guided(teacher.denoiser, self.guidance, null)
        if not teacher.denoiser.takes:
            raise ValueError("--guidance needs a conditional checkpoint; leave it out for this one")
        if self.null_label is None:
            raise ValueError('--guidance needs --null-label, the class that means "no class" to this network')
        return Guided(teacher.denoiser, self.guidance, labelled(torch.tensor([self.null_label])))


@dataclass(frozen=True)
class Training:
    """How long and how fast to train. Settings that are left out come from the recipe."""

    recipe: RecipeName | None = None
    """named set of values for all settings that are not given; by default ect_demo, and any_step with `--segments any`."""
    images: int | None = None
    """number of training images."""
    batch: int | None = None
    """images per step, over all processes."""
    rate: float | None = None
    """peak learning rate."""
    warmup: int | None = None
    """steps over which the learning rate rises to its peak."""
    average: tuple[float, ...] = ()
    """one or more decays of the averaged weights. The first makes `model`, each other one `model-DECAY` beside it. A share
    decay^steps of the checkpoint's weights remains in the average, so short runs need a low decay."""
    dropout: float | None = None
    """probability in every dropout layer."""
    clip: float | None = None
    """largest norm of the gradient; a larger gradient is scaled down to it."""
    seed: int = 0
    """seed of everything random."""
    midtrain: int = 0
    """number of images of path regression before the tuning: the student learns the end of a teacher's sampling path from
    the points on it."""
    scratch: bool = False
    """start from new random weights in the checkpoint's architecture: consistency training from scratch."""
    lora: int | None = None
    """rank of a LoRA. Only the adapter trains, and the run's model is the adapter alone."""
    lora_targets: tuple[str, ...] = ()
    """ends of the names of the layers that the LoRA changes, such as `to_q`; by default the attention projections, and in
    a UNet2DModel the residual blocks too."""
    freeze: int = 0
    """number of the network's first blocks that do not train: down blocks of a UNet, blocks of a transformer."""

    def __post_init__(self) -> None:
        at_least(1, images=self.images, batch=self.batch)
        at_least(1, lora=self.lora)
        at_least(0, seed=self.seed, midtrain=self.midtrain, dropout=self.dropout, freeze=self.freeze)
        positive(clip=self.clip)
        if self.dropout is not None and self.dropout >= 1:
            raise ValueError(f"--dropout must be below 1, got {self.dropout:g}")
        if self.lora_targets and self.lora is None:
            raise ValueError("--lora-targets needs the rank of the LoRA; add --lora")
        if self.scratch and (self.lora is not None or self.freeze):
            raise ValueError("--scratch replaces the weights that --lora and --freeze would keep; leave them out")

    @property
    def adapter(self) -> LoRA | None:
        """The LoRA, or None."""
        from .lora import LoRA

        return None if self.lora is None else LoRA(self.lora, self.lora_targets)

    def settings(self, name: RecipeName) -> dict[str, Any]:
        """Keyword arguments of `tune`: the recipe called `name`, changed by these settings."""
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
        """The settings that may change when a run is resumed."""
        return given(rate=self.rate if self.warmup is None else self.warmup, max_grad_norm=self.clip)


@dataclass(frozen=True)
class Run:
    """Where the results go, and how they are computed."""

    out: Path
    """folder of the run."""
    precision: Literal["no", "bf16"] | None = None
    """no (float32) or bf16; by default bf16 where the hardware supports it."""
    accumulate: int = 1
    """micro-batches per step."""
    workers: int = 0
    """worker processes of the data loader."""
    compile: bool = False
    """compile the network with torch.compile."""
    checkpointing: bool = False
    """recompute activations in the backward pass instead of keeping them: less memory, more time."""
    save_every: float = 120.0
    """seconds between saved states; Ctrl-C and SIGTERM save too."""
    resume: bool = False
    """continue from the state saved in out, if there is one. --images may be larger than before, and --rate, --warmup and
    --clip may be different."""

    def __post_init__(self) -> None:
        at_least(1, accumulate=self.accumulate)
        at_least(0, workers=self.workers, save_every=self.save_every)


@dataclass(frozen=True)
class Choices:
    """All settings of a tuning, checked against each other."""

    lessons: Lessons
    run: Run
    loss: Loss = Loss()
    training: Training = Training()

    def __post_init__(self) -> None:
        guidance, null_label = self.lessons.guidance, self.lessons.null_label
        if guidance is not None and not self.are_taught:
            raise ValueError("--guidance needs a teacher; add --hop euler, heun or addim, or --data teacher or paths")
        if null_label is not None and guidance is None:
            raise ValueError("--null-label belongs to --guidance; give both or none")
        if self.loss.is_any and (self.lessons.are_paths or self.training.midtrain):
            raise ValueError(
                "--segments any cannot learn from paths, which are cut for one number of segments; leave --midtrain and "
                "--data paths out"
            )
        if self.training.recipe == "any_step" and not self.loss.is_any:
            raise ValueError("--recipe any_step trains a student of any number of calls; add --segments any")
        if self.lessons.teacher is not None and not self.are_taught:
            raise ValueError("no teacher is used here; leave --teacher out, or add --hop heun")
        if self.lessons.paths is not None and not (self.lessons.are_paths or self.training.midtrain):
            raise ValueError("--paths is for --midtrain and --data paths; leave it out without them")
        said = self.loss.is_shaped or self.loss.is_taught or self.training.midtrain or self.lessons.mirror
        if self.lessons.are_paths and said:
            raise ValueError("--data paths fixes the loss; leave --hop, --midtrain, --mirror, gap and weight out")

    @property
    def are_taught(self) -> bool:
        """Whether a teacher makes hops, images or paths."""
        return self.loss.is_taught or self.lessons.data in ("teacher", "paths") or self.training.midtrain > 0

    @property
    def recipe_name(self) -> RecipeName:
        """Name of the recipe."""
        return self.training.recipe or ("any_step" if self.loss.is_any else "ect_demo")

    def recipe(self) -> dict[str, Any]:
        """Keyword arguments of `tune` that do not depend on the checkpoint.

        Raises:
            ValueError: a number is out of its range, or --accumulate does not divide the batch.
        """
        recipe = self.training.settings(self.recipe_name)
        recipe |= self.loss.settings(recipe)
        batch, parts = recipe["batch"], self.run.accumulate
        if batch % parts:
            raise ValueError(f"a batch of {batch} does not split into --accumulate {parts}; use a multiple of {parts}")
        recipe |= given(dropped=self.lessons.dropped) | {"mirror": self.lessons.mirror}
        return recipe | {"workers": self.run.workers, "compile": self.run.compile}
