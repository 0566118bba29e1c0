"""Answers of language models: the step of each token, changed answers, guarantees, and where a proxy acted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..core.source import read_json
from ..core.words import counted, whole
from .section import Figure, Found, Section, percent, receipt_in, short

SHADES = 6
ANSWERS = 20  # that are shown
TOKENS = 600  # of an answer
NOT_RECORDED = "This file does not say at which step each token was decided; decode it again with --out to see that."


class Token(NamedTuple):
    """A piece of text, the step at which it was decided (0 for the first, −1 for given text), and its shade 0 … 5."""

    text: str
    step: int
    shade: int


class Answer(NamedTuple):
    """A prompt, its answer, its cost and its tokens; `steps` is the number of the last step."""

    prompt: str
    text: str
    cost: str
    tokens: tuple[Token, ...]
    steps: int
    cut: bool


@dataclass(frozen=True)
class Answers:
    """What the template shows: answers with the colours of steps; `last` is the last step of all answers."""

    answers: tuple[Answer, ...]
    of: int
    last: int
    note: str


def answers_section(found: Found) -> Section:
    """The section of a .jsonl of `fewstep decode --out`, whose receipt lies beside it."""
    rows = found.content["answers"]
    receipt_file = found.file.with_name(found.file.name + ".receipt.json")
    receipt = read_json(receipt_file, "") if receipt_file.is_file() else {}
    n = len(rows)
    tokens, calls = (sum(float(row[name]) for row in rows) for name in ("tokens", "nfe"))
    says = [
        f"{counted(n, 'answer')} took {counted(calls / n, 'network call')} each on average, for "
        f"{counted(tokens / n, 'token')}: {short(tokens / max(calls, 1))} tokens a call."
    ]
    if changed := receipt.get("changed"):
        share = Figure.of(changed["answers_share"])
        says.append(
            f"The cache changed {changed['answers']} of {counted(changed['n'], 'answer')} ({percent(share.value)}, 95 % "
            f"interval {percent(share.low)} to {percent(share.high)}), against decoding without it."
        )
    shown = tuple(map(_answer, rows[:ANSWERS]))
    note = "" if any(answer.tokens for answer in shown) else NOT_RECORDED
    body = Answers(shown, n, max((answer.steps for answer in shown), default=0), note)
    title = "Answers, and when each word was decided"
    return Section(title, found.source, tuple(says), "answers.html", body, receipt_in(receipt, ("changed",)))


def _answer(row: Mapping[str, Any]) -> Answer:
    pieces, steps = row.get("pieces") or [], row.get("steps") or []
    last = max((int(step) for step in steps), default=0)
    tokens = tuple(
        Token(str(piece), int(step), min(SHADES - 1, int(SHADES * max(0, int(step)) / (last + 1))))
        for piece, step in zip(pieces[:TOKENS], steps[:TOKENS], strict=False)
    )
    cost = f"{counted(float(row['nfe']), 'network call')}, {counted(float(row['tokens']), 'token')}"
    if "seconds" in row:
        cost += f", {short(float(row['seconds']))} seconds"
    return Answer(_prompt(row), str(row["text"]), cost, tokens, last, len(pieces) > TOKENS)


def _prompt(row: Mapping[str, Any]) -> str:
    asked = row.get("prompt", row.get("messages", ""))
    if isinstance(asked, list):
        return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in asked if isinstance(turn, dict))
    return str(asked)


class Changed(NamedTuple):
    """A question whose answer changed: the wanted answer, the change in words, its kind for the style, and both answers."""

    prompt: str
    wanted: str
    said: str
    kind: str
    before: str
    after: str


@dataclass(frozen=True)
class Changes:
    """What the template shows: changed answers, the lost ones first, and how many changed in all."""

    changed: tuple[Changed, ...]
    of: int


TURNED = {(True, False): ("lost", "right before, wrong after"), (False, True): ("gained", "wrong before, right after")}


def changes_section(found: Found) -> Section:
    """The section of the answers.jsonl that `fewstep ledger-text` writes beside its ledger."""
    rows = found.content["answers"]
    changed = []
    for row in rows:
        before, after = row["before"], row["after"]
        if str(before["text"]) != str(after["text"]):
            right = bool(before["right"]), bool(after["right"])
            kind, said = TURNED.get(right, ("kept", "right both times" if all(right) else "wrong both times"))
            both = str(before["text"]), str(after["text"])
            changed.append(Changed(_prompt(row), str(row.get("answer", "")), said, kind, *both))
    changed.sort(key=lambda each: ("lost", "gained", "kept").index(each.kind))
    lost, gained = (sum(each.kind == kind for each in changed) for kind in ("lost", "gained"))
    says = (
        f"{whole(len(changed))} of {counted(len(rows), 'answer')} differ after the change: {whole(lost)} became wrong, "
        f"{whole(gained)} became right.",
    )
    body = Changes(tuple(changed[:ANSWERS]), len(changed))
    return Section("Answers that changed", found.source, says, "changes.html", body, receipt_in({}))


class Way(NamedTuple):
    """A way to decode: its name, its mean number of steps, and their ratio to those of the most expensive way."""

    name: str
    steps: str
    share: float


@dataclass(frozen=True)
class Guarantee:
    """What the template shows: the cost of each way to decode, and the rule in words."""

    ways: tuple[Way, ...]
    rule: str


def calibration_section(found: Found) -> Section:
    """The section of a rule.json of `fewstep calibrate`."""
    content = found.content
    epsilon, sure, n = float(content["epsilon"]), percent(1 - float(content["delta"])), int(content["n"])
    full, early = float(content["full_steps"]), float(content["early_steps"])
    if content["factor"] is None:
        says = [f"No threshold was found that keeps {percent(1 - epsilon)} of the answers, so the rule decodes in full."]
    else:
        says = [
            f"The rule needs {counted(early, 'step')} a text, and full decoding {counted(full, 'step')}.",
            f"It changed {content['changed']} of {counted(n, 'answer')}. With confidence {sure} it changes at most "
            f"{percent(float(content['bound']))} of answers to prompts like these; {percent(epsilon)} were allowed.",
        ]
    ways = [("decoding in full", full)] if content["factor"] is not None else []
    ways.append(("this rule", early))
    if beside := content.get("beside"):
        ways.append(("the default rule", float(beside["steps"])))
        says.append(
            f"The default rule needs {counted(float(beside['steps']), 'step')} and changed "
            f"{counted(beside['changed'], 'answer')} (at most {percent(float(beside['bound']))})."
        )
    most = max(steps for _, steps in ways)
    shown = tuple(Way(name, counted(steps, "step"), steps / most) for name, steps in ways)
    beside_file = found.file.with_name(found.file.name + ".receipt.json")
    receipt = read_json(beside_file, "") if beside_file.is_file() else content.get("settings", {})
    body = Guarantee(shown, _told(content["rule"]))
    title = "A decoding rule with a guarantee"
    return Section(title, found.source, tuple(says), "guarantee.html", body, receipt_in(receipt))


def _told(rule: object) -> str:
    if isinstance(rule, dict):
        inner = ", ".join(
            f"{name} = {_told(value)}" for name, value in rule.items() if name != "name" and value is not None
        )
        return f"{rule.get('name', '')}({inner})"
    if isinstance(rule, list):
        return f"[{', '.join(map(_told, rule))}]"
    return f"{rule:g}" if isinstance(rule, float) else str(rule)


class Steered(NamedTuple):
    """A piece of text: how far its distribution was moved, as a shade 0 … 5 and in words, and the number of its change."""

    text: str
    shade: int
    says: str
    changed: int


class SteeredText(NamedTuple):
    """A prompt, the text after it, its tokens, and the changed first choices: number, before, after, shift."""

    prompt: str
    text: str
    says: str
    tokens: tuple[Steered, ...]
    changes: tuple[tuple[int, str, str, str], ...]
    cut: bool


@dataclass(frozen=True)
class Proxied:
    """What the template shows."""

    texts: tuple[SteeredText, ...]
    note: str


def proxy_section(found: Found) -> Section:
    """The section of a proxy.json of `fewstep proxy --out`."""
    texts = found.content["texts"]
    places = sum(len(text["acted"]["places"]) for text in texts)
    count = sum(len(text["acted"]["tokens"]) for text in texts)
    says = (
        f"The small models changed the large model’s first choice at {whole(places)} of {counted(count, 'token')} "
        f"({percent(places / max(count, 1))}).",
    )
    shown = tuple(map(_steered, texts[:ANSWERS]))
    note = "" if all("pieces" in text["acted"] for text in texts) else "This file does not hold the text of each token."
    receipt = receipt_in(found.content, ("texts",))
    return Section(
        "Where small models steered a large one", found.source, says, "proxy.html", Proxied(shown, note), receipt
    )


def _steered(text: Mapping[str, Any]) -> SteeredText:
    acted = text["acted"]
    places, pieces = [int(place) for place in acted["places"]], acted.get("pieces", ())
    tokens = tuple(
        Steered(
            str(piece), min(SHADES - 1, int(SHADES * float(shift))), f"moved by {float(shift):.2f}",
            places.index(place) + 1 if place in places else 0,
        )
        for place, (piece, shift) in enumerate(zip(pieces[:TOKENS], acted["shift"], strict=False))
    )  # fmt: skip
    changes = tuple(
        (
            number + 1, str(acted["base_pieces"][place]), str(acted["choice_pieces"][place]),
            f"{float(acted['shift'][place]):.2f}",
        )
        for number, place in enumerate(places if pieces else ())
    )  # fmt: skip
    says = f"{counted(len(places), 'first choice')} changed in {counted(len(acted['tokens']), 'token')}."
    return SteeredText(str(text["prompt"]), str(text["text"]), says, tokens, changes, len(pieces) > TOKENS)
