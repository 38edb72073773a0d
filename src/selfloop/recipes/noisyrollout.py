"""GRPO on mixed groups: half the answers saw a noisy picture, and the noise fades.

NoisyRollout: Liu et al., arXiv 2504.13055; constants of its released scripts.
**Same**: `n` (6) answers to the clean picture and `n` to one noisy one form a group of 2n; all are
trained under the clean picture; diffusion noise from step 500, annealed by a sigmoid of rate 30
over all training steps, half gone at their step 40 of 60; T = 1; no KL; LR 1e-6.
**Differs**: noise is put on pixels before the processor; mean over tokens; the noisy answers' old
log-probs are those of the clean picture (importance ratio 1 at the first update).
"""

from selfloop.collect.adaptive import count_steps
from selfloop.collect.views import Anneal, MixedViews
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.signals import GroupAdvantage
from selfloop.roles import Optim, Sampling, Verifier


def noisyrollout(verifier: Verifier, metric: Verifier | None = None, *, n: int = 6,
                 op: str = "diffusion", severity: float = 0.5, anneal: str = "sigmoid",
                 rate: float = 30.0, middle: float = 2 / 3, max_new_tokens: int = 2048,
                 samples: int = 128, steps: int = 12, iterations: int = 5, lr: float = 1e-6,
                 batch: int = 4096, kl: float = 0.0, seed: int = 0) -> Loop:
    """`middle` is the share of all steps x iterations after which half of the noise is gone."""
    fading = Anneal(anneal, steps * iterations, rate, middle)
    return Loop(
        name="noisyrollout", verifier=verifier,
        sampler=MixedViews(n=n, op=op, severity=severity, anneal=fading, train_clean=True,
                           max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(steps=(count_steps,), maker=GroupAdvantage()), loss=GRPO(kl=kl),
            optim=Optim(lr=lr, batch=batch, whole_groups=True))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
