"""R3V: reflect on positive and negative answers of one's own (Cheng et al., arXiv 2411.00855).

**Same**: chains are drawn and checked; right ones are imitated, a wrong one is shown to be mended
(self-refine), three are shown to choose from (self-select); answers of all earlier iterations are
pooled; every iteration trains the seed's weights anew, also on the bare gold answers.
**Differs**: no first round on written chains; the right chain drawn most often is imitated, not
the latest; what is mended, and to what, and what is chosen from are drawn by lot; problems never
solved get `hard` draws, all are hotter by `gain` (0) while groups are all right; weighted losses.
"""
from selfloop.collect.steered import Steered
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.builders import Refine, Select
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.refine.pools import Pool
from selfloop.organize.refine.together import Together
from selfloop.organize.signals import Demonstrate, SuperviseAnswers
from selfloop.roles import Optim, Sampling, Verifier


def r3v(verifier: Verifier, metric: Verifier | None = None, *, n: int = 3, hard: int = 6,
        temperature: float = 1.0, gain: float = 0.0, max_new_tokens: int = 512,
        samples: int | None = None, iterations: int = 5, refine: float = 1.0, select: float = 1.0,
        answers: bool = True, pool: int = 4096, updates: int | None = None, epochs: int = 3,
        batch: int = 64, lr: float = 3e-5, seed: int = 0) -> Loop:
    """`refine` and `select` weigh those rows; `answers` adds the bare gold answers."""
    gold = ((1.0, SuperviseAnswers()),) if answers else ()
    maker = Together(((1.0, Demonstrate(per_sample=1)), (refine, Refine()), (select, Select(k=3)),
                      *gold))
    return Loop(
        name="r3v", verifier=verifier, sampler=Steered(
            n=n, most=max(n, hard), least=n, gain=gain, temperature=temperature,
            hottest=1.5 * temperature, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain(steps=(Learnt(), Pool(limit=pool)), maker=maker), loss=SFT(),
            optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch, start="seed"))},
        evaluation=Evaluation(metric=metric or verifier, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, samples=samples, seed=seed)
