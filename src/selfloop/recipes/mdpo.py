"""Conditional preference: the picture is preferred as well as the answer.

mDPO: Wang et al., arXiv 2406.11839; constants of its released code.
**Same**: DPO on two answers + DPO on the chosen answer under the picture against under a random
crop of 1 to 20 % of it + an anchor that keeps the chosen answer's reward above `delta` (0); weights
1, 1, 1; beta .1; LR 1e-5; batch 32; reference = the weights that drew.
**Differs**: pairs are the model's own answers by score, not a fixed preference set; with
`gold=True`, the gold answer against its own wrong ones, nearer to it, and these are labels; drawn
anew each round; one epoch a round instead of three.
"""

from selfloop.collect.independent import Independent
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.preference import MDPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.gold_pairs import GoldAgainst
from selfloop.organize.signals import BestWorst
from selfloop.roles import Optim, Sampling, Verifier


def mdpo(verifier: Verifier, metric: Verifier | None = None, *, n: int = 8,
         temperature: float = 1.0, max_new_tokens: int = 256, samples: int | None = None,
         iterations: int = 3, gold: bool = False, per_sample: int = 1, corruption: str = "crop",
         beta: float = 0.1, delta: float = 0.0, updates: int | None = None, epochs: int = 1,
         batch: int = 32, lr: float = 1e-5, seed: int = 0) -> Loop:
    """`corruption` is a picture operation; `gold` prefers the gold answer to each wrong one."""
    own = BestWorst(per_sample=per_sample, corrupted=corruption)
    return Loop(
        name="mdpo", verifier=verifier,
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=GoldAgainst(False, corruption) if gold else own),
            loss=MDPO(beta, delta), optim=Optim(lr=lr, updates=updates, epochs=epochs,
                                                batch=batch, schedule="cosine", warmup=5))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
