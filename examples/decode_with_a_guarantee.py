"""A masked language model answers in fewer network calls, with a bound on the share of answers that change.

python examples/decode_with_a_guarantee.py        # needs fewstep[text]
"""

from fewstep import EarlyCommit, TopK, calibrate, canvas_row, decode, load_text, load_tokenizer
from fewstep.toys.tasks import bundled_families


def main(calibration: int = 200, work: int = 20) -> None:
    """`bundled` solves sums in words; put LLaDA, Dream or another masked language model and your prompts in its place."""
    model, tokenizer = load_text("bundled"), load_tokenizer("bundled")
    sums = bundled_families()["word problems"]
    items = [sums.item(k, held_out=True) for k in range(calibration + work)]
    rows = [canvas_row(tokenizer(" ".join(item.prompt))["input_ids"], 32, model.mask_id) for item in items]

    rule = EarlyCommit(TopK(), statistic="minimum")  # one token a call, until all tokens that are left are sure
    found = calibrate(model, rows[:calibration], rule, epsilon=0.05, delta=0.05)
    print(f"{found.early_steps:.1f} calls instead of {found.full_steps:.0f}; at most 5 % of answers change, 95 % sure")

    answers = decode(model, rows[calibration:], found.rule)
    for item, answer in zip(items[calibration:], answers, strict=True):
        print(f"{answer.nfe:3} calls  {tokenizer.decode(answer.tokens[-32:], skip_special_tokens=True)}  ({item.answer})")


if __name__ == "__main__":
    main()
