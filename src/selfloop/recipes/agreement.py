"""Label-free self-training: chain check + agreement across questions and views.

In the line of LMSI (arXiv 2210.11610), MM-UPT (arXiv 2505.22453) and view consistency.
**Same**: a vote over the model's own answers takes the label's place; SFT on the agreeing ones.
**Differs**: the vote is on what the answers claim to see, across related questions and views of
one picture, and a rule checks that each conclusion follows from it. Reads no gold value.
"""

from selfloop.collect.related import RelatedQuestions
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import Demonstrate, Views
from selfloop.roles import Optim, Sampling, Verifier


def agreement(verifier: Verifier, metric: Verifier, *, questions: int = 3, seen: int = 3,
              n: int = 1, temperature: float = 1.0, max_new_tokens: int = 64,
              samples: int | None = None, iterations: int = 3, per_sample: int = 2,
              updates: int | None = None, epochs: int = 1, batch: int = 64, lr: float = 1e-5,
              views: float = 0.5, copies: int = 1, seed: int = 0) -> Loop:
    """`verifier` is a label-free one (vote.Agreement, vote.MajorityVote); `metric` judges dev."""
    maker = Demonstrate(per_sample=per_sample)
    return Loop(
        name="agreement",
        sampler=RelatedQuestions(questions=questions, views=seen, n=n, temperature=temperature,
                                 max_new_tokens=max_new_tokens),
        verifier=verifier,
        learn={"solver": Learn(
            organizer=Chain(maker=Views(maker, severity=views, copies=copies) if views else maker),
            loss=SFT(), optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch,
                        schedule="cosine", warmup=5))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
