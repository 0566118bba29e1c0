"""What a pickle can do to whoever reads it, and that nothing of it happens here."""

from __future__ import annotations

import pickle
import resource
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import numpy as np
import persisted
import pytest
import torch
from forked import Forked
from hostile import CANARY, Canary
from persisted import EasyDict, Persistent, module, write

import fewstep
from fewstep.diffusion.formats.foreign.pickles import LARGEST, Node, read_pickle, weights_of


def drawn(*shape: int) -> torch.Tensor:
    """The same numbers in every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


SOUND = {"conv.weight": drawn(4, 3, 3, 3), "conv.bias": drawn(4), "freqs": drawn(4)}


def stored(data: bytes) -> bytes:
    """The call that makes a tensor's numbers of `data`, as instructions."""
    return b"ctorch.storage\n_load_from_bytes\n" + b"B" + struct.pack("<I", len(data)) + data + b"\x85R"


class Inner:
    """A tensor's numbers with a pickle of somebody's choice in their place."""

    def __init__(self, held: object) -> None:
        self.held = pickle.dumps(held)

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.held,)


class Calls:
    """Any call that pickle can say."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.said = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self):
        return self.said


def huge(count: bytes) -> bytes:
    return b"\x80\x04\x8e" + count + b"abc."


def bomb(levels: int) -> bytes:
    """Two of what came before, over and over: small here, 2^levels long for whoever walks through it."""
    return b"\x80\x04)" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(levels)) + b"."


def _legacy_floats(count: int) -> bytes:
    return torch.zeros(count).__reduce_ex__(4)[1][0].__reduce__()[1][0]


NUMBER, FOUR = b"\x80\x04cnumpy.core.multiarray\nscalar\n", _legacy_floats(4)
RAW: dict[str, tuple[bytes, str]] = {
    "os.system": (b"cos\nsystem\n(S'touch CANARY'\ntR.", "asks for os.system"),
    "posix": (b"cposix\nsystem\n(S'touch CANARY'\ntR.", "asks for posix.system"),
    "eval": (b"cbuiltins\neval\n(S'open(\"CANARY\",\"w\").close()'\ntR.", "asks for builtins.eval"),
    "getattr": (b"cbuiltins\ngetattr\n(ctorch\nFloatStorage\nS'__class__'\ntR.", "asks for builtins.getattr"),
    "python 2": (b"c__builtin__\napply\n(cos\nsystem\n(S'touch CANARY'\nttR.", "asks for __builtin__.apply"),
    "a dotted name": (b"\x80\x04\x8c\x0btorch_utils\x8c\x15persistence.os.system\x93.", "asks for torch_utils.persistence"),
    "an attribute of what is known": (
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "asks for collections.OrderedDict.__init__",
    ),
    "a module of torch": (b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR.", "asks for torch.hub.load"),
    "torch's own modules, called": (b"ctorch.nn.modules.module\nModule\n)R.", "calls torch.nn.modules.module.Module"),
    "a function of torch's modules": (
        b"ctorch.nn.modules.module\nregister_module_forward_hook\n(cos\nsystem\ntR.", "asks for os.system",
    ),
    "an instance": (b"(S'touch CANARY'\nios\nsystem\n.", "asks for INST"),
    "an object": (b"(ccollections\nOrderedDict\no.", "asks for OBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "asks for EXT1"),
    "a reference outside": (b"Pother\n.", "asks for PERSID"),
    "another file": (b"S'other'\nQ.", "refers to something outside"),
    "new with arguments": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "asks for NEWOBJ_EX"),
    "a state for a name": (b"ccollections\nOrderedDict\n}S'a'\nI1\nsb.", "sets a state of something that has none"),
    "a state for a list": (b"]}S'append'\nI1\nsb.", "sets a state of something that has none"),
    "a call of data": (b"S'os'\n)R.", "calls something other than a name"),
    "a dict that is called with much": (b"ccollections\nOrderedDict\n(](I1\nI2\nltR.", "in a way that no network does"),
    "keys that never end": (b"\x80\x04}" + bomb(40)[2:-1] + b"I1\ns.", "neither texts nor numbers"),
    "giant bytes": (huge(struct.pack("<Q", 1 << 62)), "cut off"),
    "giant text": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.", "cut off"),
    "a giant number": (b"\x8b" + struct.pack("<I", 1 << 30) + b"abc.", "cut off"),
    "digits": (b"I" + b"9" * 50_000 + b"\n.", "cut off"),
    "marks": (b"(" * 5000 + b".", "nested deeper"),
    "lists within lists": (b"]" * 300_000 + b"a" * 299_999 + b".", "nested deeper"),
    "no end": (b"]q\x00h\x00h\x00h\x00", "cut off"),
    "nothing to take": (b"\x80\x04R.", "cut off"),
    "a mark to take": (b"(\x85.", "cut off"),
    "empty": (b"", "cut off"),
    "a forgotten memory": (b"h\x07.", "cut off"),
    "text": (b"<html>not found</html>", "cut off"),
    "another pickle": (pickle.dumps({"ema": 3}), "holds no network"),
    "two of two of two": (bomb(60), "holds no network"),
    "itself": (b"]q\x00h\x00a.", "holds no network"),
    "numbers of nothing": (stored(b"abc") + b".", "cut off"),
    "numbers of another pickle": (stored(b"cos\nsystem\n(S'touch CANARY'\ntR.") + b".", "asks for os.system"),
    "something put into a dict": (b"}I1\na.", "cut off"),
    "a number of another width": (NUMBER + b"(cnumpy\ndtype\n(S'f8'\nI0\nI1\ntRC\x03abctR.", "cut off"),
    "no tensor's numbers": (stored(pickle.dumps(0) * 5) + b".", "cut off"),
    "fewer numbers than are promised": (stored(FOUR[:-4]) + b".", "cut off"),
    "an archive of torch": (stored(b"PK\x03\x04" + b"\x00" * 60) + b".", "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_nothing_of_a_hostile_pickle_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, sentence = RAW[case]
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "edm.pkl"
    file.write_bytes(data)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fewstep.import_checkpoint(file, tmp_path / "out")
    said = str(caught.value)
    assert sentence in said and str(file) in said and "\n" not in said and len(said) < 400
    assert sorted(each.name for each in tmp_path.iterdir()) == ["edm.pkl"]


def test_the_pickles_are_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own reader runs them; else no test here could fail."""
    monkeypatch.chdir(tmp_path)
    for case in ("os.system", "posix", "eval"):
        pickle.loads(RAW[case][0].replace(b"CANARY", case.encode()))
        assert (tmp_path / case).exists()
    canary = tmp_path / CANARY
    persisted.read_as_the_original_does(write(tmp_path / "a.pkl", {"ema": module(SOUND, "Net", canary)}))
    assert canary.exists()


@pytest.mark.parametrize("held", [
    Canary,
    lambda canary: {"ema": module(SOUND, "Net", canary, extra=Canary(canary))},
    lambda canary: {"ema": module(SOUND, "Net", canary), "loss_fn": Canary(canary)},
    lambda canary: Inner(Canary(canary)),
    lambda canary: [Inner(Inner(Canary(canary)))],
    lambda canary: Calls(torch._utils._rebuild_parameter, Canary(canary), True, {}),
    lambda canary: Calls(np.dtype, "O8", False, True),
    lambda canary: {"dataset_kwargs": np.array([Canary(canary)], dtype=object)},
])  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_canaries_in_any_place_stay_silent(held: Callable[[Path], object], protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / CANARY
    file = write(tmp_path / "edm.pkl", held(canary), protocol)
    with pytest.raises(ValueError, match=r"nothing of it was run"):
        read_pickle(file)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_sound_pickle_is_read_whole_and_its_source_is_not_run(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / CANARY
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "n": np.int64(3), "share": np.float32(0.5), "on": np.bool_(True)}, canary)
    held = {"ema": module(SOUND, "Net", canary, _init_kwargs={"a": [1, 2.5, None]}), "loss": loss, "kw": EasyDict(path="x")}
    found = read_pickle(write(tmp_path / "a.pkl", held, protocol))
    assert found["loss"] == Node("EDMLoss", {"P_mean": -1.2, "n": 3, "share": 0.5, "on": True}) and found["kw"] == {
        "path": "x"
    }
    assert found["ema"].kind == "Net" and found["ema"].state["_init_kwargs"] == {"a": [1, 2.5, None]}
    weights = weights_of(found["ema"])
    assert weights.keys() == SOUND.keys() and all(weights[name].equal(SOUND[name]) for name in SOUND)
    assert not canary.exists()


def test_the_oldest_protocol_is_read_too(tmp_path: Path) -> None:
    held = {"a": [1, 2.5, None, True], "b": ("x", {"c": {}})}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(held, 0))
    assert read_pickle(tmp_path / "a.pkl") == held
    assert read_pickle(write(tmp_path / "b.pkl", [np.float64(2.5), np.int64(3)])) == [2.5, 3]  # of the right width


def test_a_file_larger_than_any_network_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "a.pkl").open("wb") as file:
        file.truncate(LARGEST + 1)  # takes no room
    with pytest.raises(ValueError, match=r"is larger than [0-9]+ GiB"):
        read_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(("state", "sentence"), [
    ({"_modules": {"conv": Node("Conv", {"_parameters": {"weight": 3}})}}, r"has no tensor as conv\.weight"),
    ({"_buffers": [torch.ones(1)]}, "has no names in the buffers of one of its modules"),
])  # fmt: skip
def test_what_holds_no_tensors_by_their_names_is_no_network(state: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        weights_of(Node("Net", state))


TENSORS = {
    "float16": drawn(3, 4).half(),
    "bfloat16": drawn(5).bfloat16(),
    "in another order": drawn(2, 3, 4).permute(2, 0, 1),
    "a part of another": torch.arange(6)[2:4],
    "a number": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
    "channels last": drawn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_tensors_of_any_kind_come_back(tensor: torch.Tensor, tmp_path: Path) -> None:
    found = read_pickle(write(tmp_path / "a.pkl", [tensor, torch.nn.Parameter(tensor.float())]))
    if tensor.numel():
        assert found[0].dtype == tensor.dtype and found[0].equal(tensor) and found[1].equal(tensor.float())
    else:
        assert found[0].numel() == 0


@pytest.mark.parametrize(("size", "stride", "start"), [
    ((1 << 40,), (0,), 0), ((3,), (1,), 3), ((2, 2), (1 << 60, 1), 0), ((-1,), (1,), 0), ((2,), (-1,), 3),
    ((1 << 20, 1 << 20), (0, 0), 0), ((2,), (1, 1), 0), ((2,), ("a",), 0), ((True,), (1,), 0),
])  # fmt: skip
def test_tensors_larger_than_their_numbers_are_refused(size, stride, start: int, tmp_path: Path) -> None:
    class Numbers:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (_legacy_floats(4),)

    broken = Calls(torch._utils._rebuild_tensor_v2, Numbers(), start, size, stride, False, {})
    with pytest.raises(ValueError, match=r"larger than its values|cut off"):
        read_pickle(write(tmp_path / "a.pkl", broken))


def test_numbers_that_are_loaded_again_and_again_are_bounded(tmp_path: Path) -> None:
    """A megabyte that is remembered once and loaded ten thousand times would be ten gigabytes."""
    data = _legacy_floats(1 << 18)
    again = b"ctorch.storage\n_load_from_bytes\nh\x00\x85R"
    body = b"(B" + struct.pack("<I", len(data)) + data + b"q\x00" + again * 10_000 + b"t."
    (tmp_path / "a.pkl").write_bytes(body)
    with pytest.raises(ValueError, match="larger in total than the file"):
        read_pickle(tmp_path / "a.pkl")


def limit(more: int) -> None:
    """Bounds the memory of this process to so many bytes more than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def imported(folder: Path) -> None:
    limit(1 << 30)
    try:
        fewstep.import_checkpoint(str(folder / "edm.pkl"), str(folder / "out"))
    except ValueError as error:
        print(error)


def read_all(folder: Path) -> None:
    limit(256 << 20)
    for file in folder.glob("*.pkl"):
        with suppress(ValueError):
            read_pickle(file)


DOUBLED = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(100))  # a pair of twice the pair before


@pytest.mark.parametrize("body", [
    DOUBLED + b"\x8c\x01a\x93.",  # as the module of a name
    b"ctorch.nn.modules.x\nNet\n)\x81}(\x8c\x08_modules}\x8c\x0c_init_kwargs}\x8c\x0asigma_data" + DOUBLED + b"suub.",
])  # fmt: skip
def test_what_holds_itself_twice_is_never_written_out(body: bytes, tmp_path: Path) -> None:
    """A hundred pairs of pairs would be a text of 2^100 characters, of which a message shows forty."""
    (tmp_path / "edm.pkl").write_bytes(b"\x80\x04" + body)
    with Forked(imported, tmp_path, stdout=PIPE) as process:
        said = process.stdout.read(1 << 20)
    assert "edm.pkl" in said and len(said) < 500


def test_a_hostile_file_takes_no_memory(tmp_path: Path) -> None:
    """With 256 MiB more than the libraries take, every case is told why, and not that memory ran out."""
    for number, (data, _) in enumerate(RAW.values()):
        (tmp_path / f"{number}.pkl").write_bytes(data)
    with Forked(read_all, tmp_path) as process:
        assert process.wait() == 0


def test_modules_within_modules_without_end_are_refused() -> None:
    node = Node("Net")
    node.state = {"_modules": {"a": node, "b": node}}
    with pytest.raises(ValueError, match="nested too deeply"):
        weights_of(node)
    wide = Node("Net")
    for _ in range(10):  # a thousand of a thousand of …
        wide = Node("Net", {"_modules": {str(k): wide for k in range(1000)}})
    with pytest.raises(ValueError, match="nested too deeply"):
        weights_of(wide)
