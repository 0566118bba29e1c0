"""From text to canvases and back, for decode, calibrate, settle-text and evaluate alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .infill import Template
    from .predictor import NetworkPredictor

Turns = Sequence[Mapping[str, str]]  # a conversation: each turn with its "role" and its "content"
GEN_LENGTH = 128  # the default number of tokens to generate, if the model has room for them
PROBE = "1"  # every vocabulary has it


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """The prompts in a .jsonl, as objects: {"prompt": a text or a conversation} with all other entries of the line.

    A conversation may also stand under "messages".

    Raises:
        ValueError: the file does not exist, has no prompt, or has a line that is no prompt.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error
    items = []
    for number, line in enumerate(content.split("\n"), 1):  # splitlines would cut at characters that JSON allows
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {file} is not JSON: {error}") from error
        item = {"prompt": item} if isinstance(item, str) else item
        if isinstance(item, dict) and "prompt" in item and "messages" in item:
            raise ValueError(f'line {number} of {file} has a "prompt" and "messages"; leave one of them out')
        if not isinstance(item, dict) or not (_is_prompt(item.get("prompt")) or _is_conversation(item.get("messages"))):
            raise ValueError(
                f'line {number} of {file} is neither a string nor an object with a "prompt", which is a text or a list of '
                '{"role": …, "content": …}, or with "messages", which is such a list; every content is a text'
            )
        items.append(item)
    if not items:
        raise ValueError(f"there is no prompt in {file}")
    return items


def prompt_of(item: Mapping[str, Any]) -> str | Turns:
    """The prompt in an object of `read_prompts`."""
    found: str | Turns = item["prompt"] if "prompt" in item else item["messages"]
    return found


def as_asked(prompt: str | Turns, tokenizer: PreTrainedTokenizerBase, mask_id: int) -> str | Turns:
    """A text as a user's turn, if the tokenizer has a chat template and the text has no mask tokens; else unchanged."""
    if isinstance(prompt, str) and tokenizer.chat_template and prompt.strip() and mask_id not in bare(tokenizer, prompt):
        return [{"role": "user", "content": prompt}]
    return prompt


def _is_prompt(found: Any) -> bool:
    """A text, or a conversation."""
    return isinstance(found, str) or _is_conversation(found)


def _is_conversation(found: Any) -> bool:
    """Turns of text, at least one."""
    turns = found if isinstance(found, list) and found else [None]
    return all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content")) for turn in turns
    )


def canvas(
    prompt: str | Turns,
    tokenizer: PreTrainedTokenizerBase,
    network: NetworkPredictor,
    *,
    gen_length: int | None = None,
    suffix: str = "",
    answer_length: int = 8,
    template: Template | None = None,
) -> Tensor:
    """The prompt, the masks and the suffix as a row of token ids, on the network's device.

    Args:
        prompt: a text, in which mask tokens are filled in as well; or a conversation.
        tokenizer: of the model.
        network: the model.
        gen_length: positions after the prompt, 0 for none; by default 128, or the model's room if that is less.
        suffix: text that is given inside the generation, such as "The answer is".
        answer_length: positions after the suffix.
        template: follows the prompt instead of masks and suffix; the prompt may then have no masks.

    Raises:
        ValueError: the prompt is empty without a suffix, the model has no room, nothing is left to generate, or the prompt
            has masks and there is a template.
    """
    ids, most = encode(tokenizer, prompt), network.max_length
    if template:
        if network.mask_id in ids:
            raise ValueError("the prompt has mask tokens, and so has --infill; use one of them")
        if most is not None and len(ids) + len(template.tokens) > most:
            raise ValueError(
                f"a prompt of {len(ids)} tokens and a template of {len(template.tokens)} are more than the {most} that "
                "this model takes; shorten one of them"
            )
        return torch.tensor([*ids, *template.tokens], device=network.device)
    if not suffix and not (bare(tokenizer, prompt) if isinstance(prompt, str) else prompt):
        raise ValueError("the prompt is empty; give it some text, mask tokens to fill in, or a suffix")
    left = GEN_LENGTH if most is None else min(most - len(ids), GEN_LENGTH)
    if gen_length is None and left < 1:
        raise ValueError(f"a prompt of {len(ids)} tokens fills the {most} positions of this model; shorten it")
    length = left if gen_length is None else gen_length
    if most is not None and len(ids) + length > most:
        raise ValueError(
            f"a prompt of {len(ids)} tokens and {length} to generate are more than the {most} that this model takes; "
            "shorten the prompt or the generation"
        )
    text = bare(tokenizer, suffix) if suffix else []
    if text and not 0 < answer_length <= length - len(text):
        raise ValueError(f"{len(text)} tokens of suffix and {answer_length} of answer do not fit into {length}")
    fixed = {length - answer_length - len(text): text} if text else {}
    return canvas_row(ids, length, network.mask_id, fixed=fixed).to(network.device)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str | Turns) -> list[int]:
    """Token ids of a prompt: a text after its leading special tokens, or a conversation.

    Special tokens that a tokenizer puts after a text are left out, because the answer follows there. A conversation is put
    into the tokenizer's chat template, which has its own special tokens. If its last turn is the assistant's, the
    generation continues that turn.
    """
    if not isinstance(prompt, str):
        return bare(tokenizer, in_template(tokenizer, prompt, open=prompt[-1]["role"] == "assistant")) if prompt else []
    ids, lead = bare(tokenizer, prompt), leading(tokenizer)
    return ids if lead and ids[: len(lead)] == lead else [*lead, *ids]


def bare(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text`, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def token_ids(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> tuple[int, ...]:
    """The ids of the tokens with these names.

    Raises:
        ValueError: the vocabulary lacks one of them.
    """
    vocabulary = tokenizer.get_vocab() if names else {}
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise ValueError(f"the model's vocabulary has no token {missing[0]}; name tokens as its tokenizer does")
    return tuple(vocabulary[name] for name in names)


def leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text, such as [CLS]; the list may be empty."""
    whole, text = list(tokenizer(PROBE)["input_ids"]), bare(tokenizer, PROBE)
    return next((whole[:n] for n in range(len(whole)) if whole[n : n + len(text)] == text), [])


def in_template(tokenizer: PreTrainedTokenizerBase, turns: Turns, *, open: bool) -> str:
    """A conversation in the tokenizer's own format.

    Args:
        tokenizer: with a chat template.
        turns: the conversation.
        open: the last turn is continued; else the assistant's turn begins.

    Raises:
        ValueError: the tokenizer has no chat template, or it refuses the conversation.
    """
    demand_template(tokenizer)
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=not open, continue_final_message=open
        )
    except Exception as error:  # a template is a small program in a sandbox, and can fail in any way
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from error
    return text


def demand_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise ValueError("this model's tokenizer has no chat template; give it plain text, without conversations or --chat")


def canvas_row(
    prompt: Sequence[int], gen_length: int, mask_id: int, *, fixed: Mapping[int, Sequence[int]] = MappingProxyType({})
) -> Tensor:
    """The prompt, then `gen_length` positions, some of which may hold given text.

    Args:
        prompt: token ids; mask tokens among them are filled in as well.
        gen_length: positions after the prompt; 0 if all masks are in the prompt.
        mask_id: the mask token, which stands at open positions.
        fixed: place -> given token ids, e.g. {-8: ids of "The answer is"}; places count from the first position after the
            prompt, negative ones from the end.

    Returns:
        Token ids, shape (len(prompt) + gen_length,).

    Raises:
        ValueError: fixed text does not fit, or leaves nothing to generate.
    """
    row = [mask_id] * gen_length
    for place, text in fixed.items():
        start = place % gen_length if -gen_length <= place < gen_length else gen_length
        if start + len(text) > gen_length:
            raise ValueError(f"{len(text)} fixed tokens at place {place} do not fit into {gen_length} positions")
        row[start : start + len(text)] = text
    if mask_id not in (*prompt, *row):
        raise ValueError("nothing is left to generate; make the generation longer, or put mask tokens into the prompt")
    return torch.tensor([*prompt, *row])


@dataclass(frozen=True)
class StopStrings:
    """Whether the text of some tokens holds one of `strings`."""

    tokenizer: PreTrainedTokenizerBase
    strings: tuple[str, ...]

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise ValueError("a stop string must not be empty, as every text holds the empty string")

    def __call__(self, tokens: list[int]) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(string in text for string in self.strings)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: list[int], given: int = 0, stop: Sequence[str] = ()) -> str:
    """The text of generated tokens, up to the first stop string after the first `given` tokens."""

    def text(part: list[int]) -> str:  # not cleaned up, so that it stays the same when more tokens follow
        return str(tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    whole, start = text(tokens), len(text(tokens[:given]))
    return whole[: min([found for string in stop if (found := whole.find(string, start)) >= 0], default=len(whole))]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined they are the text. A character of several tokens comes with its last token."""
    found: list[str] = []
    before = begin = 0  # tokens are decoded after the last whole one, on which the added text may depend
    for end in range(1, len(ids) + 1):
        known, longer = (
            str(tokenizer.decode(list(ids[before:stop]), clean_up_tokenization_spaces=False)) for stop in (begin, end)
        )
        whole = end == len(ids) or not longer.endswith("\N{REPLACEMENT CHARACTER}")
        found.append(longer[len(known) :] if whole else "")
        if whole:
            before, begin = begin, end
    return found
