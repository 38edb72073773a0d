"""Group-relative policy optimisation with a rule reward.

GRPO: Shao et al., arXiv 2402.03300; for vision: Visual-RFT, arXiv 2503.01785.
**Same**: groups of n answers, group-normalised advantages, clipped surrogate, fresh draws a step.
**Differs**: token-mean normalisation and no KL by default (DAPO, arXiv 2503.14476); `view_share`
draws that share of each group on augmented pictures (NoisyRollout, arXiv 2504.13055); with `steer`
what a step learnt of its problems decides how many answers the next draws, and how hot.
"""

from selfloop.collect.steered import plain_or_steered
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.signals import GroupAdvantage
from selfloop.roles import Optim, Sampling, Verifier


def grpo(verifier: Verifier, metric: Verifier | None = None, *, n: int = 8,
         temperature: float = 1.0, max_new_tokens: int = 64, samples: int = 16,
         iterations: int = 5, steps: int = 50, save_every: int = 10, lr: float = 1e-6,
         batch: int = 1024, kl: float = 0.0, clip_high: float = 0.2, view_share: float = 0.0,
         severity: float = 0.5, steer: bool = False, seed: int = 0) -> Loop:
    """One update a step while `batch` >= samples x n (on-policy; x 2 n with `steer`)."""
    return Loop(
        name="grpo", verifier=verifier,
        sampler=plain_or_steered(steer, n, temperature, max_new_tokens, views=view_share,
                                 severity=severity),
        learn={"solver": Learn(
            organizer=Chain((Learnt(),) * steer, GroupAdvantage()),
            loss=GRPO(kl=kl, clip_high=clip_high),
            optim=Optim(lr=lr, batch=batch, whole_groups=True))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, save_every=save_every, samples=samples, seed=seed)
