"""What hostile and broken checkpoints do at every entry: nothing runs, nobody is asked, one sentence, bounded memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from conftest import fewstep as run
from conftest import noise_images
from forked import Forked
from hostile import ADAPTERS, CANARY, EVERYWHERE, IMAGES, KINDS, LANGUAGE, MODELS, STUDENTS, TOKENIZERS, UNTOUCHED, Spoil

import fewstep
from fewstep.diffusion.cond import Cond
from fewstep.diffusion.data import make_table, save_images
from fewstep.diffusion.data.conditions import Conditions
from fewstep.diffusion.measure.features import extractor
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.steering.load import load_trio

LANGUAGE_MODELS = EVERYWHERE | MODELS | LANGUAGE
# One case of each reader, for what else goes through the same ones: that an entry leads to them, and whole.
READERS = {
    name: EVERYWHERE[name]
    for name in (
        "code alone", "pickle alone", "JSON: nested", "safetensors: cut off", "weights: of other shapes",
        "weights: not numbers", "link: configuration", "link: weights", "pipe: configuration", "pipe: weights",
    )
}  # fmt: skip
# and what images read by themselves: .bin files, their index, names that wrappers gave
IMAGE_READERS = READERS | {
    name: EVERYWHERE[name] for name in ("pickle in a table", "safetensors: overlapping", "safetensors: giant shape")
}
STUDENT_READERS = {name: READERS[name] for name in READERS if name != "code alone"}  # its note names no class
TOKENIZER_READERS = {name: TOKENIZERS[name] for name in ("tokenizer: code alone", "tokenizer: nested", "tokenizer: a pipe")}
OF_MODELS = {
    name: MODELS[name] for name in ("kernel: attention", "quantised", "giant: width", "giant: layers", "index: above")
}


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
    "image": ("image", lambda folder, sound: fewstep.load(folder), IMAGE_READERS | IMAGES),
    "text": ("masked", lambda folder, sound: load_text(folder), LANGUAGE_MODELS),
    "tokenizer": ("masked", lambda folder, sound: load_tokenizer(folder), TOKENIZERS),
    "features": ("vision", lambda folder, sound: extractor(str(folder)), READERS | OF_MODELS),
    "base": ("causal", lambda folder, sound: trio(sound, base=folder), READERS | MODELS | LANGUAGE | TOKENIZER_READERS),
    "expert": ("causal", lambda folder, sound: trio(sound, expert=folder), READERS | OF_MODELS),
    "antiexpert": ("causal", lambda folder, sound: trio(sound, antiexpert=folder), READERS | OF_MODELS),
    "student": ("student", lambda folder, sound: fewstep.load(folder), STUDENT_READERS | STUDENTS),
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


def test_memory_is_bounded(tmp_path: Path) -> None:
    """No size is believed: with a gigabyte more than the libraries take, each case is told why, not that memory ran out."""
    from hostile_memory import main  # which imports from here

    with Forked(main, tmp_path, stdout=subprocess.PIPE) as process:
        found = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait() == 0
    assert len(found["told"]) == found["cases"] > 15
    reasons = (
        "far larger",
        "more than any network",
        "which no ",
        "number from",
        "do not bear out",
        "compressed",
        "than the file",
    )
    assert not {case: said for case, said in found["told"].items() if not any(reason in said for reason in reasons)}


def code_alone(kind: str) -> Callable[[Place], object]:
    return lambda place: hostile.only_code(KINDS[kind], place.copy(kind), place.outside)


def pickle_alone(kind: str) -> Callable[[Place], object]:
    return lambda place: hostile.pickled()(KINDS[kind], place.copy(kind), place.outside)


def pickled_images(place: Place) -> None:
    images = np.array([hostile.Canary(place.outside / CANARY)] * 8, dtype=object)
    np.savez(place.here / "images.npz", images=images, labels=images)


def pickled_table(place: Place) -> None:
    save_images(noise_images(8, size=28), place.here / "images.npz")
    make_table(place.here / "images.npz", place.here / "table", channels=1, size=28)
    for file in (place.here / "table").glob("*.arrow"):
        file.write_bytes(pickle.dumps(hostile.Canary(place.outside / CANARY)))


def conditions(spoil: Callable[[Path, Place], object]) -> Callable[[Place], object]:
    """A table with conditions, in whose files somebody has put something else."""

    def make(place: Place) -> None:
        save_images(noise_images(8, size=28), place.here / "images.npz")
        make_table(place.here / "images.npz", place.here / "table", channels=1, size=28)
        Conditions.of(Cond({"text": torch.ones(1, 2)}), Cond({"text": torch.ones(1, 2)})).write(place.here / "table")
        spoil(place.here / "table", place)

    return make


def canary(name: str) -> Callable[[Path, Place], object]:
    return lambda folder, place: (folder / name).write_bytes(pickle.dumps(hostile.Canary(place.outside / CANARY)))


def pipe(folder: Path, place: Place) -> None:
    (folder / "conditions.safetensors").unlink()
    os.mkfifo(folder / "conditions.safetensors")


def pickled_state(place: Place) -> None:
    """A run of one step whose saved state is somebody else's."""
    save_images(noise_images(8, size=28), place.here / "images.npz")
    fewstep_command(place, "tune sound/image --data images.npz --out run --images 8 --batch 8")
    torch.save({"recipe": hostile.Canary(place.outside / CANARY)}, place.here / "run" / "state.pt")


def pickled_optimizer(place: Place) -> None:
    fewstep_command(place, TRAIN_TEXT)
    for file in (place.here / "run").glob("checkpoint-*/*.pt*"):
        torch.save(hostile.Canary(place.outside / CANARY), file)


def single_file(place: Place) -> None:
    torch.save(hostile.Canary(place.outside / CANARY), place.here / "model.pt")


def pickled_network(place: Place) -> None:
    (place.here / "edm.pkl").write_bytes(pickle.dumps({"ema": hostile.Canary(place.outside / CANARY)}))


def deep_calibration(place: Place) -> None:
    (place.here / "rule.json").write_text(hostile.DEEP)


TRAIN_TEXT = "train-text --out run --items 128 --hidden 16 --layers 1 --heads 2 --intermediate 16 --save-every 1"
COMMANDS: dict[str, tuple[Callable[[Place], object], str, str]] = {
    "decode: code": (code_alone("masked"), "decode checkpoint --prompt w1 --gen-length 4", "does not know evil"),
    "decode: pickle": (
        pickle_alone("masked"), "decode checkpoint --prompt w1 --gen-length 4", "holds more than plain tensors"
    ),
    "decode: a deep calibration": (
        deep_calibration, "decode sound/masked --prompt w1 --gen-length 4 --calibration rule.json", "nested without end"
    ),
    "proxy: code": (
        code_alone("causal"), "proxy --base checkpoint --expert sound/causal --antiexpert sound/causal --prompt a",
        "does not know evil",
    ),
    "proxy: a pickled adapter": (
        pickle_alone("adapter"), "proxy --base sound/causal --expert sound/causal --adapter checkpoint --prompt a",
        "has no adapter_model.safetensors",
    ),
    "sample: code": (code_alone("image"), "sample checkpoint --steps 1 --out samples", "describes a 'Evil'"),
    "sample: pickle": (
        pickle_alone("image"), "sample checkpoint --steps 1 --out samples", "holds more than plain tensors"
    ),
    "sample: a single file": (single_file, "sample model.pt --steps 1 --out samples", "model.pt holds weights"),
    "import: a pickle": (pickled_network, "import edm.pkl --out out", "which no network that fewstep reads needs"),
    "import: tensors": (single_file, "import model.pt --out out", "holds more than plain tensors"),
    "settle: code in the features": (
        code_alone("vision"), "settle sound/image --features checkpoint --out settle", "does not know evil"
    ),
    "tune: pickled images": (
        pickled_images, "tune sound/image --data images.npz --out run --images 8 --batch 8", "plain arrays"
    ),
    "tune: a pickled table": (
        pickled_table, "tune sound/image --data table --out run --images 8 --batch 8", "is not a readable table"
    ),
    "tune: pickled conditions": (
        conditions(canary("conditions.safetensors")), "tune sound/image --data table --out run --images 8 --batch 8",
        "no safetensors file",
    ),
    "tune: conditions of a pickle": (
        conditions(canary("conditions.json")), "tune sound/image --data table --out run --images 8 --batch 8",
        "is not valid JSON",
    ),
    "tune: deep conditions": (
        conditions(lambda folder, place: (folder / "conditions.json").write_text(hostile.DEEP)),
        "tune sound/image --data table --out run --images 8 --batch 8", "nested without end",
    ),
    "tune: conditions that never end": (
        conditions(pipe), "tune sound/image --data table --out run --images 8 --batch 8", "no conditions.safetensors"
    ),
    "tune: a pickle of prompts": (
        pickled_images, "tune sound/image --data teacher --prompts images.npz --out run", "is no text"
    ),
    "tune: a pickled state": (
        pickled_state, "tune sound/image --data images.npz --out run --images 16 --batch 8 --resume", "not a saved state"
    ),
    "train-text: a pickled optimizer": (pickled_optimizer, TRAIN_TEXT + " --resume", "checkpoint-2 is damaged"),
}  # fmt: skip


def fewstep_command(place: Place, arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        run(patch, arguments)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("case", COMMANDS)
def test_commands_end_in_one_sentence_and_exit_code_2(case: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, arguments, sentence = COMMANDS[case]
    (place.here / "sound").symlink_to(place.sound)
    spoil(place)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        fewstep_command(place, arguments)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep: ")]
    assert stop.value.code == 2 and len(said) == 1 and sentence in said[0]
    assert "weights_only" not in said[0] and "trust_remote_code" not in said[0] and "Traceback" not in said[0]
    assert not (place.outside / CANARY).exists()


def test_a_snapshot_in_the_hubs_cache_is_made_of_links(place: Place) -> None:
    """As the hub's client keeps it; the same links are refused in a folder that is none."""
    repository = place.here / "hub" / "models--owner--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted((place.sound / "masked").iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    load_text(snapshot)
    load_tokenizer(snapshot)
    shutil.copytree(snapshot, place.here / "elsewhere" / "copy", symlinks=True)
    shutil.copytree(blobs, place.here / "blobs")
    with pytest.raises(ValueError, match="a link that leads out"):
        load_text(place.here / "elsewhere" / "copy")
