"""GRPO that never runs dry, and second thoughts that turn out right are imitated.

VL-Rethinker: Wang et al., arXiv 2504.08837; constants of its released code.
**Same**: groups of 8 at T = 1, no KL; selective sample replay (half of a step's answers, drawn by
the size of their advantage, filled up from earlier steps; none with advantage 0); some answers are
gone on with after a trigger to verify, correct or question them, and those that then end right are
imitated whole (weight `imitate`, .05).
**Differs**: triggers in our words, and their `share` (.25) ours; only first answers are reinforced,
rethought ones are only imitated; mean over tokens; no length or repetition rule in the reward.
"""
from selfloop.collect.forced import TRIGGERS, Rethink
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.advantages import Marked, Together
from selfloop.organize.chain import Chain
from selfloop.organize.refine.replay import SelectiveReplay
from selfloop.organize.signals import Demonstrate, GroupAdvantage
from selfloop.roles import Optim, Sampling, Verifier

EVERY = tuple(trigger for kind in TRIGGERS.values() for trigger in kind)


def vl_rethinker(verifier: Verifier, metric: Verifier | None = None, *, n: int = 8,
                 share: float = 0.25, triggers: tuple[str, ...] = EVERY, imitate: float = 0.05,
                 alpha: float = 1.0, max_new_tokens: int = 2048, samples: int = 128,
                 steps: int = 20, iterations: int = 5, lr: float = 1e-6, batch: int = 1024,
                 clip_high: float = 0.2, seed: int = 0) -> Loop:
    """`alpha` sharpens the replay; `share` of a group's answers is gone on with."""
    maker = Together((Marked(GroupAdvantage(), "rethought", True),
                      Marked(Demonstrate(per_sample=n), "rethought")))
    return Loop(name="vl_rethinker", verifier=verifier, sampler=Rethink(
        n=n, share=share, triggers=triggers, max_new_tokens=max_new_tokens, whole=True),
        learn={"solver": Learn(organizer=SelectiveReplay(Chain(maker=maker), alpha),
               loss=Mix(((1.0, GRPO(clip_high=clip_high)), (imitate, SFT()))),
               optim=Optim(lr=lr, batch=batch))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
