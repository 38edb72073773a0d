"""A process reward model from labelled steps of one's own answers.

PRM: Lightman et al., arXiv 2305.20050; two words as the reward: Math-Shepherd, Wang et al., arXiv
2312.08935, whose step loss is the cross-entropy of eq. 4.
**Same**: answers drawn from one model, every step labelled right or wrong, cross-entropy on each
step's place. **Differs**: labels come from the gold solution, step by step (or from the spans of a
`labels` verifier), not from people or completions; each step is asked about in a prompt of its own;
steps after the first wrong one are labelled, too; the model that draws becomes the reward model.
"""

from selfloop.collect.independent import Independent
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.reward import StepBCE
from selfloop.organize.chain import Chain
from selfloop.organize.rewarded import ASK, WORDS, StepLabels
from selfloop.organize.signals import Views
from selfloop.organize.verify.gold_steps import GoldSteps, split_named
from selfloop.organize.verify.steps import ranker_named
from selfloop.roles import Optim


def process_reward(*, steps: str = "lines", labels: str = "", n: int = 4, temperature: float = 1.0,
                   max_new_tokens: int = 64, samples: int | None = None, iterations: int = 1,
                   ask: str = ASK, words: tuple[str, str] = WORDS, views: float = 0.0,
                   updates: int | None = None, epochs: int = 1, batch: int = 64,
                   lr: float = 1e-5, seed: int = 0) -> Loop:
    """`steps`: lines, words or module:name; `labels`: module:name of a verifier with spans."""
    maker = StepLabels(ask, words[0])
    return Loop(
        name="process_reward",
        verifier=ranker_named(labels) if labels else GoldSteps(split_named(steps)),
        sampler=Independent(n=n, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=Views(maker, severity=views) if views else maker),
            loss=StepBCE(words),
            optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch, schedule="cosine",
                        warmup=5))},
        iterations=iterations, samples=samples, seed=seed)
