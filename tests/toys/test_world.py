"""The invented world: a function of its seed, with enough to know and nothing ambiguous."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

from fewstep.toys.tokens import word_tokenizer
from fewstep.toys.world import World


def test_the_world_is_a_function_of_its_seed() -> None:
    assert World(seed=3).facts == World(seed=3).facts
    assert World(seed=3).names != World(seed=4).names


def test_one_fact_of_each_kind_for_everyone() -> None:
    world = World(people=20)
    assert Counter((fact.person, fact.relation.name) for fact in world.facts) == Counter(
        {(name, relation.name): 1 for name in world.names for relation in world.relations}
    )
    assert all(fact.value in fact.relation.values for fact in world.facts)


def test_values_are_chosen_evenly() -> None:
    world = World(people=800)
    for relation in world.relations:
        counts = Counter(fact.value for fact in world.facts if fact.relation.name == relation.name)
        share = 1 / len(relation.values)
        error = (share * (1 - share) / 800) ** 0.5
        assert all(abs(counts[value] / 800 - share) < 5 * error for value in relation.values)


def test_no_word_means_two_things() -> None:
    world = World()
    words = [*world.names, *(value for relation in world.relations for value in relation.values)]
    assert len(set(words)) == len(words)


def test_a_vocabulary_survives_the_disk(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["where", "?", "here", "."])
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded("where ? here . <mask> <eos> nowhere")["input_ids"]
    assert ids == [4, 5, 6, 7, 2, 1, 3] == tokenizer("where ? here . <mask> <eos> nowhere")["input_ids"]
    assert loaded.decode(ids[:4]) == "where ? here ."
