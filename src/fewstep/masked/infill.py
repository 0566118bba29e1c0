"""Fixed text with holes, such as `{"name": "<<8:string>>", "age": <<2:integer>>}`, whose fillings match patterns.

A pattern is a regular expression, turned into an automaton over tokens. A position of a hole may get only tokens with which
the whole hole can still match, given all tokens that are decided on its left and right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .predictor import Canvas, MaskPredictor, places
from .prompts import PROBE, bare
from .reading import Reading
from .step import Around, Change, CommitRule, Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HOLE = re.compile(r"<<(\d+)(?::(.*?))?>>", re.DOTALL)
PATTERNS = {  # by name, as in JSON; "string" is the text between quotation marks
    "string": r'[^"\\\x00-\x1f]*', "integer": r"-?(0|[1-9][0-9]*)", "number": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    "boolean": r"true|false",
}  # fmt: skip
MOST = 1 << 28  # largest number of entries in an automaton's table, states times tokens

States = npt.NDArray[np.bool_]  # (Q,), a set of states


class Automaton:
    """The tokens that may stand at each position of a hole, so that their text matches a pattern.

    Args:
        pattern: a regular expression.
        first, rest: the text of each token at the beginning of a hole, and after another token; None if it may not stand.
        filler: a token that may repeat at the end of a hole and is not shown; None if there is none.

    Raises:
        ValueError: the pattern is no regular expression, or has too many states.
    """

    def __init__(
        self, pattern: str, first: Sequence[str | None], rest: Sequence[str | None], filler: int | None = None
    ) -> None:
        from interegular import parse_pattern

        try:
            machine: Any = parse_pattern(pattern).to_fsm()
            machine = machine.reduce()
        except Exception as error:  # its errors have no common base class
            raise ValueError(f"{pattern!r} is no regular expression that a hole can keep to: {error}") from error
        number = {state: place for place, state in enumerate(sorted(machine.states))}
        self.end, self.dead = len(number), len(number) + 1  # the state after a filler; the state without a match
        if (self.dead + 1) * len(rest) > MOST:
            raise ValueError(f"{pattern!r} makes {len(number)} states, too many for {len(rest)} tokens; take a simpler one")
        moves = np.full((self.dead + 1, 1 + max(machine.alphabet.values())), self.dead, np.int32)
        for state, ways in machine.map.items():
            for symbol, after in ways.items():
                moves[number[state], symbol] = number[after]
        self.start = _flags(self.dead + 1, number[machine.initial])
        self.accept = _flags(self.dead + 1, *(number[state] for state in machine.finals))
        self.rest = self._table(moves, machine.alphabet, rest, filler)
        self.first = self.rest if first == rest else self._table(moves, machine.alphabet, first, filler)
        self.accept[self.end] = True
        self._ways: dict[int, States] = {}

    def _table(self, moves: Any, alphabet: Any, texts: Sequence[str | None], filler: int | None) -> npt.NDArray[np.int32]:
        """The state after each token, (Q, V), from each state."""
        table = np.tile(np.arange(self.dead + 1, dtype=np.int32)[:, None], (1, len(texts)))
        known = [token for token, text in enumerate(texts) if text]
        table[:, [token for token, text in enumerate(texts) if not text]] = self.dead
        for place in range(max((len(texts[token] or "") for token in known), default=0)):
            known = [token for token in known if len(texts[token] or "") > place]
            symbols = [alphabet[(texts[token] or "")[place]] for token in known]
            table[:, known] = moves[table[:, known], symbols]
        if filler is not None:
            table[:, filler] = np.where(self.accept, self.end, self.dead)
            table[self.end] = self.dead
            table[self.end, filler] = self.end
        return table

    def allowed(self, decided: Sequence[int | None]) -> list[States | None] | None:
        """The tokens that may stand at each position of a hole, (V,); None at decided positions.

        Args:
            decided: the token at each position, None where it is open.

        Returns:
            None if no tokens can make a match any more.
        """
        tables = [self.first, *[self.rest] * (len(decided) - 1)]
        ahead = [self.accept]  # states from which the remaining positions can match
        for table, token in zip(reversed(tables), reversed(decided), strict=True):
            ahead.append((self._way(table) @ ahead[-1]) if token is None else ahead[-1][table[:, token]])
        ahead.reverse()
        here = self.start & ahead[0]
        found: list[States | None] = []
        if not here.any():
            return None
        for table, token, then in zip(tables, decided, ahead[1:], strict=True):
            states = np.flatnonzero(here)
            if token is None:
                found.append(np.asarray(then[table[states]].any(0)))
                here = self._way(table)[states].any(0) & then
            else:
                found.append(None)
                here = _flags(len(then), *table[states, token]) & then
        return found

    def _way(self, table: npt.NDArray[np.int32]) -> States:
        """Whether some token leads from one state to the other, (Q, Q)."""
        if id(table) not in self._ways:
            way = np.zeros((len(table), len(table)), bool)
            for state, after in enumerate(table):
                way[state, np.unique(after)] = True
            self._ways[id(table)] = way
        return self._ways[id(table)]


@dataclass(frozen=True)
class Hole:
    """A hole of a template.

    Attributes:
        start: its first column, counted from the first column of the template's first hole.
        length: its number of tokens.
        automaton: restricts the filling; None allows anything.
    """

    start: int
    length: int
    automaton: Automaton | None = field(repr=False)

    def state(self, ids: Sequence[int], first: int, mask_id: int) -> list[int | None]:
        """The decided tokens in this hole, None where open, in a row whose first hole begins at column `first`."""
        return [None if token == mask_id else token for token in ids[first + self.start : first + self.start + self.length]]


@dataclass(frozen=True)
class Template:
    """Fixed text with holes, in tokens.

    Attributes:
        lead: the text before the first hole.
        tokens: of the whole text, with a mask token for each position of a hole.
        holes: in order.
    """

    lead: str
    tokens: tuple[int, ...]
    holes: tuple[Hole, ...]

    @classmethod
    def of(
        cls,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        mask_id: int,
        *,
        never: Sequence[int] = (),
        ends: Sequence[int] = (),
    ) -> Template:
        """A template from its text, where a hole is `<<n>>` or `<<n:pattern>>`.

        Args:
            text: n is the number of tokens of a hole. A pattern is a name of `PATTERNS` or a regular expression. The
                filling may be shorter if the tokenizer has a token that ends a text.
            tokenizer: of the model.
            mask_id: its mask token.
            never: tokens that are never generated.
            ends: tokens that end a text.

        Raises:
            ValueError: there is no hole, or a hole has no tokens or too few for its pattern.
        """
        tokens, holes, made, at = [], [], {}, 0
        texts: tuple[list[str | None], list[str | None]] | None = None
        filler = next((token for token in ends if token in tokenizer.all_special_ids), None)
        matches = list(HOLE.finditer(text))
        for match in matches:
            tokens += bare(tokenizer, text[at : match.start()])
            at, length, pattern = match.end(), int(match[1]), match[2]
            if length < 1:
                raise ValueError(f"the hole {match[0]} has no tokens; give their number in <<n>>")
            if pattern is not None and pattern not in made:
                texts = texts or token_texts(tokenizer, {*never, mask_id})
                made[pattern] = Automaton(PATTERNS.get(pattern, pattern), *texts, filler)
            automaton = None if pattern is None else made[pattern]
            if automaton and automaton.allowed([None] * length) is None:
                raise ValueError(
                    f"no {length} tokens of this model make a text that matches {pattern!r}; change length or pattern"
                )
            holes.append(Hole(len(tokens), length, automaton))
            tokens += [mask_id] * length
        if not holes:
            raise ValueError(
                "there is no hole in this text; write one as <<8>>, <<8:string>> or <<4:[a-z]+>>, with its number of tokens"
            )
        tokens += bare(tokenizer, text[at:])
        first = holes[0].start
        moved = tuple(replace(hole, start=hole.start - first) for hole in holes)
        return cls(text[: matches[0].start()], tuple(tokens), moved)


def token_texts(tokenizer: PreTrainedTokenizerBase, never: set[int]) -> tuple[list[str | None], list[str | None]]:
    """The text of each token at the beginning of a text, and after another token.

    None for special and added tokens, tokens with a part of a character, and those in `never`.
    """
    probe = bare(tokenizer, PROBE)
    numbers = range(len(tokenizer))
    options: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    before = len(tokenizer.decode(probe, **options))
    alone = tokenizer.batch_decode([[number] for number in numbers], **options)
    behind = [text[before:] for text in tokenizer.batch_decode([[*probe, number] for number in numbers], **options)]
    left_out = never | set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())

    def known(texts: list[str]) -> list[str | None]:
        return [
            None if number in left_out or "\N{REPLACEMENT CHARACTER}" in text else text for number, text in enumerate(texts)
        ]

    return known(alone), known(behind)


class Kept:
    """A predictor that predicts in the holes of a template only tokens that fit the patterns; other logits are −inf.

    In each row the template's first hole begins at the first open position. The host reads the decided tokens at each step.

    Args:
        predictor: the model, guided or not.
        template: of all rows.
    """

    def __init__(self, predictor: MaskPredictor, template: Template) -> None:
        self.predictor, self.template = predictor, template
        self.mask_id, self.eos_ids, self.networks = predictor.mask_id, predictor.eos_ids, predictor.networks

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return self.reading(canvas).read(canvas, wanted, canvas.valid)

    def reading(self, canvas: Canvas) -> Reading:
        return _Kept(self.predictor.reading(canvas), self.template, self.mask_id)


@dataclass(frozen=True)
class _Kept:
    """The reading of a `Kept`."""

    reading: Reading
    template: Template
    mask_id: int

    def read(self, canvas: Canvas, wanted: Tensor, changed: Tensor) -> Tensor:
        logits = self.reading.read(canvas, wanted, changed)
        number = {place: n for n, place in enumerate(zip(*(part.tolist() for part in places(wanted)), strict=True))}
        first = first_open(canvas.open)
        for row, ids in enumerate(canvas.ids.tolist()):
            for hole in self.template.holes:
                decided = hole.state(ids, first[row], self.mask_id)
                column = first[row] + hole.start
                asked = {place: number.get((row, column + place)) for place, token in enumerate(decided) if token is None}
                if hole.automaton is None or not any(n is not None for n in asked.values()):
                    continue
                allowed = hole.automaton.allowed(decided)
                assert allowed is not None, "the decided tokens can still match"
                for place, n in asked.items():
                    if n is not None:
                        told = torch.from_numpy(allowed[place]).to(logits.device)
                        logits[n, : len(told)].masked_fill_(~told, -torch.inf)
                        logits[n, len(told) :] = -torch.inf
        return logits

    def keep(self, rows: Sequence[int]) -> _Kept:
        return replace(self, reading=self.reading.keep(rows))

    def join(self, other: _Kept) -> _Kept:
        return replace(self, reading=self.reading.join(other.reading))


@dataclass(frozen=True)
class Together(Around):
    """A rule that commits in a hole at once only tokens that fit together; the most confident ones first, the rest later.

    Args:
        rule: proposes the commits.
        template: of all rows.
        mask_id: the mask token.
    """

    rule: CommitRule
    template: Template = field(repr=False)
    mask_id: int

    def __call__(self, step: Step) -> Tensor | Change:
        said = self.rule(step)  # the loop commits masked positions only
        commit = (said.commit if isinstance(said, Change) else said) & step.masked
        held = step.held.masked_fill(step.held < 0, self.mask_id)
        if isinstance(said, Change):
            held = held.masked_fill(said.reopen, self.mask_id)
        late = torch.zeros_like(commit)
        for row, column in self._late(commit.tolist(), held.tolist(), step, first_open(step.open)):
            late[row, column] = True
        return said._replace(commit=commit & ~late) if isinstance(said, Change) else commit & ~late

    def _late(
        self, commit: list[list[bool]], held: list[list[int]], step: Step, first: list[int]
    ) -> Iterator[tuple[int, int]]:
        """Positions whose proposal does not fit together with more confident ones."""
        proposal, sure = step.proposal.tolist(), step.confidence.tolist()
        for row, ids in enumerate(held):
            for hole in self.template.holes:
                column = first[row] + hole.start
                chosen = [place for place in range(hole.length) if commit[row][column + place]]
                if hole.automaton is None or len(chosen) < 2:
                    continue
                decided = hole.state(ids, first[row], self.mask_id)
                for _, place in sorted((-sure[row][column + place], place) for place in chosen):
                    token = proposal[row][column + place]
                    told = hole.automaton.allowed(decided)
                    fits = (
                        told is not None and (ways := told[place]) is not None and token < len(ways) and bool(ways[token])
                    )
                    if fits:
                        decided[place] = token
                    else:
                        yield row, column + place


def first_open(open: Tensor) -> list[int]:
    """The column of the first open position of each row of (B, L)."""
    found: list[int] = open.to(torch.uint8).argmax(1).tolist()
    return found


def _flags(size: int, *places: int) -> States:
    made = np.zeros(size, bool)
    made[list(places)] = True
    return made
