"""Iterative DPO on the best against the worst of one's own answers.

DPO: Rafailov et al., arXiv 2305.18290. Iterated with a correctness verifier and an NLL anchor:
Pang et al., arXiv 2404.19733.
**Same**: n answers a problem, pairs by score, reference = the weights that drew them.
**Differs**: one pair a problem by default; pairs are re-rendered under picture views if asked.
"""

from selfloop.collect.independent import Independent
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import BestWorst, Views
from selfloop.roles import Optim, Sampling, Verifier


def dpo(verifier: Verifier, metric: Verifier | None = None, *, n: int = 8,
        temperature: float = 1.0, max_new_tokens: int = 64, samples: int | None = None,
        iterations: int = 3, per_sample: int = 1, updates: int | None = None, epochs: int = 1,
        batch: int = 32, lr: float = 5e-6, beta: float = 0.1, anchor: float = 0.2,
        views: float = 0.0, copies: int = 1, seed: int = 0) -> Loop:
    """`anchor` weighs the chosen answer's NLL; `views` augments pictures in training."""
    maker = BestWorst(per_sample=per_sample)
    loss = Mix(((1.0, DPO(beta)), (anchor, SFT("chosen")))) if anchor else DPO(beta)
    return Loop(
        name="dpo", verifier=verifier,
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=Views(maker, severity=views, copies=copies) if views else maker),
            loss=loss, optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch,
                        schedule="cosine", warmup=5))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
