"""Preference pairs from a noisy picture, without any judge.

SeVa: Zhu et al., arXiv 2404.10501; noise schedule and step as in its released code.
**Same**: the greedy answer to the clean picture is preferred to that to the picture at diffusion
step 500 of 1,000; pairs of equal texts are dropped; DPO with beta .1; one round; reads no label.
**Differs**: noise is put on pixels before the processor, not on its output; the learning rate is
for LoRA of modest rank; other image-side causes of `collect.negatives` can be named instead.
"""

from selfloop.collect.negatives import Negatives
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.preference import DPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.pair_filters import Distinct
from selfloop.organize.refine.pairs import Constructed, Pairs
from selfloop.roles import Optim, Sampling, Verifier


def seva(metric: Verifier, *, causes: tuple[str, ...] = ("diffusion",), severity: float = 0.5,
         n: int = 1, temperature: float = 0.0, max_new_tokens: int = 256,
         samples: int | None = None, iterations: int = 1, updates: int | None = None,
         epochs: int = 1, batch: int = 64, lr: float = 2e-6, beta: float = 0.1,
         seed: int = 0) -> Loop:
    """`metric` judges dev; nothing judges what is drawn. severity .5 is step 500; n > 1 draws
    differ only with a `temperature`."""
    return Loop(
        name="seva",
        sampler=Negatives(causes=causes, severity=severity, n=n, temperature=temperature,
                          max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=Pairs(Constructed(), (Distinct(contained=False, bare=()),))),
            loss=DPO(beta), optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch,
                                        schedule="cosine", warmup=5))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
