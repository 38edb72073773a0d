"""Iterative DPO on claim-by-claim feedback of an open model.

RLAIF-V: Yu et al., arXiv 2405.17220; constants of its released code.
**Same**: ten draws (T = .7); each split into claims, every claim asked as a yes-or-no question with
the picture; score = minus the claims rejected; two random pairs a problem with a gap of at least
one; lengths balanced; equal texts dropped; DPO (beta .1); four rounds; reads no label.
**Differs**: yes or no is the majority of `votes` replies, not the first token's probabilities;
claims are asked as statements; one epoch a round; the gate, not a benchmark, picks the weights.
"""
from selfloop.collect.independent import Independent
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.preference import DPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.pair_filters import LengthBalance
from selfloop.organize.refine.pairs import Margin, Pairs
from selfloop.organize.verify.claims import CHECK, SPLIT, ClaimCheck
from selfloop.roles import Optim, Sampling, Verifier, component_named


def rlaif_v(metric: Verifier, *, n: int = 10, temperature: float = 0.7, max_new_tokens: int = 512,
            split: str = SPLIT, check: str = CHECK, by_rule: str = "", quoted: bool = True,
            votes: int = 1, gap: float = 1.0, per_sample: int = 2, samples: int | None = None,
            iterations: int = 4, updates: int | None = None, epochs: int = 1, batch: int = 8,
            lr: float = 5e-7, beta: float = 0.1, seed: int = 0) -> Loop:
    """Roles: solver, splitter, checker. `by_rule` is module:function, in the splitter's place."""
    rule = component_named(by_rule) if by_rule else None
    return Loop(
        name="rlaif-v", verifier=ClaimCheck(
            n=votes, split=split, check=check, by_rule=rule, quoted=quoted),
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=Pairs(Margin(gap, per_sample), (LengthBalance(),), False)),
            loss=DPO(beta), optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch,
                                        schedule="cosine", warmup=5))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
