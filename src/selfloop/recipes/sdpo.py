"""Self-distillation: the teacher is the same model, shown a right answer of the same group.

SDPO: Huebotter et al., arXiv 2601.20802; constants of its released code.
**Same**: groups of 8; each answer is scored once more under a prompt that holds a peer's right
answer (never its own), or, with `feedback`, what the verifier said where there is none; the
teacher's weights are a running average (rate .05); Jensen-Shannon divergence (`mix` .5) over the
`k` (100) likeliest tokens and the rest; an answer that has no teacher teaches nothing.
**Differs**: the k tokens are the teacher's, scored at the start of the step; no importance weights,
since draws are fresh; prompts in our words; demonstrations keep their thinking. k=0: reverse KL on
the drawn tokens alone.
"""
from selfloop.collect.independent import Independent
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.distill import ReverseKL, TopK
from selfloop.optimize.losses.divergences import JSD
from selfloop.organize.chain import Chain
from selfloop.organize.privileged import FromPeers
from selfloop.roles import Optim, Sampling, Verifier


def sdpo(verifier: Verifier, metric: Verifier | None = None, *, n: int = 8, k: int = 100,
         mix: float = 0.5, ema: float = 0.95, feedback: str = "", at_least: float = 1.0,
         temperature: float = 1.0, max_new_tokens: int = 1024, samples: int = 32, steps: int = 20,
         iterations: int = 5, lr: float = 1e-6, batch: int = 1024, seed: int = 0) -> Loop:
    """`feedback` is a text with {feedback}; `at_least` is the score of a right answer."""
    loss = TopK(k, JSD(mix), True, "ema", ema) if k else ReverseKL(teacher="ema", ema=ema)
    return Loop(
        name="sdpo", verifier=verifier,
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=FromPeers(feedback=feedback, at_least=at_least)), loss=loss,
            optim=Optim(lr=lr, batch=batch))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
