"""A calibrated threshold as the settings of an engine that serves masked models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..core.files import atomic_file
from .calibration import Calibration
from .choices import Text
from .committing import Rule
from .rules import Blockwise, Threshold

Engine = Literal["sglang", "vllm"]


def check_engine(engine: Engine, rule: Rule, text: Text, block: int | None) -> None:
    """Refuses settings that an engine cannot follow, before anything is calibrated for it.

    Args:
        engine: its name.
        rule, text: settings of the calibration.
        block: the length of the blocks that the model was trained on; None: no blocks.

    Raises:
        ValueError: the engine cannot follow a setting.

    Reference: sglang 0.5.23 (LowConfidence: in a block, every position above a threshold, or else the best one) and vLLM
    0.33.0 (its --diffusion-config holds a length and a number of steps), as released.
    """
    if engine == "vllm":
        raise ValueError("vLLM (0.33) has no setting for a calibrated threshold; sglang has one: --write sglang FILE")
    if rule.rule != "threshold" or rule.last:
        raise ValueError(f"sglang has --rule threshold alone, without --last, not {rule.rule}; leave --write out")
    own = {
        "--temperature": text.temperature != 0, "--guidance": text.guidance != 1, "--suppress": bool(text.suppress),
        "--cache": text.cache != "none", "--suffix": bool(text.suffix),
    }  # fmt: skip
    asked = [name for name, given in own.items() if given]
    if asked:
        raise ValueError(f"sglang would not decode with {', '.join(asked)}, so the guarantee would not hold; leave it out")
    if block is None:
        raise ValueError("sglang serves models that were trained on blocks, and this one was not; leave --write out")
    if rule.block_length not in (None, block):
        raise ValueError(f"sglang decodes this model in its blocks of {block}; leave --block-length out")


def write_engine(found: Calibration, file: Path) -> None:
    """Writes the threshold for `--dllm-algorithm LowConfidence --dllm-algorithm-config FILE` of sglang, atomically.

    If no threshold keeps the answers, the file has 1, with which sglang decides one token a step.

    Args:
        found: the calibration of a threshold that `check_engine` let pass.
        file: the .yaml to write.
    """
    assert isinstance(found.rule, Blockwise), "check_engine demands blocks"
    inner = found.rule.rule
    threshold = inner.confidence if isinstance(inner, Threshold) else 1.0
    lines = [
        "# sglang … --dllm-algorithm LowConfidence --dllm-algorithm-config THIS FILE",
        f"# With confidence {1 - found.delta:g}, at most {found.epsilon:g} of answers differ from one token a step, for",
        f"# prompts like the {found.n} of the calibration, if the engine computes the same as fewstep.",
        f"threshold: {threshold!r}",
        f"block_size: {found.rule.length}",
    ]
    with atomic_file(file) as handle:
        handle.write(("\n".join(lines) + "\n").encode())
