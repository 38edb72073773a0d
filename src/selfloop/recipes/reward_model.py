"""An outcome reward model from preferences between one's own answers.

Bradley-Terry: InstructGPT, Ouyang et al., arXiv 2203.02155, section 3.5; vision: LLaVA-RLHF, Sun
et al., arXiv 2309.14525; centring: Eisenstein et al., arXiv 2312.09244.
**Same**: several answers a problem; all pairs of a problem may be used; the loss; one model, one
round. **Differs**: a verifier prefers, not a person; the reward is the log-odds of two words in the
reply to `ask`, so no head is added and the model stays a plain one (as in Math-Shepherd, arXiv
2312.08935); the model that draws becomes the reward model; a pair counts once, not a problem.
"""

from selfloop.collect.independent import Independent
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.reward import BradleyTerry
from selfloop.organize.chain import Chain
from selfloop.organize.refine.pairs import Margin
from selfloop.organize.rewarded import ASK, WORDS, OutcomePairs
from selfloop.organize.signals import Views
from selfloop.roles import Optim, Verifier


def reward_model(verifier: Verifier, *, n: int = 8, temperature: float = 1.0,
                 max_new_tokens: int = 64, samples: int | None = None, iterations: int = 1,
                 per_sample: int = 4, gap: float = 0.5, ask: str = ASK,
                 words: tuple[str, str] = WORDS, centre: float = 0.01, views: float = 0.0,
                 updates: int | None = None, epochs: int = 1, batch: int = 32,
                 lr: float = 1e-5, seed: int = 0) -> Loop:
    """`per_sample` pairs a problem, scores at least `gap` apart. No gate."""
    maker = OutcomePairs(Margin(gap, per_sample), ask, words[0])
    return Loop(
        name="reward_model", verifier=verifier,
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=Views(maker, severity=views) if views else maker),
            loss=BradleyTerry(words, centre),
            optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch, schedule="cosine",
                        warmup=5))},
        iterations=iterations, samples=samples, seed=seed)
