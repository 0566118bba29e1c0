"""Proxy-tuning through the evaluation harness, against our own likelihoods and generation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_lm import byte_tokenizer, tiny_lm, with_adapter

from fewstep.steering.combine import combined
from fewstep.steering.likelihood import loglikelihood
from fewstep.steering.tuning import ProxyTuning, generate

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from fewstep.cli.text_measuring import evaluate
from fewstep.masked.choices import Asked, Compute, Exam, Masked
from fewstep.steering.choices import Steered
from fewstep.steering.harness import ProxiedLM

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports


def models() -> list[torch.nn.Module]:
    return [tiny_lm(seed=seed, vocab=260, max_position_embeddings=128).float() for seed in range(3)]


def asked(kind: str, arguments: list[tuple[object, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, 0) for args in arguments]


def ids(text: str) -> list[int]:
    return byte_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("one_model", [False, True])
def test_likelihoods_and_texts_are_ours(one_model) -> None:
    base, expert, antiexpert = models()
    if one_model:
        tuned = ProxyTuning(with_adapter(antiexpert).float().eval(), alpha=0.7)
    else:
        tuned = ProxyTuning(expert, antiexpert, alpha=0.7)
    lm = ProxiedLM(base, tuned, byte_tokenizer(), gen_length=5, batch=3)
    pairs = [("one and", " two"), ("3", "4"), ("a longer context than that", " x"), ("3", "5")]
    found = lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    wanted = loglikelihood(base, tuned, [ids(a) for a, _ in pairs], [ids(b) for _, b in pairs])
    assert [value for value, _ in found] == pytest.approx(wanted.logprob.tolist(), abs=1e-4)
    assert [same for _, same in found] == wanted.greedy.tolist()
    texts = lm.generate_until(asked("generate_until", [(a, {"until": []}) for a, _ in pairs]), disable_tqdm=True)
    for (prompt, _), text in zip(pairs, texts, strict=True):
        row = generate(base, tuned, torch.tensor([ids(prompt)]), max_new_tokens=5, do_sample=False)[0]
        assert text == byte_tokenizer().decode(row[len(ids(prompt)) :], skip_special_tokens=True)


def test_logits_in_half_precision_are_added_in_float32() -> None:
    """The harness, our likelihood and masked predictors give the formula of the models' own logits, unrounded."""
    base, expert, antiexpert = (model.bfloat16() for model in models())
    text = ids("one and two")
    with torch.no_grad():
        logits = [model(torch.tensor([text[:-1]])).logits[0].float() for model in (base, expert, antiexpert)]
    expected = (logits[0] + 0.7 * (logits[1] - logits[2])).log_softmax(-1).gather(1, torch.tensor(text[1:])[:, None])
    tuned = ProxyTuning(expert, antiexpert, alpha=0.7)
    lm = ProxiedLM(base, tuned, byte_tokenizer(), batch=1)
    ((value, _),) = lm.loglikelihood(asked("loglikelihood", [("one", " and two")]), disable_tqdm=True)
    assert value == pytest.approx(expected[2:].sum().item(), abs=1e-4)  # in bfloat16 it is off by .005
    half = [part[None].bfloat16() for part in logits]
    parts = [part.float() for part in half]
    for made in (tuned.combine(0, *half), combined(*half, 0.7)):
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, parts[0] + 0.7 * (parts[1] - parts[2]))


def test_alpha_must_be_a_number() -> None:
    base, expert, antiexpert = models()
    with pytest.raises(ValueError, match="alpha must be one number"):
        ProxiedLM(base, ProxyTuning(expert, antiexpert, alpha=[1.0, 0.5]), byte_tokenizer())


def test_the_command_scores_a_task_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy is how often the steered model prefers the right choice; with α = 0 it is the base's."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    networks = models()
    for name, model in zip(("base", "expert", "small"), networks, strict=True):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    choices = [(f"q{n}", "a", "b") for n in range(12)]
    data = [{"q": q, "a": a, "b": b, "label": n % 2} for n, (q, a, b) in enumerate(choices)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(item) for item in data))
    (tmp_path / "task.yaml").write_text(
        f"task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{[a, b]}}'\n"
        "doc_to_target: label\ntarget_delimiter: ''\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    steered = Steered(expert=str(tmp_path / "expert"), antiexpert=str(tmp_path / "small"))
    options = {"exam": Exam(("ours",), tmp_path), "out": tmp_path / "e.json"}
    for alpha in (0.0, 3.0):
        evaluate(str(tmp_path / "base"), steered=replace(steered, alpha=alpha), **options)
        tuned = ProxyTuning(*networks[1:], alpha=alpha)
        scores = [
            loglikelihood(networks[0], tuned, [ids(q)] * 2, [ids(a), ids(b)]).logprob.argmax().item() for q, a, b in choices
        ]
        right = sum(score == n % 2 for n, score in enumerate(scores))
        assert json.loads((tmp_path / "e.json").read_text())["results"]["ours"]["acc,none"] == pytest.approx(right / 12)
    with pytest.raises(ValueError, match="are for masked models"):
        evaluate(str(tmp_path / "base"), masked=Masked(asked=Asked(guidance=2.0)), steered=steered, **options)
    with pytest.raises(ValueError, match="are for masked models"):
        evaluate(str(tmp_path / "base"), compute=Compute(precision="bf16"), steered=steered, **options)
    with pytest.raises(ValueError, match="need --expert"):
        evaluate(str(tmp_path / "base"), steered=Steered(adapter="x"), **options)
