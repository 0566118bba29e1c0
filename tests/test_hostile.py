"""What hostile and broken checkpoints do at every entry: nothing runs, nobody is asked, one sentence, bounded memory."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import pytest
import torch
from hostile import ADAPTERS, CANARY, EVERYWHERE, KINDS, LANGUAGE, MODELS, TOKENIZERS, UNTOUCHED, Spoil

from fewstep.diffusion.measure.features import extractor
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.steering.load import load_trio

CAUSAL, MASKED = EVERYWHERE | MODELS | LANGUAGE, EVERYWHERE | MODELS | LANGUAGE


class Place:
    """Sound checkpoints, and a copy of one of them to spoil."""

    def __init__(self, sound: Path, here: Path) -> None:
        self.sound, self.here, self.outside = sound, here, here / "outside"
        self.outside.mkdir()

    def copy(self, kind: str) -> Path:
        return Path(shutil.copytree(self.sound / kind, self.here / "checkpoint"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    hostile.make(root)
    return root


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Somebody who says yes to every question sits at the keyboard, and the modules lie where Python looks for them."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    made = Place(sound, tmp_path)
    monkeypatch.chdir(tmp_path)
    return made


def trio(sound: Path, **changes: Path) -> object:
    models: dict[str, Path] = dict.fromkeys(("base", "expert", "antiexpert"), sound / "causal") | changes
    if "adapter" in changes:
        del models["antiexpert"]
    return load_trio(**models)


ENTRIES: dict[str, tuple[str, Callable[[Path, Path], object], dict[str, Spoil]]] = {
    "text": ("masked", lambda folder, sound: load_text(folder), MASKED),
    "tokenizer": ("masked", lambda folder, sound: load_tokenizer(folder), TOKENIZERS),
    "features": ("vision", lambda folder, sound: extractor(str(folder)), EVERYWHERE | MODELS),
    "base": ("causal", lambda folder, sound: trio(sound, base=folder), CAUSAL | TOKENIZERS),
    "expert": ("causal", lambda folder, sound: trio(sound, expert=folder), CAUSAL),
    "antiexpert": ("causal", lambda folder, sound: trio(sound, antiexpert=folder), CAUSAL),
    "adapter": ("adapter", lambda folder, sound: trio(sound, adapter=folder), EVERYWHERE | ADAPTERS),
}


@pytest.mark.parametrize(
    ("entry", "case"), [(entry, case) for entry, (_, _, cases) in ENTRIES.items() for case in cases], ids=str
)
def test_what_harms_is_refused_in_one_sentence(entry: str, case: str, place: Place) -> None:
    kind, load, cases = ENTRIES[entry]
    folder = place.copy(kind)
    cases[case](KINDS[kind], folder, place.outside)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(folder, place.sound)
    said = str(caught.value)
    assert said and "\n" not in said and len(said) < 600
    assert "weights_only" not in said and "trust_remote_code" not in said
    assert not (place.outside / CANARY).exists()


@pytest.mark.parametrize(
    ("entry", "case"),
    [(e, c) for e in ENTRIES for c in UNTOUCHED if (e, c) != ("adapter", "code beside")],  # an adapter says LoRA only
)
def test_what_lies_beside_a_sound_checkpoint_is_not_touched(entry: str, case: str, place: Place) -> None:
    kind, load, _ = ENTRIES[entry]
    folder = place.copy(kind)
    UNTOUCHED[case](KINDS[kind], folder, place.outside)
    load(folder, place.sound)
    assert not (place.outside / CANARY).exists()


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_tokenizer_that_names_code_and_has_a_file_is_read_from_the_file(kind: str, place: Place) -> None:
    folder = place.copy(kind)
    hostile.coded_tokenizer(KINDS[kind], folder, place.outside)
    assert load_tokenizer(folder)("w1 ab")["input_ids"] == load_tokenizer(place.sound / kind)("w1 ab")["input_ids"]
    assert not (place.outside / CANARY).exists()


@pytest.mark.parametrize("auto", ["AutoModel", "AutoTokenizer"])
def test_the_canaries_are_alive(auto: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who trusts the same checkpoints runs their code; else no test here could fail."""
    import transformers

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place.here / "modules"))
    monkeypatch.setattr("sys.path", sys.path.copy())
    folder, canary = place.copy("causal"), place.outside / CANARY
    hostile.pickled(beside=True)(KINDS["causal"], folder, place.outside)
    assert not canary.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert canary.exists()
    canary.unlink()
    hostile.only_code_tokenizer(KINDS["causal"], folder, place.outside)
    hostile.only_code(KINDS["causal"], folder, place.outside)
    with pytest.raises(Exception):  # noqa: B017, PT011 - it asks, gets a yes, runs the module; but its class is no model
        getattr(transformers, auto).from_pretrained(folder)
    assert canary.exists()
