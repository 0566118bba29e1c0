"""The loop against plain single-row loops that follow the papers line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from masked.toy import EOS, MASK, VOCABULARY, Toy, masks
from torch import Tensor, nn

from fewstep.masked.decoding import Decoded, decode, stream, walk
from fewstep.masked.early import EarlyCommit, StableAndConfident
from fewstep.masked.predictor import Canvas, Guided, pad
from fewstep.masked.prompts import StopStrings, canvas_row
from fewstep.masked.rules import KLASS, Blockwise, Threshold, TopK
from fewstep.masked.schedule import Span, Stairs, Suffix
from fewstep.masked.step import CommitRule, Step

PROMPTS = ["", "01", "0123456", "98", "5", "77777", "314159", "27182"]


def forward(toy: Toy, row: Tensor) -> Tensor:
    """Logits (L, V) of one row at all positions, the mask token impossible."""
    canvas = pad([row], -1)._replace(open=(row == MASK)[None])
    logits = toy(canvas, canvas.valid)
    logits[:, MASK] = -torch.inf
    return logits


def plain_llada(toy: Toy, prompt: str, gen_length: int, block_length: int, steps: int) -> tuple[list[int], int]:
    """LLaDA's semi-autoregressive decoding with low-confidence remasking, one row; ids and number of forwards."""
    row = masks(prompt + "_" * gen_length)
    blocks = gen_length // block_length
    forwards = 0
    for block in range(blocks):
        lo = len(prompt) + block * block_length
        hi = lo + block_length
        n, s = int((row[lo:hi] == MASK).sum()), steps // blocks
        for k in [n // s + (i < n % s) for i in range(s)]:
            p = forward(toy, row).softmax(-1)
            forwards += 1
            confidence, x0 = p.max(-1)
            eligible = [i for i in range(lo, hi) if row[i] == MASK]
            for i in sorted(eligible, key=lambda i: -confidence[i])[:k]:
                row[i] = x0[i]
    return row.tolist(), forwards


def plain_prophet(
    toy: Toy, row: Tensor, start: int, region: range, block_length: int, steps: int, taus: tuple[float, ...]
) -> tuple[list[int], int, bool]:
    """Prophet over LLaDA's decoding, one row: the gaps of ALL positions of the answer region are averaged."""
    row, forwards, blocks = row.clone(), 0, (len(row) - start) // block_length
    for block in range(blocks):
        lo, hi = start + block * block_length, start + (block + 1) * block_length
        n, s = int((row[lo:hi] == MASK).sum()), steps // blocks
        for k in [n // s + (i < n % s) for i in range(s)]:
            if not (row == MASK).any():
                return row.tolist(), forwards, False  # the published loop goes on and changes nothing
            logits = forward(toy, row)
            progress = forwards / steps
            forwards += 1
            x0 = logits.argmax(-1)
            top = logits.sort(-1, descending=True).values
            gap = sum(float(top[i, 0] - top[i, 1]) for i in region) / len(region)
            tau = taus[0] if progress < 0.33 else taus[1] if progress < 0.67 else taus[2]
            if gap >= tau:
                row[row == MASK] = x0[row == MASK]
                return row.tolist(), forwards, True
            confidence = logits.softmax(-1).amax(-1)
            eligible = [i for i in range(lo, hi) if row[i] == MASK]
            for i in sorted(eligible, key=lambda i: -confidence[i])[:k]:
                row[i] = x0[i]
    return row.tolist(), forwards, False


@pytest.mark.parametrize(
    ("gen_length", "block_length", "steps"), [(12, 12, 12), (12, 4, 12), (12, 4, 6), (12, 6, 8), (8, 8, 3)]
)
def test_top_k_in_blocks_is_plain_llada_at_every_prompt_length(gen_length: int, block_length: int, steps: int) -> None:
    toy = Toy()
    rows = [masks(prompt + "_" * gen_length) for prompt in PROMPTS]
    decoded = decode(toy, rows, Blockwise(TopK(), block_length), steps=steps)
    for prompt, row in zip(PROMPTS, decoded, strict=True):
        ids, forwards = plain_llada(toy, prompt, gen_length, block_length, steps)
        assert row.ids.tolist() == ids and row.nfe == forwards == steps
        assert row.start == len(prompt)


@pytest.mark.parametrize("taus", [(6.0, 4.5, 3.0), (7.5, 5.0, 2.5), (40.0, 40.0, 40.0), (5.0, 5.0, 5.0)])
@pytest.mark.parametrize("region", [None, "suffix"])
def test_prophet_as_published(taus: tuple[float, float, float], region: str | None) -> None:
    toy, early = Toy(scale=4.0), 0
    rows, fixed = [], {8: [3, 2]} if region else {}
    for prompt in PROMPTS:
        rows.append(canvas_row(masks(prompt).tolist(), 12, MASK, fixed=fixed))
    rule = EarlyCommit(Blockwise(TopK(), 4), Stairs(taus), region=Suffix() if region else None, over="region")
    for prompt, row, got in zip(PROMPTS, rows, decode(toy, rows, rule, steps=12), strict=True):
        start = len(prompt)
        answer = range(start + 10, start + 12) if region else range(start, start + 12)
        ids, forwards, stopped = plain_prophet(toy, row, start, answer, 4, 12, taus)
        assert got.ids.tolist() == ids
        assert got.nfe == forwards
        early += stopped
    assert early == 0 if taus[0] == 40 else early > 0


def test_prophet_by_default_averages_what_is_undecided_only() -> None:
    toy = Toy(scale=1.2)
    walked = next(walk(toy, [masks("01____"), masks("2__4_")], EarlyCommit(TopK(), Stairs((99.0,), ()))))
    gaps = walked.step.gap
    known = EarlyCommit().known(walked.step)
    torch.testing.assert_close(known[0], gaps[0, 2:].mean())
    torch.testing.assert_close(known[1], (gaps[1, 1] + gaps[1, 2] + gaps[1, 4]) / 3)


def test_network_calls_are_counted_at_the_network_and_finished_rows_leave() -> None:
    toy, sizes = Toy(), []
    toy.register_forward_hook(lambda _, args, out: sizes.append((len(args[0].ids), args[0].ids.shape[1])))
    rows = [masks("1_"), masks("0123______"), masks("1___")]
    decoded = decode(toy, rows, TopK())
    assert sizes == [(3, 10), (2, 10), (2, 10), (1, 10), (1, 10), (1, 10)]
    assert [row.nfe for row in decoded] == [1, 6, 3]
    sizes.clear()
    guided = decode(Guided(toy, 2.0), rows, TopK())
    assert sizes[0] == (6, 10) and [row.nfe for row in guided] == [2, 12, 6]


def test_guided_decoding_differs_and_is_independent_of_the_batch() -> None:
    rows = [masks(prompt + "______") for prompt in PROMPTS]
    guided = decode(Guided(Toy(), 3.0), rows, TopK())
    assert [r.ids.tolist() for r in guided] != [r.ids.tolist() for r in decode(Toy(), rows, TopK())]
    for row, one in zip(rows, guided, strict=True):
        assert torch.equal(decode(Guided(Toy(), 3.0), [row], TopK())[0].ids, one.ids)


def test_batches_are_cut_without_a_trace() -> None:
    rows = [masks(prompt + "______") for prompt in PROMPTS]
    for temperature in (0.0, 1.0):
        a, b = (decode(Toy(), rows, TopK("chance"), temperature=temperature, batch=batch) for batch in (3, 8))
        assert [r.ids.tolist() for r in a] == [r.ids.tolist() for r in b]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "rule",
    [
        TopK("chance"),
        KLASS(0.2, 2.0, 1),
        StableAndConfident(TopK(), 1, 0.8),
        Blockwise(EarlyCommit(TopK(), Stairs((2.0,), ())), 3),
    ],
)
def test_a_finished_row_makes_room_for_the_next(rule: CommitRule, temperature: float) -> None:
    toy, sizes = Toy(), []
    rows = [masks("0" * (n % 4) + "_" * (1 + (5 * n) % 9)) for n in range(11)]
    alone = [decode(toy, [row], rule, temperature=temperature, seeds=[n])[0] for n, row in enumerate(rows)]
    toy.register_forward_hook(lambda _, args, out: sizes.append(len(args[0].ids)))
    together = decode(toy, rows, rule, temperature=temperature, batch=3)
    for one, row in zip(alone, together, strict=True):
        assert torch.equal(one.ids, row.ids) and torch.equal(one.committed_at, row.committed_at) and one.nfe == row.nfe
    assert sum(sizes) == sum(row.nfe for row in alone)
    full = sizes.count(3)
    assert set(sizes[:full]) == {3} and sizes[full:] == sorted(sizes[full:], reverse=True)  # full until nobody waits


def test_rows_of_like_length_share_a_batch() -> None:
    toy, padded = Toy(), 0

    def count(_: nn.Module, args: tuple[Canvas, Tensor]) -> None:
        nonlocal padded
        padded += int((~args[0].valid).sum())

    toy.register_forward_pre_hook(count)
    rows = [masks("_" * length) for length in (3, 9, 3, 9)]
    assert [len(row.ids) for row in decode(toy, rows, TopK(), batch=2)] == [3, 9, 3, 9] and padded == 0


def test_an_end_of_text_ends_a_row_once_everything_before_it_is_decided() -> None:
    toy = Toy(eos_bias=5.0)
    rows = [masks(prompt + "_" * 10) for prompt in PROMPTS]
    full, cut = (decode(toy, rows, TopK(), eos=eos) for eos in (False, True))
    assert all(len(row.ids) == len(given) for row, given in zip(full, rows, strict=True))
    assert any(len(row.ids) < len(given) for row, given in zip(cut, rows, strict=True))
    assert sum(row.nfe for row in cut) < sum(row.nfe for row in full)
    for whole, row in zip(full, cut, strict=True):
        assert torch.equal(whole.ids[: len(row.ids)], row.ids)  # what was decided before is the same
        assert (row.committed_at[row.start :] >= 0).all() and EOS not in row.tokens[:-1]
        if EOS in whole.tokens:
            assert len(row.tokens) == whole.tokens.index(EOS) + 1 and row.tokens[-1] == EOS


def test_text_behind_an_end_of_text_is_reached_first() -> None:
    toy = Toy(eos_bias=5.0)
    rows = [canvas_row(masks(prompt).tolist(), 10, MASK, fixed={6: [3, 2]}) for prompt in PROMPTS]
    decoded = decode(toy, rows, TopK())
    assert any(EOS in row.tokens[:6] for row in decoded)
    for row in decoded:
        assert row.tokens[6:8] == [3, 2] and len(row.tokens) > 8
        assert row.committed_at[row.start + 6 : row.start + 8].tolist() == [-1, -1]


class Letters:
    """Stands for a tokenizer: token 0 is a, 1 is b, …"""

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in tokens)


def test_stop_strings() -> None:
    rows = [masks(prompt + "_" * 10) for prompt in PROMPTS]
    full = decode(Toy(), rows, Blockwise(TopK(), 1))
    string = Letters().decode(full[1].tokens[3:5])  # two tokens that will be there
    cut = decode(Toy(), rows, Blockwise(TopK(), 1), stop=StopStrings(Letters(), (string,)))  # type: ignore[arg-type]
    for whole, row in zip(full, cut, strict=True):
        text = Letters().decode(whole.tokens)
        expected = text[: text.index(string) + 2] if string in text else text
        assert Letters().decode(row.tokens) == expected and row.nfe == len(expected)
    assert len(cut[1].tokens) <= 5


def test_a_stop_string_counts_behind_the_last_given_text_only() -> None:
    row = canvas_row([1], 9, MASK, fixed={4: [3, 2]})
    whole = decode(Toy(), [row], Blockwise(TopK(), 1))[0]
    before, behind = whole.tokens[:4], whole.tokens[6:]
    for token in set(before) - set(behind):
        stop = StopStrings(Letters(), (Letters().decode([token]),))  # type: ignore[arg-type]
        assert torch.equal(decode(Toy(), [row], Blockwise(TopK(), 1), stop=stop)[0].ids, whole.ids)
    assert set(before) - set(behind)


@pytest.mark.parametrize(("steps", "entropy"), [(1, 1.0), (2, 1.0), (0, 0.8), (1, 0.6)])
def test_stable_and_confident_is_a_plain_loop_with_a_history(steps: int, entropy: float) -> None:
    toy, early = Toy(scale=3.0), 0
    rows = [masks(prompt + "_" * 10) for prompt in PROMPTS]
    for given, got in zip(rows, decode(toy, rows, StableAndConfident(TopK(), steps, entropy)), strict=True):
        row, history, forwards = given.clone(), list[Tensor](), 0
        while (row == MASK).any():
            p = forward(toy, row).softmax(-1)
            forwards += 1
            confidence, x0 = p.max(-1)
            left = [i for i in range(len(row)) if row[i] == MASK]
            history.append(x0)
            stable = len(history) > steps and all(h[i] == x0[i] for h in history[-1 - steps :] for i in left)
            mean = sum(-float((p[i] * p[i].clamp(min=1e-300).log()).sum()) for i in left) / len(left)
            if stable and mean < entropy:
                early += len(left) > 1
                row[left] = x0[left]
            else:
                best = max(left, key=lambda i: float(confidence[i]))
                row[best] = x0[best]
        assert got.ids.tolist() == row.tolist() and got.nfe == forwards
    assert early > 0


def test_noise_is_fresh_at_every_step() -> None:
    class Flat(Toy):
        def forward(self, canvas: Canvas, wanted: Tensor) -> Tensor:
            return torch.zeros(int(wanted.sum()), VOCABULARY)

    walked = list(walk(Flat(), [masks("_" * 12)], Blockwise(TopK("chance"), 12), temperature=1.0))
    last = int(walked[-1].step.masked[0].nonzero()[0])  # the position that stays open until the end
    proposals = [int(w.step.proposal[0, last]) for w in walked]
    assert len(set(proposals)) > 4


def test_a_stream_joined_is_what_decode_returns() -> None:
    toy = Toy(eos_bias=3.0)
    rows = [masks(prompt + "_" * 6 + "12" + "_" * 4) for prompt in PROMPTS]
    rule: CommitRule = Blockwise(Threshold(0.6), 3)
    text: dict[int, list[int]] = {n: [] for n in range(len(rows))}
    ends: dict[int, Decoded] = {}
    pieces = list(stream(walk(toy, rows, rule)))
    for number, tokens, end in pieces:
        assert number not in ends
        text[number] += tokens
        if end:
            ends[number] = end
    for number, row in enumerate(decode(toy, rows, rule)):
        assert text[number] == row.tokens == ends[number].tokens
    assert len(pieces) > 2 * len(rows)


def test_temperature_samples_from_the_softmax() -> None:
    """One mask, 4000 seeds: the frequency of each token within four standard errors of softmax(logits/T)."""
    toy, n, temperature = Toy(scale=0.5), 4000, 0.7
    row = masks("12_4")
    p = (forward(toy, row)[2] / temperature).softmax(-1)
    drawn = [r.tokens[0] for r in decode(toy, [row] * n, TopK(), temperature=temperature, batch=n)]
    share = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / n
    assert ((share - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-9).all() and share[MASK] == 0
    assert (p > 0.01).sum() > 3


def test_seeds_name_the_sample() -> None:
    row = masks("12______")
    a = decode(Toy(), [row] * 4, TopK(), temperature=2.0, seeds=[7, 8, 7, 9])
    assert a[0].tokens == a[2].tokens != a[1].tokens
    assert decode(Toy(), [row], TopK(), temperature=2.0, seeds=[8])[0].tokens == a[1].tokens


def test_steps_are_bounded_and_spans_are_infilled() -> None:
    row = masks("_1__22__3_")
    decoded = decode(Toy(), [row], Blockwise(TopK(), 3), steps=4)[0]
    assert decoded.nfe == 4 and decoded.start == 0 and torch.equal(decoded.ids[row != MASK], row[row != MASK])
    answer = EarlyCommit(TopK(), Stairs((0.0,), ()), region=Span(-1))
    assert decode(Toy(), [row], answer)[0].nfe == 1


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [("123", {}, "without a mask token"), ("1_", {"steps": 0}, "at least one step")],
)
def test_what_cannot_be_decoded(row: str, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode(Toy(), [masks(row)], TopK(), **options)  # type: ignore[arg-type]
    assert decode(Toy(), [], TopK()) == []


def test_rules_that_break_the_contract_are_caught() -> None:
    class Lazy(TopK):
        def __call__(self, step: Step) -> Tensor:
            return torch.zeros_like(step.masked)

    class Greedy(TopK):
        def __call__(self, step: Step) -> Tensor:
            return torch.ones_like(step.masked)

    with pytest.raises(ValueError, match="committed nothing"):
        decode(Toy(), [masks("12__")], Lazy())
    assert decode(Toy(), [masks("12__3")], Greedy())[0].ids[[0, 1, 4]].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="got 1 seeds for 2 rows"):
        decode(Toy(), [masks("12__")] * 2, TopK(), seeds=[3])


@pytest.mark.parametrize(
    ("options", "sentence"), [({"batch": 0}, "at least one row"), ({"temperature": -1.0}, "must not be negative")]
)
def test_what_makes_no_sense_is_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode(Toy(), [masks("0__")], TopK(), **options)


def test_logits_that_are_not_numbers_stop_it() -> None:
    toy = Toy()
    toy.out[3, 5] = torch.nan
    with pytest.raises(FloatingPointError, match="not numbers"):
        decode(toy, [masks("0__")], TopK())


def test_progress_adds_up_to_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that an end of text leaves undecided are done with it, and each step says what it did."""
    said: list[float] = []

    @contextmanager
    def spy(title: str, total: float) -> Iterator[Callable[[float], None]]:
        said.append(-total)
        yield said.append

    monkeypatch.setattr("fewstep.masked.decoding.progress", spy)
    rows = [masks(row + "_" * 9) for row in ("", "01", "5__5", "31415")]
    found = decode(Toy(eos_bias=3.0), rows, Blockwise(TopK(), 2), batch=3)
    assert said[0] == -sum(int((row == MASK).sum()) for row in rows) and sum(said) == 0
    assert any(len(row.ids) < len(canvas) for row, canvas in zip(found, rows, strict=True)) and min(said[1:]) > 0
