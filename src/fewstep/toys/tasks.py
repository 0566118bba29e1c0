"""Generated tasks with checkable answers: word problems, sudoku, and questions about an invented world.

An item is a function of (family, number, held out or not). A text consists of words with a space between any two.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import permutations
from typing import Any, Literal, Protocol

import numpy as np

from .tokens import EOS
from .world import World

ANSWER = ("the", "answer", "is")
HELD_OUT_SHARE = 16  # one key of this many is never trained on


@dataclass(frozen=True)
class Item:
    """A prompt, and a region of words to fill in.

    Attributes:
        prompt: words before the region.
        target: one right filling of the region, padded with the end of text.
        given: places of the region that are given.
        answer: the answer, one word if one word is enough.
    """

    prompt: tuple[str, ...]
    target: tuple[str, ...]
    given: tuple[int, ...]
    answer: str


class Family(Protocol):
    """Items of one kind, whose region always has `length` words.

    `item(number, held_out)` makes an item; the content of held-out items occurs in no other item. `right(item, words)` says
    whether the region, filled with `words`, answers the item. `words` holds all words that occur.
    """

    @property
    def length(self) -> int: ...

    @property
    def words(self) -> tuple[str, ...]: ...

    def item(self, number: int, *, held_out: bool = False) -> Item: ...

    def right(self, item: Item, words: Sequence[str]) -> bool: ...


@dataclass(frozen=True)
class WordProblems(Family):
    """Two to four gains and losses of things, with the steps written out before the answer.

    "tom has 7 apples . he buys 3 more . he gives 2 away . how many apples does tom have ?" is answered by
    "7 + 3 = 10 . 10 - 2 = 8 . the answer is 8". No chain of numbers of a held-out item occurs in training.

    Args:
        seed: of everything random.
        suffix: share of items in which "the answer is" is given, just before the last word of the region.
        most: largest number.
        first: largest number at the start.
        change: largest gain or loss.
        length: of the region, words.
    """

    seed: int = 0
    suffix: float = 0.0
    most: int = 30
    first: int = 9
    change: int = 3
    length: int = 32

    people = (("tom", "he"), ("ben", "he"), ("max", "he"), ("paul", "he"),
              ("anna", "she"), ("lisa", "she"), ("maria", "she"), ("eva", "she"))  # fmt: skip
    things = ("apples", "books", "coins", "cards", "eggs", "shells", "stamps", "pens")
    gains = ("{he} buys {k} more .", "{he} finds {k} .", "a friend brings {k} .")
    losses = ("{he} gives {k} away .", "{he} loses {k} .", "{he} sells {k} .")

    @property
    def words(self) -> tuple[str, ...]:
        phrases = " ".join((*self.gains, *self.losses)).replace("{he}", "").replace("{k}", "").split()
        people = [word for pair in self.people for word in pair]
        numbers = [str(n) for n in range(self.most + 1)]
        return (
            *numbers,
            *people,
            *self.things,
            *phrases,
            *["has", "how", "many", "does", "have", "?", "+", "-", "="],
            *ANSWER,
        )

    def item(self, number: int, *, held_out: bool = False) -> Item:
        rng = random.Random(f"word problem {self.seed} {number} {held_out}")
        while True:
            total, changes = rng.randint(1, self.first), []
            start = total
            for _ in range(rng.randint(2, 4)):
                k = rng.randint(1, self.change)
                sign = rng.choice([s for s in (1, -1) if 0 <= total + s * k <= self.most])
                changes.append(sign * k)
                total += sign * k
            if _held_out(f"{start} {changes}") == held_out:
                break
        (name, he), things = rng.choice(self.people), rng.choice(self.things)
        told, steps, have = [f"{name} has {start} {things} ."], [], start
        for change in changes:
            told.append(rng.choice(self.gains if change > 0 else self.losses).format(he=he, k=abs(change)))
            steps.append(f"{have} {'+' if change > 0 else '-'} {abs(change)} = {have + change} .")
            have += change
        prompt = (" ".join(told) + f" how many {things} does {name} have ?").split()
        answer, written = str(have), " ".join(steps).split()
        if rng.random() < self.suffix:
            target = (*_filled(written, self.length - 4), *ANSWER, answer)
            return Item(tuple(prompt), target, tuple(range(self.length - 4, self.length - 1)), answer)
        return Item(tuple(prompt), _filled([*written, *ANSWER, answer], self.length), (), answer)

    def right(self, item: Item, words: Sequence[str]) -> bool:
        return stated_answer(words) == item.answer


@dataclass(frozen=True)
class Sudoku(Family):
    """6 × 6 sudoku with boxes of 2 × 3: every row, column and box holds 1 to 6; some cells are given.

    The region is six rows, each a given label and six cells. Every valid grid with the given cells is right. No grid of a
    held-out item occurs in training, with any cells given.

    Args:
        seed: of everything random.
        givens: number of given cells.
    """

    seed: int = 0
    givens: int = 12

    labels = ("r1", "r2", "r3", "r4", "r5", "r6")
    length = 42

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.labels, *"123456")

    def item(self, number: int, *, held_out: bool = False) -> Item:
        rng = random.Random(f"sudoku {self.seed} {number} {held_out}")
        while True:
            grid = _grid(rng)
            if _held_out(f"{grid}") == held_out:
                break
        target = tuple(word for label, row in zip(self.labels, grid, strict=True) for word in (label, *map(str, row)))
        cells = rng.sample([place for place in range(self.length) if place % 7], self.givens)
        given = sorted([*cells, *range(0, self.length, 7)])
        return Item((), target, tuple(given), " ".join(word for word in target if word not in self.labels))

    def right(self, item: Item, words: Sequence[str]) -> bool:
        if len(words) != self.length or any(words[place] != item.target[place] for place in item.given):
            return False
        grid = np.array(words).reshape(6, 7)[:, 1:]
        boxes = grid.reshape(3, 2, 2, 3).swapaxes(1, 2).reshape(6, 6)
        return all(set(unit) == set("123456") for unit in (*grid, *grid.T, *boxes))


@dataclass(frozen=True)
class Facts(Family):
    """Questions with four options about an invented world: the fact is stated, then its option.

    "where does brako live ? A tudo B seli C mapo D nigu" is answered by "brako lives in seli . the answer is seli". The
    options of a held-out question do not occur with the same question in training, in any order.

    Args:
        world: the world of the facts.
        people: number of its people that occur.
        seed: of everything random.
        statements: share of items that state a fact about a given person instead of a question.
        ending: how the answer ends: with the option, its letter, or the letter and then the option. The bundled model did
            not learn letters: unlike the option, a letter cannot be known without reading the options.
    """

    world: World = field(default_factory=lambda: World(people=40))
    people: int = 24
    seed: int = 0
    statements: float = 0.0
    ending: Literal["option", "letter", "both"] = "option"

    letters = ("A", "B", "C", "D")
    length = 12

    @property
    def words(self) -> tuple[str, ...]:
        phrases = [word for r in self.world.relations for text in (*r.statements, r.question) for word in text.split()]
        values = [value for relation in self.world.relations for value in relation.values]
        return (*self.letters, *self.world.names, *values, *(w for w in phrases if w[0] != "{"), "state", ":", *ANSWER)

    def item(self, number: int, *, held_out: bool = False) -> Item:
        rng = random.Random(f"fact {self.seed} {number} {held_out}")
        facts = _facts(self.world, self.people)
        if rng.random() < self.statements and not held_out:
            fact = rng.choice(facts)
            said = rng.choice(fact.relation.statements).format(person=fact.person, value=fact.value).split()
            return Item(("state", ":"), _filled(said, self.length), (said.index(fact.person),), fact.value)
        while True:
            fact = rng.choice(facts)
            options = [fact.value, *rng.sample([value for value in fact.relation.values if value != fact.value], 3)]
            if _held_out(f"{fact.person} {fact.relation.name} {sorted(options)}") == held_out:
                break
        rng.shuffle(options)
        letter = self.letters[options.index(fact.value)]
        asked = [word for pair in zip(self.letters, options, strict=True) for word in pair]
        said = fact.relation.statements[0].format(person=fact.person, value=fact.value).split()
        prompt = (*fact.relation.question.format(person=fact.person).split(), *asked)
        last = {"option": [fact.value], "letter": [letter], "both": [letter, fact.value]}[self.ending]
        return Item(prompt, _filled([*said, *ANSWER, *last], self.length), (), last[0])

    def right(self, item: Item, words: Sequence[str]) -> bool:
        return stated_answer(words) == item.answer


def stated_answer(words: Sequence[str]) -> str | None:
    """The word after the first "the answer is"; None without one."""
    for place in range(len(words) - len(ANSWER)):
        if tuple(words[place : place + len(ANSWER)]) == ANSWER:
            return words[place + len(ANSWER)]
    return None


def bundled_families() -> dict[str, Family]:
    """The tasks of the bundled text model, by name."""
    return {"word problems": WordProblems(), "sudoku": Sudoku(), "facts": Facts()}


def text_stages() -> tuple[tuple[int, tuple[Family, ...]], ...]:
    """The training of the bundled text model: pairs of a step and the families that take turns from that step on.

    Sudoku, where each cell depends on all others, is not learned if the other tasks are trained from the start. Once it is
    learned, few items keep it. Some items have given suffixes or are plain statements.
    """
    sudoku, problems, facts = Sudoku(), WordProblems(suffix=0.25), Facts(statements=0.25)
    larger, everyone = replace(problems, first=20, change=9), replace(facts, people=40, ending="letter")
    medium, letters = replace(problems, first=12, change=6), replace(facts, ending="letter")
    both = replace(facts, ending="both")
    return (
        (0, (sudoku,)),
        (300, (sudoku, larger, sudoku, everyone, sudoku, larger)),
        (1500, (medium, letters, sudoku, medium, letters, medium, letters)),
        (2000, (problems, letters)),
        (2500, (problems, both)),
        (2800, (sudoku, problems, sudoku, both)),
        (3500, (problems, sudoku, problems, facts)),
    )


def _held_out(key: str) -> bool:
    return zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0


def _filled(words: Sequence[str], length: int) -> tuple[str, ...]:
    assert len(words) <= length, f"{len(words)} words do not fit into {length}"
    return (*words, *[EOS] * (length - len(words)))


@cache
def _facts(world: World, people: int) -> Any:
    return [fact for fact in world.facts if fact.person in world.names[:people]]


@cache
def _rows() -> tuple[Any, Any, Any]:
    """All 720 rows; which two differ in every column; and which two have no digit in common in a box of both."""
    rows = np.array(list(permutations(range(1, 7))))  # (720, 6)
    columns = (rows[:, None] != rows[None]).all(-1)  # (720, 720)
    left = np.left_shift(1, rows[:, :3]).sum(1)  # the set of digits in the left box
    return rows, columns, (left[:, None] & left[None]) == 0


def _grid(rng: random.Random) -> list[list[int]]:
    """A valid grid, drawn row by row; a grid without a next row is dropped. All grids occur, not all equally often."""
    rows, columns, boxes = _rows()
    while True:
        chosen: list[int] = []
        possible = np.ones(len(rows), dtype=bool)
        for place in range(6):
            here = (possible & boxes[chosen[-1]] if place % 2 else possible).nonzero()[0]
            if not len(here):
                break
            chosen.append(int(here[rng.randrange(len(here))]))
            possible &= columns[chosen[-1]]
        else:
            grid: list[list[int]] = rows[chosen].tolist()
            return grid
