"""The harness's own evaluation, offline, against what our functions say directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from masked.toy import MASK, Toy

from fewstep.masked.decoding import decode
from fewstep.masked.likelihood import is_greedy, log_likelihood
from fewstep.masked.rules import TopK

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from fewstep.masked.harness import HarnessLM


class Digits:
    """Stands for a tokenizer: every digit is a token, a space is token 9."""

    name_or_path, chat_template = "some/digits", "{{ messages }}"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [9 if letter == " " else int(letter) for letter in text]}

    def decode(self, tokens: list[int], **options: bool) -> str:
        return "".join(" " if token == 9 else str(token) for token in tokens)

    def apply_chat_template(self, history: list[dict[str, str]], **options: bool) -> str:
        assert not options["tokenize"] and options["continue_final_message"] is not options["add_generation_prompt"]
        return "0".join(turn["content"] for turn in history) + "1" * options["add_generation_prompt"]


def model(**options: Any) -> HarnessLM:
    return HarnessLM(Toy(), Digits(), rule=TopK(), gen_length=6, draws=8, **options)  # type: ignore[arg-type]


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, 0) for args in arguments]


def test_likelihoods_are_ours() -> None:
    pairs = [("12", "3"), ("12 ", "34"), ("", "567"), ("4", " 5")]
    texts = [([1, 2], [3]), ([1, 2], [9, 3, 4]), ([], [5, 6, 7]), ([4], [9, 5])]
    found = model().loglikelihood(instances("loglikelihood", pairs))
    bounds = log_likelihood(Toy(), texts, draws=8)
    assert found == [(b.value, g) for b, g in zip(bounds, is_greedy(Toy(), texts), strict=True)]
    rolled = model(max_length=2).loglikelihood_rolling(instances("loglikelihood_rolling", [("12345",)]))
    parts = log_likelihood(Toy(), [((), [1, 2]), ((), [3, 4]), ((), [5])], draws=8)
    assert rolled == [pytest.approx(sum(part.value for part in parts))]


def test_long_contexts_lose_their_beginning() -> None:
    found = model(max_length=4).loglikelihood(instances("loglikelihood", [("12345", "67"), ("1", "2345")]))
    expected = log_likelihood(Toy(), [([4, 5], [6, 7]), ([], [2, 3, 4, 5])], draws=8)
    assert [value for value, _ in found] == [e.value for e in expected]


def test_generation_stops_and_keeps_the_order() -> None:
    row = torch.tensor([1, 2, *[MASK] * 6])
    text = Digits().decode(decode(Toy(), [row], TopK())[0].tokens)
    lm = model()
    requests = [("12", {"until": [text[2], ""], "max_gen_toks": 6}), ("3", {"max_gen_toks": 2}), ("12", {})]
    first, second, third = lm.generate_until(instances("generate_until", requests))
    assert (
        first == text[: text.index(text[2])]
        and third == text
        and len(second) == 2
        and len(lm.nfe) == len(lm.positions) == 3
    )
    assert all(positions > 2 * nfe for positions, nfe in zip(lm.positions, lm.nfe, strict=True))
    sampled = instances("generate_until", [("12", {"do_sample": True, "temperature": 3.0})])
    assert model(seed=1).generate_until(sampled) != [text]
    as_the_harness = {"until": ".", "temperature": 0.8, "max_new_tokens": 9}
    assert model()._generation(as_the_harness) == ((".",), 9, 0.8)
    assert model().loglikelihood_rolling(instances("loglikelihood_rolling", [("",)])) == [0.0]
    with pytest.raises(ValueError, match="sampling does not support top_p"):
        model().generate_until(instances("generate_until", [("1", {"do_sample": True, "top_p": 0.9})]))


def test_contexts_and_answers_share_the_model() -> None:
    """An answer is as long as asked, as long as the context leaves that or it is half of the model."""
    for context, asked, length in [(3, 5, 5), (3, 13, 13), (3, 20, 13), (10, 8, 8), (10, 12, 8), (15, 12, 8), (30, 3, 3)]:
        row = model(max_length=16)._canvas(list(range(context)), asked)
        kept = list(range(context))[-(16 - length) :]
        assert row.tolist() == [*kept, *[MASK] * length]


class Special(Digits):
    """Writes a token 7 before a text and 8 behind it."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = super().__call__(text)["input_ids"]
        return {"input_ids": [7, *ids, 8] if add_special_tokens else ids}


def test_leading_special_tokens_stand_before_every_context() -> None:
    def asked(**options: Any) -> HarnessLM:
        return HarnessLM(Toy(), Special(), rule=TopK(), draws=8, **options)  # type: ignore[arg-type]

    pairs = [("12", "3"), ("", "56"), ("12345", "60")]
    found = asked(max_length=5).loglikelihood(instances("loglikelihood", pairs))
    texts = [([7, 1, 2], [3]), ([7], [5, 6]), ([7, 4, 5], [6, 0])]
    assert [value for value, _ in found] == [bound.value for bound in log_likelihood(Toy(), texts, draws=8)]
    rolled = asked(max_length=3).loglikelihood_rolling(instances("loglikelihood_rolling", [("1234",)]))
    parts = log_likelihood(Toy(), [([7], [1, 2]), ([7], [3, 4])], draws=8)
    assert rolled == [pytest.approx(sum(part.value for part in parts))]
    (text,) = asked().generate_until(instances("generate_until", [("12", {"max_gen_toks": 3})]))
    assert text == Digits().decode(decode(Toy(), [torch.tensor([7, 1, 2, *[MASK] * 3])], TopK())[0].tokens)
    assert asked(chat=True)._encode("12") == [1, 2]  # a template brings its own


def test_chat_templates_are_the_tokenizers() -> None:
    lm = model(chat=True)
    turns = [{"role": "user", "content": "12"}, {"role": "user", "content": "3"}]
    assert lm.apply_chat_template(turns) == "12031"
    assert lm.apply_chat_template(turns, add_generation_prompt=False) == "1203"
    assert lm.chat_template(True) == "{{ messages }}" and lm.tokenizer_name.startswith("some__digits-")
    with pytest.raises(ValueError, match=r"make the model with HarnessLM\(…, chat=True\)"):
        model().apply_chat_template(turns)


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_a_task_of_our_own_through_simple_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    toy = Toy()
    contexts = ["12", "3", "456", "7", "88", "90"]
    rows = [torch.tensor([*(int(c) for c in context), MASK, MASK]) for context in contexts]
    answers = [Digits().decode(row.tokens) for row in decode(toy, rows, TopK())]
    answers[3:] = ["00", "00", "00"]  # never what the toy says here
    data = [{"context": c, "answer": a} for c, a in zip(contexts, answers, strict=True)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(item) for item in data))
    (tmp_path / "task.yaml").write_text(
        f"task: digits\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{context}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs:\n  until: []\n  max_gen_toks: 2\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model=model(), tasks=["digits"], task_manager=manager, bootstrap_iters=0, log_samples=False)
    right = sum(a == Digits().decode(row.tokens) for a, row in zip(answers, decode(toy, rows, TopK()), strict=True))
    assert found["results"]["digits"]["exact_match,none"] == pytest.approx(right / 6) and 0 < right < 6
