"""Checkpoints of every kind in small, and what somebody who means harm, or a broken download, makes of them."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import tiny
from masked.tiny_bert import save_bert
from safetensors.torch import load_file, save_file
from tiny_lm import byte_tokenizer, tiny_lm, with_adapter
from transformers import Dinov2Config, Dinov2Model

from fewstep.diffusion.formats.folder import save
from fewstep.diffusion.lora import LoRA, adapt
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Heun, Segments

Spoil = Callable[["Kind", Path, Path], object]  # kind, the folder to spoil, a place outside of it -> ignored
CANARY = "canary"  # the file, in the place outside, that hostile code writes


class Kind(NamedTuple):
    """Where a kind of checkpoint keeps what."""

    config: str
    weights: str
    pickled: str  # the name of pickled weights that stock libraries would read
    tokenizer: bool = False


KINDS = {
    "causal": Kind("config.json", "model.safetensors", "pytorch_model.bin", True),
    "masked": Kind("config.json", "model.safetensors", "pytorch_model.bin", True),
    "vision": Kind("config.json", "model.safetensors", "pytorch_model.bin"),
    "adapter": Kind("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
    "image": Kind(
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"
    ),
    "student": Kind("fewstep.json", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
}  # fmt: skip


def make(root: Path) -> None:
    """A sound checkpoint of each kind, in a folder of its name."""
    tiny_lm(seed=1, vocab=260).float().save_pretrained(root / "causal")
    byte_tokenizer().save_pretrained(root / "causal")
    save_bert(root / "masked")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56)
    Dinov2Model(config).save_pretrained(root / "vision")
    with_adapter(tiny_lm(seed=1, vocab=260).float()).save_pretrained(root / "adapters")
    shutil.move(root / "adapters" / "tuned", root / "adapter")
    save(Model(tiny(size=28), Heun()), root / "image")
    student = tiny(size=28)
    adapt(student, LoRA(2), base=str(root / "image"))
    save(Model(student, Segments(2)), root / "student")


class Canary:
    """An object whose pickle writes a file when it is loaded as a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def edit(path: Path, **entries: Any) -> None:
    """Changes entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def code(folder: Path, outside: Path) -> None:
    """A module with every class that a checkpoint could name; whoever imports it leaves a canary."""
    text = f"open({str(outside / CANARY)!r}, 'w').close()\nclass Evil: pass\n"
    for name in ("evil.py", "modeling_evil.py", "pipeline.py", "handler.py"):
        (folder / name).write_text(text)
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(text + "def generate(*args, **kwargs): pass\n")


CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoBackbone", "AutoProcessor",
           "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")  # fmt: skip
AUTO = {**dict.fromkeys(CLASSES, "evil.Evil"), "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


def coded(kind: Kind, folder: Path, outside: Path) -> None:
    code(folder, outside)
    code((folder / kind.config).parent, outside)
    edit(folder / kind.config, auto_map=AUTO, custom_pipelines={"evil": {"impl": "evil.Evil"}}, trust_remote_code=True)


def only_code(kind: Kind, folder: Path, outside: Path) -> None:
    coded(kind, folder, outside)
    edit(folder / kind.config, model_type="evil", _class_name="Evil", peft_type="EVIL", architectures=["Evil"])


def coded_index(kind: Kind, folder: Path, outside: Path) -> None:
    """A pipeline whose class, and whose network's, are modules in its own folder."""
    coded(kind, folder, outside)
    edit(folder / "model_index.json", _class_name=["evil", "Evil"], unet=["evil", "Evil"])
    code(folder / "unet", outside)


def coded_tokenizer(kind: Kind, folder: Path, outside: Path) -> None:
    code(folder, outside)
    edit(folder / "tokenizer_config.json", auto_map=AUTO, tokenizer_class="Evil")


def only_code_tokenizer(kind: Kind, folder: Path, outside: Path) -> None:
    coded_tokenizer(kind, folder, outside)
    (folder / "tokenizer.json").rename(folder / "vocab.json")


def coded_processors(kind: Kind, folder: Path, outside: Path) -> None:
    code(folder, outside)
    for name in ("processor_config.json", "preprocessor_config.json", "feature_extractor_config.json"):
        (folder / name).write_text(json.dumps({"auto_map": AUTO, "feature_extractor_type": "Evil"}))


def entries(**changes: Any) -> Spoil:
    return lambda kind, folder, outside: edit(folder / kind.config, **changes)


def text(content: str | bytes, name: str | None = None) -> Spoil:
    """Writes `content` in place of the configuration, or of the file `name`."""
    data = content.encode() if isinstance(content, str) else content
    return lambda kind, folder, outside: (folder / (name or kind.config)).write_bytes(data)


def pickled(beside: bool = False, wrap: Callable[[Canary], Any] = lambda canary: canary) -> Spoil:
    def spoil(kind: Kind, folder: Path, outside: Path) -> None:
        for name in (kind.pickled, "training_args.bin", "optimizer.pt", "state.pt", "scheduler.pt"):
            torch.save(wrap(Canary(outside / CANARY)), folder / name)
        if not beside:
            (folder / kind.weights).unlink()

    return spoil


def raw(spoil: Callable[[bytes], bytes]) -> Spoil:
    """Changes the bytes of the safetensors file."""

    def changed(kind: Kind, folder: Path, outside: Path) -> None:
        file = folder / kind.weights
        file.write_bytes(spoil(file.read_bytes()))

    return changed


def header(spoil: Callable[[dict[str, Any]], object]) -> Spoil:
    """Changes the header of the safetensors file, and leaves its data."""

    def changed(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        table = json.loads(data[8 : 8 + length])
        table.pop("__metadata__", None)
        spoil(table)
        new = json.dumps(table).encode()
        return struct.pack("<Q", len(new)) + new + data[8 + length :]

    return raw(changed)


def overlap(table: dict[str, Any]) -> None:
    first, *_, last = table.values()
    last |= first


def beyond(table: dict[str, Any]) -> None:
    entry = list(table.values())[-1]
    entry["data_offsets"][1] += 1 << 40
    entry["shape"] = [1 << 38]


def giant_shape(table: dict[str, Any]) -> None:
    list(table.values())[-1]["shape"] = [1 << 40, 1 << 20]


def weights(spoil: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def changed(kind: Kind, folder: Path, outside: Path) -> None:
        table = load_file(folder / kind.weights)
        save_file({name: spoil(value) for name, value in table.items()}, folder / kind.weights, metadata={"format": "pt"})

    return changed


def weights_named(spoil: Callable[[str], str]) -> Spoil:
    def changed(kind: Kind, folder: Path, outside: Path) -> None:
        table = load_file(folder / kind.weights)
        save_file({spoil(name): value for name, value in table.items()}, folder / kind.weights, metadata={"format": "pt"})

    return changed


def linked(part: str) -> Spoil:
    """The file is a link to one outside of the folder."""

    def spoil(kind: Kind, folder: Path, outside: Path) -> None:
        file = folder / getattr(kind, part)
        shutil.move(file, outside / file.name)
        file.symlink_to(outside / file.name)

    return spoil


def linked_folder(kind: Kind, folder: Path, outside: Path) -> None:
    shutil.move(folder / "unet", outside / "unet")
    (folder / "unet").symlink_to(outside / "unet")


def dangling(kind: Kind, folder: Path, outside: Path) -> None:
    (folder / kind.config).unlink()
    (folder / kind.config).symlink_to(folder / kind.config)


def piped(part: str) -> Spoil:
    def spoil(kind: Kind, folder: Path, outside: Path) -> None:
        (folder / getattr(kind, part)).unlink()
        os.mkfifo(folder / getattr(kind, part))

    return spoil


def index(shard: str) -> Spoil:
    """Weights in shards, one of which is somewhere else."""

    def spoil(kind: Kind, folder: Path, outside: Path) -> None:
        shutil.copyfile(folder / kind.weights, outside / "weights.safetensors")
        names = list(load_file(folder / kind.weights))
        (folder / kind.weights).unlink()
        places = {name: shard.format(outside=outside) for name in names}
        (folder / f"{kind.weights}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return spoil


GIANT = 10**12
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
EVERYWHERE: dict[str, Spoil] = {  # what can be done to any kind of checkpoint, and must be refused
    "code alone": only_code,
    "pickle alone": pickled(),
    "pickle in a table": pickled(wrap=lambda canary: {"a": canary}),
    "JSON: nested": text(DEEP),
    "JSON: lists nested": text("[" * 100_000),
    "JSON: a list": text("[1, 2]"),
    "JSON: a number": text("7"),
    "JSON: large": text('{"a": [' + "[]," * 8_000_000 + "1]}"),
    "JSON: cut off": text('{"model_type": "be'),
    "JSON: empty": text(""),
    "JSON: no text": text(b"\xff\xfe\x00\x01"),
    "safetensors: cut off": raw(lambda data: data[:-100]),
    "safetensors: header cut off": raw(lambda data: data[:20]),
    "safetensors: empty": raw(lambda data: b""),
    "safetensors: giant header": raw(lambda data: struct.pack("<Q", 1 << 60) + data[8:]),
    "safetensors: overlapping": header(overlap),
    "safetensors: beyond its end": header(beyond),
    "safetensors: giant shape": header(giant_shape),
    "safetensors: a pickle": raw(lambda data: b"\x80\x04N."),
    "weights: of another model": weights_named(lambda name: f"{name}s"),
    "weights: of other shapes": weights(lambda value: torch.cat([value, value])),
    "weights: not numbers": weights(lambda value: value * float("nan")),
    "weights: infinite": weights(lambda value: value + float("inf")),
    "link: configuration": linked("config"),
    "link: weights": linked("weights"),
    "link: in a circle": dangling,
    "pipe: configuration": piped("config"),
    "pipe: weights": piped("weights"),
}
UNTOUCHED: dict[str, Spoil] = {  # what a checkpoint may have lying around, as long as nobody touches it
    "code beside": coded,
    "pickles beside": pickled(beside=True),
    "coded processors": coded_processors,
}
IMAGES: dict[str, Spoil] = {
    "link: network": linked_folder,
    "pipeline: code alone": coded_index,
    "pipeline: nested": text(DEEP, "model_index.json"),
    "pipeline: a list": text("[]", "model_index.json"),
    "pipeline: parts of a wrong type": text('{"unet": [1, 2], "scheduler": {}}', "model_index.json"),
    "scheduler: nested": text(DEEP, "scheduler/scheduler_config.json"),
    "scheduler: code alone": text('{"_class_name": ["evil", "Evil"]}', "scheduler/scheduler_config.json"),
    "scheduler: giant": text('{"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": 1e12}',
                             "scheduler/scheduler_config.json"),
    "giant: widths": entries(block_out_channels=[GIANT, GIANT]),
    "giant: layers": entries(layers_per_block=GIANT),
    "giant: picture": entries(sample_size=GIANT),
    "type: widths": entries(block_out_channels="wide"),
    "quantised": entries(quantization_config={"quant_method": "bitsandbytes"}),
}  # fmt: skip
MODELS: dict[str, Spoil] = {  # of transformers
    "kernel: attention": entries(_attn_implementation="evil/kernel"),
    "kernel: attention, plain": entries(attn_implementation="evil/kernel@main:attention"),
    "kernel: attention, by part": entries(_attn_implementation={"": "sdpa", "text_config": "evil/kernel"}),
    "kernel: experts": entries(_experts_implementation="evil/kernel"),
    "kernel: all": entries(use_kernels=True, kernel_config={"RMSNorm": "evil/kernel:RMSNorm"}),
    "quantised": entries(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "quantised: unknown": entries(quantization_config={"quant_method": "evil"}),
    "timm": entries(model_type="timm_wrapper", architecture="resnet18"),
    "backbone": entries(backbone="evil/backbone", use_timm_backbone=False),
    "dtype": entries(dtype="load"),
    "giant: width": entries(hidden_size=GIANT),
    "giant: width, fitting heads": entries(hidden_size=GIANT, num_attention_heads=GIANT // 8),
    "giant: layers": entries(num_hidden_layers=GIANT),
    "many layers": entries(num_hidden_layers=100_000),
    "giant: inner width": entries(intermediate_size=GIANT, mlp_ratio=GIANT),
    "type: kind": entries(model_type=7),
    "type: kind, a list": entries(model_type=["bert"]),
    "type: width": entries(hidden_size="wide"),
    "type: layers": entries(num_hidden_layers=None),
    "type: heads": entries(num_attention_heads={"a": 1}),
    "type: heads below nothing": entries(num_attention_heads=-4),
    "no layer": entries(num_hidden_layers=0),
    "index: above": index("../outside/weights.safetensors"),
    "index: absolute": index("{outside}/weights.safetensors"),
    "index: nowhere": index("nowhere.safetensors"),
    "index: itself": index("model.safetensors.index.json"),
    "index: no table": lambda kind, folder, outside: (
        (folder / kind.weights).unlink(),
        (folder / f"{kind.weights}.index.json").write_text('{"weight_map": [1]}'),
    ),
}
LANGUAGE: dict[str, Spoil] = {
    "giant: vocabulary": entries(vocab_size=GIANT),
    "type: vocabulary": entries(vocab_size=[40]),
    "fewer layers than weights": entries(num_hidden_layers=1),
    "another architecture": entries(model_type="opt"),
    "generation: settings that cannot be": text('{"max_new_tokens": "many", "num_beams": [1]}', "generation_config.json"),
}
TOKENIZERS: dict[str, Spoil] = {
    "tokenizer: code alone": only_code_tokenizer,
    "tokenizer: not JSON": text("{", "tokenizer.json"),
    "tokenizer: nested": text(DEEP, "tokenizer.json"),
    "tokenizer: a list": text("[]", "tokenizer.json"),
    "tokenizer: nothing": text("{}", "tokenizer.json"),
    "tokenizer: no text": text(b"\xff\xfe", "tokenizer.json"),
    "tokenizer: settings nested": text(DEEP, "tokenizer_config.json"),
    "tokenizer: settings a list": text("[]", "tokenizer_config.json"),
    "tokenizer: tokens of a wrong type": text('{"added_tokens_decoder": {"a": 1}}', "tokenizer_config.json"),
    "tokenizer: special tokens of a wrong type": text('{"mask_token": [1], "pad_token": {}}', "tokenizer_config.json"),
    "tokenizer: a length of a wrong type": lambda kind, folder, outside: edit(
        folder / "tokenizer_config.json", model_max_length="long"
    ),
    "tokenizer: a model of nothing": text(
        '{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', "tokenizer.json"
    ),
    "tokenizer: a giant": lambda kind, folder, outside: os.truncate(folder / "tokenizer.json", 1 << 40),
    "tokenizer: a pipe": lambda kind, folder, outside: (
        (folder / "tokenizer.json").unlink(),
        os.mkfifo(folder / "tokenizer.json"),
    ),
}  # fmt: skip
STUDENTS: dict[str, Spoil] = {
    "adapter: no LoRA key": weights_named(lambda name: name.replace("lora_", "other_")),
    "adapter: of another base": weights_named(lambda name: name.replace("down_blocks.0", "down_blocks.7")),
    "adapter: half of it": weights_named(lambda name: name.replace("conv1.lora_B", "conv7.lora_B")),
    "adapter: not numbers": weights(lambda factor: factor.int()),
    "adapter: other shapes": weights(lambda factor: factor[:, :1].contiguous()),
    "adapter: its own base": lambda kind, folder, outside: edit(
        folder / kind.config, base={"source": str(folder), "weights": ""}
    ),
    "adapter: no base": entries(base=None),
    "adapter: a base of a wrong type": entries(base={"source": ["a"], "weights": 1}),
}
ADAPTERS: dict[str, Spoil] = {
    "adapter: no LoRA key": weights_named(lambda name: name.replace("lora_", "other_")),
    "adapter: of another base": weights_named(lambda name: name.replace("layers.1", "layers.7")),
    "adapter: giant rank": entries(r=GIANT),
    "adapter: giant rank of one": entries(rank_pattern={"q_proj": GIANT}),
    "adapter: another rank": entries(r=1),
    "adapter: rank of a wrong type": entries(r="two"),
    "adapter: layers without end": entries(layer_replication=[[0, GIANT]]),
    "adapter: changes the base": entries(init_lora_weights="pissa"),
    "adapter: DoRA": entries(use_dora=True),
    "adapter: whole modules": entries(modules_to_save=["lm_head"]),
    "adapter: code": entries(megatron_config={"a": 1}, megatron_core="evil"),
    "adapter: a pattern without end": entries(alpha_pattern={"(a*)*b": 1}),
    "adapter: another kind": entries(peft_type="XLORA"),
    "adapter: empty": text("{}"),
}
