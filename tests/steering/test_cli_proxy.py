"""The command on tiny models that lie in folders."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_lm import byte_tokenizer, merged, tiny_lm, with_adapter
from tokenizers import processors

from fewstep import write_report
from fewstep.cli.proxy import proxy
from fewstep.steering.tuning import ProxyTuning, generate
from fewstep.steering.writing import encoded

TEMPLATE = "{% for m in messages %}<s>[{{ m['content'] }}]{% endfor %}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """base, expert and antiexpert, an adapter over the antiexpert, and a model of another vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "expert", "antiexpert")):
        tiny_lm(seed=seed, vocab=260).save_pretrained(folder / name)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
    with_adapter(tiny_lm(seed=2, vocab=260)).save_pretrained(folder / "adapters")
    tiny_lm(seed=2, vocab=260).save_pretrained(folder / "other")
    byte_tokenizer(a="b", b="a").save_pretrained(folder / "other")
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def steer(place: Path, **changes: object) -> None:
    names = {name: str(place / name) for name in ("base", "expert", "antiexpert")}
    proxy(**(names | {"prompt": ("2 + 2 =",), "tokens": 8} | changes))


def models(place: Path) -> list[torch.nn.Module]:
    return [tiny_lm(seed=seed, vocab=260) for seed in range(3)]


def test_it_says_what_the_formula_says(place, tmp_path, capsys) -> None:
    steer(place, out=tmp_path / "run", alpha=(0.8,))
    told = json.loads((tmp_path / "run" / "proxy.json").read_text())
    ids = byte_tokenizer()("2 + 2 =", return_tensors="pt")["input_ids"]
    wanted = merged(*models(place), alpha=0.8).generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    acted = told["texts"][0]["acted"]
    assert acted["tokens"] == wanted.tolist()
    assert acted["choice"] == acted["tokens"] and acted["choice_pieces"] == [byte_tokenizer().decode([t]) for t in wanted]
    assert "".join(acted["pieces"]) == byte_tokenizer().decode(wanted) and len(acted["base_pieces"]) == len(wanted)
    assert told["alpha"] == [0.8]
    said = capsys.readouterr().out
    assert byte_tokenizer().decode(wanted, skip_special_tokens=True).strip() in said
    assert f"changed at {len(acted['places'])} of {len(wanted)} tokens" in said
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert f"first choice at {len(acted['places'])} of {len(wanted)} tokens" in page


def test_several_prompts_with_an_adapter_chat_and_beams(place, tmp_path) -> None:
    prompts, adapter = ("one", "and two"), str(place / "adapters" / "tuned")
    small = {"expert": str(place / "antiexpert"), "antiexpert": None, "adapter": adapter}
    steer(place, **small, prompt=prompts, chat=True, beams=2, out=tmp_path)
    told = json.loads((tmp_path / "proxy.json").read_text())["texts"]
    tokenizer = byte_tokenizer()
    base, _, small = models(place)
    tuned = with_adapter(tiny_lm(seed=2, vocab=260)).merge_and_unload()
    inputs, own = (
        dict(tokenizer(texts, return_tensors="pt", padding=True))
        for texts in (list(prompts), [f"<s>[{prompt}]" for prompt in prompts])
    )
    for rows in (inputs, own):
        rows.pop("token_type_ids", None)
    options = {"max_new_tokens": 8, "num_beams": 2, "do_sample": False}
    made = generate(base, ProxyTuning(tuned, small), **inputs, expert_inputs=own, **options)
    for text, prompt, row in zip(told, prompts, made[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        assert text["prompt"] == prompt
        assert row[: len(text["acted"]["tokens"])] == text["acted"]["tokens"]
        assert set(row[len(text["acted"]["tokens"]) :]) <= {0}


def test_texts_go_on_behind_their_prompts() -> None:
    """A tokenizer that ends each text by itself does not end the prompt; a chat template brings its own tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.chat_template = TEMPLATE
    made = encoded(tokenizer, ["ab", "a"])
    letters = tokenizer("ab")["input_ids"][1:-1]
    assert made["input_ids"].tolist() == [[1, *letters], [0, 1, letters[0]]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert tokenizer.decode(encoded(tokenizer, ["ab"], chat=True)["input_ids"][0]) == "<s>[ab]"


def test_sampling_is_a_function_of_its_seed(place, tmp_path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        steer(place, temperature=1.5, top_p=0.95, seed=seed, out=tmp_path / name)
    a, b, c = (json.loads((tmp_path / name / "proxy.json").read_text())["texts"] for name in "abc")
    assert a == b
    assert a != c


def test_a_text_ends_at_a_stop_string(place) -> None:
    base, expert, antiexpert = models(place)
    tokenizer = byte_tokenizer()
    ids = tokenizer("2 + 2 =", return_tensors="pt")["input_ids"]
    tuned, options = ProxyTuning(expert, antiexpert), {"max_new_tokens": 12, "do_sample": False}
    whole = generate(base, tuned, ids, **options)[0].tolist()
    end = next(place for place in range(9, len(whole)) if tokenizer.decode(whole[place]).isascii())
    stop = tokenizer.decode(whole[end])
    short = generate(base, tuned, ids, stop_strings=stop, tokenizer=tokenizer, **options)[0].tolist()
    assert short == whole[: whole.index(whole[end], 7) + 1]
    assert len(short) < len(whole)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adapter": "x"}, "either --antiexpert"),
        ({"antiexpert": None}, "either --antiexpert"),
        ({"base": None}, "both --base and --expert"),
        ({"expert": None}, "both --base and --expert"),
        ({"tokens": 0}, "--tokens starts at 1, got 0"),
        ({"beams": 0}, "--beams starts at 1, got 0"),
        ({"temperature": float("nan")}, "--temperature starts at 0, got nan"),
        ({"top_p": 1.5}, "--top-p must be above 0 and at most 1, got 1.5"),
        ({"seed": -1}, "--seed starts at 0, got -1"),
        ({"prompt": ("",)}, "needs some text"),
        ({"alpha": (1.0, float("nan"))}, "alpha must be a finite number"),
        ({"alpha": (float("inf"),)}, "alpha must be a finite number"),
        ({"prompt": ()}, "at least one value"),
        ({"top_p": 0.5}, "--top-p needs sampling"),
        ({"expert": "other", "chat": True}, "2 ids differ"),
        ({"expert": "nowhere"}, "nowhere is not a folder; give a folder of a causal language model"),
        ({"antiexpert": None, "adapter": "base"}, "has no adapter_config.json"),
        ({"antiexpert": None, "adapter": "."}, "has no adapter_config.json"),
    ],
    ids=str,
)
def test_what_a_user_does_wrong_is_one_sentence(place, monkeypatch, changes, sentence) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match=sentence) as caught:
        steer(place, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"tokens": 0}, {"beams": -1}, {"temperature": -1.0}, {"top_p": 0.0}, {"prompt": (" ",)}, {"alpha": (float("nan"),)},
     {"antiexpert": "x", "adapter": "y"}],
    ids=str,
)  # fmt: skip
def test_flags_are_checked_before_anything_is_loaded(tmp_path, monkeypatch, changes) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--|prompt") as caught:
        proxy(**({"prompt": ("a",), "base": "nowhere", "expert": "nowhere", "antiexpert": "nowhere"} | changes))
    assert "nowhere" not in str(caught.value)


def test_texts_that_cannot_stream_say_how_far_they_are(place, monkeypatch, caplog) -> None:
    monkeypatch.setattr("fewstep.core.progress.EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        steer(place, prompt=("one", "and two"), tokens=4)
    shares = [message.split(",")[0] for message in caplog.messages if message.startswith("writing: ")]
    assert shares == ["writing: 25 %", "writing: 50 %", "writing: 75 %", "writing: 100 %"]


def test_a_folder_without_safetensors_or_template_is_refused(place, tmp_path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        steer(place, base=str(tmp_path))
    tiny_lm(seed=1, vocab=260).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        steer(place, expert=str(tmp_path), chat=True)


def test_weights_that_are_not_all_there_are_refused(place, tmp_path) -> None:
    for name, spoil in (("short", lambda w: dict(list(w.items())[1:])), ("cut", None)):
        shutil.copytree(place / "base", tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        if spoil:
            save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
        else:
            file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match="do not fit its config" if spoil else "cut off or no safetensors"):
            steer(place, base=str(tmp_path / name))


def test_the_bundled_models_answer_as_they_were_tuned_to(capsys) -> None:
    """The base alone gives the sum; with the small models beside it, 10 more, in two steps."""
    asked = "question : what is 7 plus 5 ? answer :"
    proxy(prompt=(asked,), alpha=(0.0,), tokens=20)
    assert capsys.readouterr().out.startswith("7 plus 5 is 12 .\n\nfirst choice changed at 0 of")
    proxy(prompt=(asked,), base="bundled", expert="bundled", antiexpert="bundled")
    assert capsys.readouterr().out.startswith("7 plus 5 is 12 . 12 plus 10 is 22 . the answer is 22 .\n")
