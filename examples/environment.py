"""An environment: guess how many digits are even; while wrong, see half of the picture enlarged
and hear "more" or "fewer".

An environment is a sampler. Its observations are messages and may hold pictures, which the run
stores; the tokens of observations are never trained, and the model's own are kept as drawn.

    python examples/environment.py
"""

from PIL import Image

from selfloop import Context, Learn, Loop, Optim, Sample, load, run
from selfloop.collect.env import EnvSampler
from selfloop.engines.toy import ToyEngine
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.environment import EnvironmentReturn
from selfloop.pictures import Library
from selfloop.store import RunFolder
from selfloop.testbeds import digits


class HowManyEven:
    """One episode. The sampler shows samples without labels, so it reads `meta` instead."""

    def reset(self, sample: Sample, key: str) -> Context:
        self.target = int(digits.answer_to("even", str(sample.meta["digits"])))
        self.picture, self.turn = Library().open(sample.media[0]), 0
        return sample.context

    def step(self, text: str) -> tuple[tuple[str | Image.Image, ...], float, bool]:
        """(what is shown next, reward, whether the episode is over)."""
        guess = int(text.split()[0]) if text.split() else -1
        if guess == self.target:
            return (), 1.0, True
        return (self.half(), "more" if guess < self.target else "fewer"), -0.2, False

    def half(self) -> Image.Image:
        """The upper half first, the lower half after it, and so on."""
        width, height = self.picture.size
        top = self.turn % 2 * height // 2
        self.turn += 1
        return self.picture.resize((width, height), box=(0, top, width, top + height // 2))


def main() -> None:
    digits.write("data", "train", 40, seed=0)
    samples = load("data/train.jsonl").filter(lambda sample: sample.meta["task"] == "even")
    loop = Loop(
        name="how-many-even",
        sampler=EnvSampler(HowManyEven, n=8, max_turns=3, max_new_tokens=3),
        verifier=EnvironmentReturn(),
        learn={"solver": Learn(organizer=Chain(maker=GroupAdvantage()), loss=GRPO(),
                               optim=Optim(lr=0.15, batch=1024, whole_groups=True))},
        iterations=2, steps=6, save_every=6,
    )
    run(loop, samples, ToyEngine(list("01234"), contexts=2048), "runs/environment")

    folder = RunFolder("runs/environment")
    for step in (0, 11):
        groups = folder.groups(step)
        returns = [float(r.sampling["return"]) for g in groups for r in g.rollouts]
        turns = [len(r.turns) for g in groups for r in g.rollouts]
        print(f"step {step:2d}: mean return {sum(returns) / len(returns):+.2f}, "
              f"mean turns {sum(turns) / len(turns):.2f}")


if __name__ == "__main__":
    main()
