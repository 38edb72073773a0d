"""Gold answers imitated after one's own description of the picture: stage 2 of STIC.

STIC: Deng et al., arXiv 2405.19716, algorithm 2.
**Same**: the model of stage 1 describes each picture (T = .2), the description stands before the
question, the known answer is imitated; starts from the weights of stage 1.
**Differs**: a loop of its own, run on the folder that stage 1 saved; the rows are all of the data,
and their gold values count as labels read. Dev questions are asked without a description.
"""

from selfloop.collect.describing import PROMPT, Describe
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.builders import Described
from selfloop.organize.signals import Supervise, SuperviseAnswers
from selfloop.roles import Optim, Sampling, Verifier


def stic_described(metric: Verifier, *, labels: str = "answer", prompt: str = PROMPT,
                   temperature: float = 0.2, max_new_tokens: int = 256,
                   samples: int | None = None, iterations: int = 1, updates: int | None = None,
                   epochs: int = 1, batch: int = 8, lr: float = 2e-5, seed: int = 0) -> Loop:
    """`labels`: "rationale" imitates worked solutions, "answer" bare answers."""
    maker = Supervise() if labels == "rationale" else SuperviseAnswers()
    return Loop(
        name="stic-described",
        sampler=Describe(prompt=prompt, temperature=temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(maker=Described(maker, strict=True)), loss=SFT(),
            optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch, schedule="cosine",
                        warmup=5))},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
