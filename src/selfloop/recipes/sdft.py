"""Learning from demonstrations without imitating them: one's own answers, taught by oneself.

SDFT: Shenfeld et al., arXiv 2601.19897.
**Same**: the model answers the plain question; the same model, shown a demonstration beside the
question, scores these tokens; the reverse KL from student to teacher is lowered on policy; the
teacher's weights are a running average.
**Differs**: prompts in our words; `labels="answer"` shows the bare answer; the average moves with
`ema` (.98) an update; the KL is estimated on the drawn tokens, or with `k` over the teacher's k
likeliest and the rest. Every demonstration is a label.
"""
from selfloop.collect.independent import Independent
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.distill import ReverseKL, TopK
from selfloop.organize.chain import Chain
from selfloop.organize.privileged import FromDemonstrations
from selfloop.organize.signals import Privileged
from selfloop.roles import Optim, Sampling, Verifier


def sdft(metric: Verifier, *, labels: str = "rationale", n: int = 1, k: int = 0, ema: float = 0.98,
         temperature: float = 1.0, max_new_tokens: int = 1024, samples: int | None = None,
         iterations: int = 3, updates: int | None = None, epochs: int = 1, batch: int = 32,
         lr: float = 1e-5, seed: int = 0) -> Loop:
    """`labels`: "rationale" shows the worked solution, "answer" the gold answer."""
    maker = FromDemonstrations() if labels == "rationale" else Privileged()
    loss = TopK(k, teacher="ema", ema=ema) if k else ReverseKL(teacher="ema", ema=ema)
    return Loop(
        name="sdft",
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=maker), loss=loss, optim=Optim(
                lr=lr, updates=updates, epochs=epochs, batch=batch, schedule="cosine", warmup=5))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
