"""Generated items against a second reading of their text, and training items against held-out ones."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fewstep.toys.tasks import Facts, Item, Sudoku, WordProblems, _rows, bundled_families, stated_answer, text_stages
from fewstep.toys.tokens import EOS
from fewstep.toys.world import World

GAINS, LOSSES = "buys|finds|brings", "gives|loses|sells"


def chain(item: Item) -> tuple[int, ...]:
    """The numbers of a word problem, read from its sentences."""
    first, *rest = " ".join(item.prompt).split(" . ")[:-1]
    numbers = [int(re.findall(r"\d+", first)[0])]
    for sentence in rest:
        k = int(re.findall(r"\d+", sentence)[0])
        assert bool(re.search(GAINS, sentence)) != bool(re.search(LOSSES, sentence))
        numbers.append(k if re.search(GAINS, sentence) else -k)
    return tuple(numbers)


def box_rows(words: tuple[str, ...]) -> list[list[str]]:
    grid = [list(words[7 * row + 1 : 7 * row + 7]) for row in range(6)]
    boxes = [[grid[2 * a + c][3 * b + d] for c in range(2) for d in range(3)] for a in range(3) for b in range(2)]
    return [*grid, *map(list, zip(*grid, strict=True)), *boxes]


def test_word_problems_add_up() -> None:
    family = WordProblems(suffix=0.3)
    lengths, suffixes = set(), 0
    for number in range(300):
        item = family.item(number)
        numbers = chain(item)
        written = " ".join(item.target).replace(EOS, "").split()
        steps = re.findall(r"(\d+) ([+-]) (\d+) = (\d+) \.", " ".join(written))
        totals = [sum(numbers[: k + 1]) for k in range(len(numbers))]
        assert [(int(a), int(s + b), int(c)) for a, s, b, c in steps] == list(
            zip(totals, numbers[1:], totals[1:], strict=False)
        )
        assert item.answer == str(totals[-1]) == stated_answer(item.target) and max(totals) <= 30 and min(totals) >= 0
        assert len(item.target) == family.length and family.right(item, item.target)
        if item.given:
            suffixes += 1
            assert [item.target[place] for place in item.given] == ["the", "answer", "is"] and item.target[
                -1
            ] == item.answer
        lengths.add(len(steps))
    assert lengths == {2, 3, 4} and 60 < suffixes < 120


def test_sudokus_are_valid_and_unlike_each_other() -> None:
    family, seen = Sudoku(givens=12), set()
    for number in range(200):
        item = family.item(number)
        assert all(sorted(unit) == list("123456") for unit in box_rows(item.target))
        assert len(item.given) == 12 + 6 and family.right(item, item.target)
        seen.add(item.target)
    assert len(seen) == 200
    rows, _, boxes = _rows()
    assert len(rows) == 720 and (boxes.sum(1) == 36).all()  # 3!·3! rows fit below one in the same boxes


def test_a_wrong_sudoku_is_wrong() -> None:
    family = Sudoku()
    item = family.item(0)
    words = list(item.target)
    words[1], words[2] = words[2], words[1]
    assert not family.right(item, words)
    mapped = [str(int(word) % 6 + 1) if word.isdigit() else word for word in item.target]  # valid, but other givens
    assert all(sorted(unit) == list("123456") for unit in box_rows(tuple(mapped))) and not family.right(item, mapped)
    assert not family.right(item, item.target[:-1])


@pytest.mark.parametrize(("ending", "last"), [("option", 1), ("letter", 1), ("both", 2)])
def test_facts_are_the_worlds(ending: Any, last: int) -> None:
    world = World(people=14, seed=3)
    family = Facts(world, people=12, statements=0.3, ending=ending)
    true = {(fact.person, fact.relation.question.format(person=fact.person)): fact.value for fact in world.facts}
    letters, stated = [], 0
    for number in range(300):
        item = family.item(number)
        if item.prompt == ("state", ":"):
            person = item.target[item.given[0]]
            assert (item.answer in item.target) and any(p == person and v == item.answer for (p, _), v in true.items())
            stated += 1
            continue
        question = " ".join(item.prompt[:-8])
        options = dict(zip(item.prompt[-8::2], item.prompt[-7::2], strict=True))
        (value,) = [value for (_, asked), value in true.items() if asked == question]
        (letter,) = [letter for letter, option in options.items() if option == value]
        assert len(options) == len(set(options.values())) == 4 and value in item.target
        assert item.answer == (value if ending == "option" else letter) == stated_answer(item.target)
        said = [word for word in item.target if word != EOS]
        assert said[-last - 3 :] == ["the", "answer", "is", *([letter, value] if last == 2 else [item.answer])]
        assert family.right(item, item.target)
        letters.append(letter)
    assert 60 < stated < 120 and all(30 < letters.count(letter) < 80 for letter in "ABCD")


@pytest.mark.parametrize("name", list(bundled_families()))
def test_held_out_items_are_about_something_else(name: str) -> None:
    """Read from the text: chains of numbers, grids, questions with their set of options."""
    about = {
        "word problems": chain,
        "sudoku": lambda item: item.target,
        "facts": lambda item: (item.prompt[:-8], frozenset(item.prompt[-7::2])),
    }[name]
    family = bundled_families()[name]
    trained = {about(family.item(number)) for number in range(4000)}
    held_out = [about(family.item(number, held_out=True)) for number in range(300)]
    assert not trained & set(held_out) and len(set(held_out)) > 100
    if name != "sudoku":  # the same check finds what is shared where something is
        assert trained & {about(family.item(number)) for number in range(4000, 5000)}
    assert family.item(7) == family.item(7) != family.item(8)


def test_the_vocabulary_is_complete() -> None:
    known = {EOS, *(word for family in bundled_families().values() for word in family.words)}
    for family in (family for _, families in text_stages() for family in families):
        words = {*family.words, EOS}
        assert all(set(item.prompt) | set(item.target) <= words for item in map(family.item, range(300)))
        assert words <= known


def test_the_stated_answer() -> None:
    assert stated_answer(["so", "the", "answer", "is", "8", ".", "the", "answer", "is", "9"]) == "8"
    assert stated_answer(["the", "answer", "is"]) is None and stated_answer([]) is None
