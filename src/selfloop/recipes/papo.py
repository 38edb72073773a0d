"""GRPO that pays for looking: answers shall depend on the picture.

PAPO: Wang et al., arXiv 2507.06448; constants of the paper's 3B runs and the released code.
**Same**: GRPO (KL .01 to the seed, LR 1e-6); every answer is scored once more with
patches of the picture black (14 px, each with probability `masked`, .6); the k3 divergence of both
passes is raised by `gamma`; both entropies are lowered by `entropy` (.03), or raising it collapses
the model; options: `fade` (gamma falls to 0 between two updates), `cap`, `wrong`.
**Differs**: mean over all tokens; masks are drawn on pixels before the processor, patches smaller
for small pictures; fade is linear; no mask over tokens; text-only problems get GRPO alone; groups
of 5 are our reading, not checked.
"""
from selfloop.collect.independent import Independent
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.perception import Perception
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.beside import Beside
from selfloop.organize.chain import Chain
from selfloop.organize.signals import GroupAdvantage
from selfloop.roles import Optim, Sampling, Verifier


def papo(verifier: Verifier, metric: Verifier | None = None, *, n: int = 5, gamma: float = 0.01,
         entropy: float = 0.03, masked: float = 0.6, fade: tuple[int, int] | None = None,
         cap: float | None = None, wrong: float = 1.0, kl: float = 0.01, clip_high: float = 0.2,
         temperature: float = 1.0, max_new_tokens: int = 1024, samples: int = 128, steps: int = 20,
         iterations: int = 5, lr: float = 1e-6, batch: int = 1024, seed: int = 0) -> Loop:
    """PAPO on DAPO: kl=0, clip_high=.28."""
    looking = Perception(gamma, entropy, cap, wrong, fade)
    maker = Beside(GroupAdvantage(), "masked", "answer", "mask", masked, keep=True)
    return Loop(
        name="papo", verifier=verifier,
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=maker), loss=Mix((
                (1.0, GRPO(kl=kl, clip_high=clip_high)), (1.0, looking))),
            optim=Optim(lr=lr, batch=batch, whole_groups=True, reference="seed"))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
