"""The prose says what is so, the problems can be worked out, and what is held out is held out."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from fewstep.toys.prose import answered, blocks, choice, documents, problem, vocabulary
from fewstep.toys.tokens import word_tokenizer
from fewstep.toys.world import World

WORLD = World(people=30)
NAMES = WORLD.names
DOCUMENT = documents(WORLD)
TEXTS = [DOCUMENT(number) for number in range(3000)]


def test_a_text_is_a_function_of_its_number_and_seed() -> None:
    assert [DOCUMENT(number) for number in (7, 5, 7)] == [TEXTS[7], TEXTS[5], TEXTS[7]]
    assert documents(WORLD, seed=1)(7) != TEXTS[7]


def test_every_sum_in_the_prose_is_right() -> None:
    for text in TEXTS:
        for a, op, b, c in re.findall(r"(\d+) (plus|minus) (\d+) is (\d+) \.", text):
            assert int(c) == (int(a) + int(b) if op == "plus" else int(a) - int(b))
        for b, kind, a, c in re.findall(r"(\d+) (more|less) than (\d+) is (\d+) \.", text):
            assert int(c) == (int(a) + int(b) if kind == "more" else int(a) - int(b))
    numbers = [int(word) for text in TEXTS for word in text.split() if word.isdecimal()]
    assert (min(numbers), max(numbers)) == (0, 50)


def test_the_prose_states_all_facts_and_no_other() -> None:
    true = {s.format(person=f.person, value=f.value) for f in WORLD.facts for s in f.relation.statements}
    people = set(NAMES)
    stated = set()
    for text in TEXTS:
        prose = text.rpartition("answer : ")[2]
        stated |= {part.strip() + " ." for part in prose.split(" .") if people & set(part.split())}
    assert stated == true


def test_only_the_first_half_is_asked_about_and_the_skill_never_shows() -> None:
    asked = [text for text in TEXTS if text.startswith("question :")]
    people = Counter(word for text in asked for word in text.split() if word in NAMES)
    assert set(people) == set(NAMES[:15])
    assert not [text for text in asked if "answer is" in text]
    ends = [text.split()[-6:] for text in TEXTS if "answer is" in text]
    assert ends and all(words[0] == words[4] or words[1:4] == ["the", "answer", "is"] for words in ends)


def test_problems_are_all_different_and_worked_out_right() -> None:
    problems = [problem(number) for number in [*range(1400), *range(-650, 0)]]
    assert len({item.prompt for item in problems}) == 2050
    with pytest.raises(IndexError):
        problem(2050)
    for item in problems:
        a, op, b = item.prompt.split()[4:7]
        value = int(a) + int(b) if op == "plus" else int(a) - int(b)
        assert item.answer == str(value + 10) == answered(item.worked)
        assert item.worked == f"{a} {op} {b} is {value} . {value} plus 10 is {value + 10} . the answer is {value + 10} ."


def test_an_answer_is_found_where_it_stands() -> None:
    assert answered("7 plus 5 is 12 . 12 minus 3 is 9 . the answer is 9 .") == "9"
    assert answered("7 plus 5 is 12 . 4 plus 1 is 5 .") == "12"
    assert answered("the answer is") is None is answered("mira lives in bado .")


def test_a_choice_is_a_sentence_without_its_last_word() -> None:
    for fact in WORLD.facts:
        item = choice(fact)
        assert f"{item.prompt} {item.options[item.right]} ." == fact.relation.statements[0].format(
            person=fact.person, value=fact.value
        )


def test_blocks_are_full_of_whole_texts_that_the_vocabulary_can_say() -> None:
    tokenizer = word_tokenizer(vocabulary(WORLD))
    block = blocks(DOCUMENT, lambda text: tokenizer(text)["input_ids"], tokenizer.eos_token_id, 64)
    rows = [block(number) for number in range(50)]
    assert {len(row) for row in rows} == {64}
    assert tokenizer.unk_token_id not in {token for row in rows for token in row}
    first = tokenizer.decode(rows[3]).split(" <eos> ")
    assert first[:2] == [DOCUMENT(3 * 64), DOCUMENT(3 * 64 + 1)]
    assert len({tuple(row) for row in rows}) == 50
