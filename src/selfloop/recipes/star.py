"""Rejection-sampling self-training.

STaR: Zelikman et al., arXiv 2203.14465. ReST-EM: Singh et al., arXiv 2312.06585.
**Same**: draw n answers, keep those that the verifier accepts, fine-tune, repeat.
**Differs**: goes on from the previous weights (M-STaR, arXiv 2412.17451) unless start="seed";
no rationalisation with the label; equal answers count once; optional picture views in training;
with `steer` hard problems get more draws the next time, easy ones fewer (DART, arXiv 2407.13690).
"""

from selfloop.collect.steered import plain_or_steered
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.signals import Demonstrate, Views
from selfloop.roles import Optim, Sampling, Verifier


def star(verifier: Verifier, metric: Verifier | None = None, *, n: int = 8,
         temperature: float = 1.0, max_new_tokens: int = 64, samples: int | None = None,
         iterations: int = 3, per_sample: int = 2, updates: int | None = None, epochs: int = 1,
         batch: int = 64, lr: float = 1e-5, start: str = "previous", views: float = 0.5,
         copies: int = 1, steer: bool = False, seed: int = 0) -> Loop:
    """`views` is the severity of the picture augmentation in training; 0 leaves it out."""
    maker = Demonstrate(per_sample=per_sample)
    return Loop(
        name="star",
        sampler=plain_or_steered(steer, n, temperature, max_new_tokens),
        verifier=verifier,
        learn={"solver": Learn(
            organizer=Chain((Learnt(),) * steer, Views(
                maker, severity=views, copies=copies) if views else maker), loss=SFT(),
            optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch,
                        schedule="cosine", warmup=5, start=start),
        )},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed,
    )
