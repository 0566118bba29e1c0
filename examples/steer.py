"""A large language model gets the skill of a small one, by a logits processor in the `generate` of transformers.

python examples/steer.py        # needs fewstep[text]
"""

from fewstep.steering import load_trio

QUESTION = "question : what is 7 plus 5 ? answer :"


def main(tokens: int = 30) -> list[str]:
    """The base knows sums. The small model was tuned to give 10 more, in steps. The strengths are 0, a half and 1."""
    texts = []
    for alpha in (0.0, 0.5, 1.0):
        models = load_trio("bundled", "bundled", antiexpert="bundled", alpha=alpha)
        inputs = models.tokenizer(QUESTION, return_tensors="pt", return_token_type_ids=False)
        ids = models.base.generate(**inputs, max_new_tokens=tokens, do_sample=False, logits_processor=[models.proxy])
        texts.append(models.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        print(f"α = {alpha:g}: {texts[-1]}")
    return texts


if __name__ == "__main__":
    main()
