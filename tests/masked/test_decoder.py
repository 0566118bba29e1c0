"""What the text commands do, as functions: prompts in memory against decoding itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from masked.tiny_bert import WORDS, save_bert

from fewstep.masked import Early, Rule, Text, canvas_row, decode, load_text, open_decoder
from fewstep.masked.rules import Blockwise, TopK


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_bert(tmp_path_factory.mktemp("model")))


def test_answers_are_what_decoding_gives(model: str) -> None:
    prompts = [{"prompt": f"w{n}", "number": n} for n in range(3)]
    answers = list(open_decoder(model, Text(gen_length=6), Rule("low-confidence", block_length=3)).answers(prompts))
    rows = [canvas_row([WORDS.index(str(item["prompt"]))], 6, 1) for item in prompts]
    whole = decode(load_text(Path(model)), rows, Blockwise(TopK(), 3))
    said = [" ".join(WORDS[token] for token in row.tokens if token > WORDS.index("[UNK]")) for row in whole]
    assert [answer["text"].split() for answer in answers] == [text.split() for text in said]
    assert [(answer["number"], answer["nfe"], answer["tokens"]) for answer in answers] == [(n, 6, 6) for n in range(3)]


def test_what_streams_is_the_answer(model: str) -> None:
    """Piece by piece, and cut at the same stop string."""
    decoder = open_decoder(model, Text(gen_length=8), Rule("low-confidence", block_length=1), Early())
    (whole,) = decoder.answers([{"prompt": "w5"}])
    stop = (whole["text"].split()[4],)
    (cut,) = decoder.answers([{"prompt": "w5"}], stop=stop)
    for wanted, options in ((whole, {}), (cut, {"stop": stop})):
        pieces = list(decoder.stream({"prompt": "w5"}, **options))
        assert "".join(piece for piece, _ in pieces) == wanted["text"] and len(pieces) > 1
        assert [end is not None for _, end in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1][1] is not None and pieces[-1][1].nfe == wanted["nfe"]


def test_a_prompt_that_is_none_is_refused_before_any_answer(model: str) -> None:
    decoder = open_decoder(model, Text(gen_length=6))
    with pytest.raises(ValueError, match="prompt 2: the prompt is empty"):
        decoder.answers([{"prompt": "w1"}, {"prompt": ""}])
