"""Supervised training through the same loop: every arm that a method has to beat is one.

**Same**: maximum likelihood on gold rationales (full labels) or gold answers.
**Differs**: nothing is drawn and nothing verified; the optimizer steps are the method's.
"""

from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import Supervise, SuperviseAnswers, Views
from selfloop.roles import Optim, Sampling, Verifier


def supervised(metric: Verifier, *, labels: str = "rationale", iterations: int = 3,
               updates: int | None = None, epochs: int = 1, batch: int = 64, lr: float = 1e-5,
               views: float = 0.5, copies: int = 1, samples: int | None = None,
               max_new_tokens: int = 64, seed: int = 0) -> Loop:
    """`labels`: "rationale" imitates worked solutions, "answer" bare answers."""
    maker = Supervise() if labels == "rationale" else SuperviseAnswers()
    return Loop(
        name=f"supervised-{labels}",
        learn={"solver": Learn(
            organizer=Chain(maker=Views(maker, severity=views, copies=copies) if views else maker),
            loss=SFT(), optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch,
                        schedule="cosine", warmup=5))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        gate=None, iterations=iterations, samples=samples, seed=seed)
