"""Describing well, learnt from guided descriptions against misled ones (stage 1).

STIC: Deng et al., arXiv 2405.19716, algorithm 1; constants of its released code.
**Same**: chosen is drawn under a guiding prompt; rejected, half and half, under one that asks for
inventions or from a picture of low resolution or other colours; all trained under the plain prompt;
no verifier; DPO (beta .1), less 1/1024 of the chosen text's summed log-prob; reads no label.
**Differs**: prompts in our words; equal pairs are dropped. Stage 2 is `stic_described`.
"""
from selfloop.collect.guided import DESCRIBE, Asked
from selfloop.collect.negatives import Negatives
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.pair_filters import Distinct
from selfloop.organize.refine.pairs import Constructed, Pairs
from selfloop.roles import Optim, Sampling, Verifier

CAUSES = ("eliciting", "eliciting", "lowres", "jitter")


def stic(metric: Verifier, *, guide: str = DESCRIBE, causes: tuple[str, ...] = CAUSES,
         severity: float = 1.0, n: int = 1, temperature: float = 0.2, max_new_tokens: int = 1024,
         samples: int | None = None, iterations: int = 1, updates: int | None = None,
         epochs: int = 1, batch: int = 8, lr: float = 1e-7, beta: float = 0.1,
         anchor: float = 1 / 1024, seed: int = 0) -> Loop:
    """One of `causes` a pair, by lot. Its samples ask for a description; `metric` judges dev."""
    maker = Pairs(Constructed(), (Distinct(contained=False, bare=()),))
    return Loop(
        name="stic", sampler=Negatives(
            causes=causes, severity=severity, n=n, guide=Asked(guide), pick_one=True,
            temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(organizer=Chain(maker=maker), optim=Optim(
            lr=lr, updates=updates, epochs=epochs, batch=batch, schedule="cosine", warmup=5),
            loss=Mix(((1.0, DPO(beta)), (anchor, SFT("chosen", normalize="sum"))))
            if anchor else DPO(beta))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=min(max_new_tokens, 256))),
        iterations=iterations, samples=samples, seed=seed)
