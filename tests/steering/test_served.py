"""Proxy-tuning as vLLM serves it, against a stand-in of vLLM's interface and the formula without any cache.

vLLM itself asks for other versions of torch than these tests run with; the stand-in has the names, the abstract methods and
the order of its documentation.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tiny_lm import byte_tokenizer, logits_of, tiny_lm, with_adapter
from torch import Tensor


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


class LogitsProcessor(ABC):
    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        return None

    @abstractmethod
    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None: ...

    @abstractmethod
    def apply(self, logits: Tensor) -> Tensor: ...

    @abstractmethod
    def is_argmax_invariant(self) -> bool: ...

    @abstractmethod
    def update_state(self, batch_update: Any) -> None: ...


class Update(NamedTuple):
    batch_size: int
    removed: Sequence[int] = ()
    added: Sequence[tuple[int, Any, list[int] | None, list[int]]] = ()
    moved: Sequence[tuple[int, int, MoveDirectionality]] = ()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.sample.logits_processor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    last: Any = sys.modules["vllm.v1.sample.logits_processor"]
    last.LogitsProcessor, last.MoveDirectionality = LogitsProcessor, MoveDirectionality
    from fewstep.steering import served

    yield served
    monkeypatch.delitem(sys.modules, "fewstep.steering.served")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("base", "expert", "small")):
        tiny_lm(seed=seed, vocab=260).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    with_adapter(tiny_lm(seed=2, vocab=260)).save_pretrained(folder / "adapters")
    return folder


def configured(folders: Path, **settings: Any) -> Any:
    named = {name: str(folders / value) if isinstance(value, str) else value for name, value in settings.items()}
    return SimpleNamespace(additional_config={"fewstep": named}, model_config=SimpleNamespace(model=str(folders / "base")))


def asked(**extra: Any) -> Any:
    return SimpleNamespace(extra_args=extra or None)


CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]


@pytest.mark.parametrize("way", ["antiexpert", "adapter"])
def test_a_served_batch_is_the_formula_whatever_comes_goes_and_moves(way: str, served: Any, folders: Path) -> None:
    pairs = {"antiexpert": ("expert", "small"), "adapter": ("small", "adapters/tuned")}
    pair = {"expert": pairs[way][0], way: pairs[way][1]}
    processor = served.ServedProxy(configured(folders, **pair, alpha=0.75), CPU, False)
    assert isinstance(processor, LogitsProcessor) and not processor.is_argmax_invariant()
    up = tiny_lm(seed=1, vocab=260) if way == "antiexpert" else with_adapter(tiny_lm(seed=2, vocab=260)).merge_and_unload()
    base, down = tiny_lm(seed=0, vocab=260), tiny_lm(seed=2, vocab=260)
    texts = [(list(prompt), []) for prompt in PROMPTS]
    alphas = [0.75, 2.0, 0.0]

    def step(places: list[int], update: Update | None, grow: bool = True) -> None:
        """One step of the engine: `places` are the texts of the rows."""
        processor.update_state(update)
        ids = [[*texts[n][0], *texts[n][1]] for n in places]
        logits = torch.stack([logits_of(base, row) for row in ids])
        expected = torch.stack(
            [
                plain + alphas[n] * (logits_of(up, row) - logits_of(down, row))
                for n, row, plain in zip(places, ids, logits.clone(), strict=True)
            ]
        )
        found = processor.apply(logits)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        for n, row in zip(places, found, strict=True):
            texts[n][1].extend([int(row.argmax())] * grow)

    params = [asked(), asked(alpha=2.0), asked(alpha=0)]
    step([0, 1], Update(2, added=[(n, params[n], *texts[n]) for n in (0, 1)]))
    step([0, 1], None)
    step([0, 1, 2], Update(3, added=[(2, params[2], *texts[2])]), grow=False)  # a part of a prompt: nothing is kept
    step([0, 1, 2], None)
    step([1, 0, 2], Update(3, moved=[(0, 1, MoveDirectionality.SWAP)]))
    step([1, 2], Update(2, removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    texts[0] = ([20, 21], [])  # another text takes the place of one that ends
    alphas[0] = 0.75
    step([0, 2], Update(2, added=[(0, asked(), *texts[0])]))
    step([0, 2], None)


def test_what_is_refused(served: Any, folders: Path) -> None:
    make = served.ServedProxy
    with pytest.raises(ValueError, match="additional_config holds no 'fewstep'"):
        make(SimpleNamespace(additional_config={}, model_config=None), CPU, False)
    with pytest.raises(ValueError, match="either an 'antiexpert'"):
        make(configured(folders, expert="expert"), CPU, False)
    with pytest.raises(ValueError, match="alpha must be a number"):
        make(configured(folders, expert="expert", antiexpert="small", alpha=[1]), CPU, False)
    make.validate_params(asked(alpha=1))
    for wrong in ("much", True, float("nan")):
        with pytest.raises(ValueError, match="alpha must be a finite number"):
            make.validate_params(asked(alpha=wrong))
    processor = make(configured(folders, expert="expert", antiexpert="small"), CPU, False)
    with pytest.raises(ValueError, match="not as embeddings"):
        processor.update_state(Update(1, added=[(0, asked(), None, [])]))
    processor.update_state(Update(1, added=[(0, asked(), [5, 6], [-1])]))
    with pytest.raises(ValueError, match="without --async-scheduling"):
        processor.apply(torch.zeros(1, 260))
