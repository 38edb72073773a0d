"""A verifier of your own: right for the right reason, with partial credit, and free to abstain.

Pictures show two to four handwritten digits; an answer reads "2 4 = 2" (digits seen = conclusion).
The verifier is a plain function. It names `answer`, and that is how it declares that it reads
labels; drop the argument and the loop will never show it one.

    python examples/custom_verifier.py
"""

from pathlib import Path

from selfloop import Rollout, Verdict, load, run
from selfloop.engines.toy import ToyEngine
from selfloop.organize.verify.rules import exact
from selfloop.recipes.star import star
from selfloop.recipes.supervised import supervised
from selfloop.testbeds import digits


def conclusion_and_chain(rollout: Rollout, answer: str) -> Verdict | None:
    """1 = right and it follows from the digits read; 0.3 = right by luck; None = unreadable."""
    read = digits.parse(rollout.text)
    if read is None:
        return None  # could not tell: never counted as wrong, never trained on
    right = read[1] == answer
    follows = bool(digits.chain_ok(rollout.text, "even"))
    score = 1.0 if right and follows else 0.3 if right else 0.0
    return Verdict(score=score, parts={"right": float(right), "follows": float(follows)})


def main() -> None:
    digits.write("data", "train", 240, seed=0)
    evens = load("data/train.jsonl").filter(lambda sample: sample.meta["task"] == "even")
    two_digits = evens.filter(lambda sample: len(str(sample.meta["digits"])) == 2).take(16)

    # The toy engine knows only what it is given: so it starts from a little gold.
    engine = ToyEngine(list("0123456789="), positions=5, contexts=2048)
    warm = supervised(exact, labels="rationale", iterations=1, updates=12, lr=0.15, views=0.0)
    run(warm, two_digits, engine, "runs/warm")

    loop = star(conclusion_and_chain, exact, n=16, max_new_tokens=6, per_sample=1,
                iterations=2, updates=15, lr=0.15, views=0.0)
    for iteration in run(loop, two_digits, engine, "runs/own-verifier", dev=two_digits):
        counts = iteration.counts
        print(f"drawn {counts['drawn']}, could not tell {counts['unjudged']}, "
              f"right {counts['right']}, kept {counts['signals_solver']}")
        print(iteration.decision.why)
    print("labels read:", {part: sorted(names) for part, names in loop.labels_read.items()})
    assert Path("runs/own-verifier/iterations/001/iteration.json").exists()


if __name__ == "__main__":
    main()
