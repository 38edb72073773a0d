"""A sampler of your own: answers drawn with the picture against answers drawn without seeing it.

An answer that the model gives to a blanked picture shows what it would guess. Preferring what it
says when it looks needs no label at all: the sampler makes the contrast, the verifier only reads
which picture was shown, and DPO learns it on the clean picture. (The toy engine knows nothing
about pictures that it could prefer, so the gate will not promote it here; watch it say so.)

    python examples/custom_sampler.py
"""

from dataclasses import dataclass

from selfloop import Learn, Loop, Optim, Rollout, Sample, Sampling, load, run
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Evaluation
from selfloop.optimize.losses.preference import DPO
from selfloop.organize.chain import Chain
from selfloop.organize.signals import BestWorst
from selfloop.organize.verify.rules import exact
from selfloop.testbeds import digits


@dataclass(frozen=True)
class SeenAndBlind:
    """`n` answers to the picture as it is, and `n` to the same question about a grey one."""

    n: int = 2
    max_new_tokens: int = 4

    async def __call__(self, generate, sample: Sample, key: str) -> list[Rollout]:
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        grey = tuple(m.with_op("blank", 1.0, f"{key}/blank") for m in sample.media)
        seen = await generate(sample, n=self.n, sampling=sampling, label="seen")
        blind = await generate(sample.context.seen_as(grey), n=self.n, sampling=sampling,
                               label="blind")
        return [*seen, *blind]


def looked(rollout: Rollout) -> bool:
    """Whether the answer was drawn with the picture in sight. Reads no gold value."""
    return not any(op.name == "blank" for medium in rollout.context.media for op in medium.ops)


def main() -> None:
    digits.write("data", "train", 100, seed=0)
    samples = load("data/train.jsonl").filter(lambda sample: sample.meta["task"] == "even")

    loop = Loop(
        name="seen-against-blind",
        sampler=SeenAndBlind(),
        verifier=looked,
        learn={"solver": Learn(organizer=Chain(maker=BestWorst()), loss=DPO(beta=0.1),
                               optim=Optim(lr=0.05, updates=10))},
        evaluation=Evaluation(metric=exact, sampling=Sampling(temperature=0, max_new_tokens=4)),
        iterations=2,
    )
    engine = ToyEngine(list("01234"))
    for iteration in run(loop, samples, engine, "runs/own-sampler", dev=samples):
        print(iteration.decision.why)
    assert not loop.labels_read, "this loop reads no label while it trains"
    print("labels read while training:", loop.labels_read or "none")


if __name__ == "__main__":
    main()
