"""MM-Zero: a proposer, a coder and a solver of one seed, without data (arXiv 2603.09206).

Reads no label and no picture; programs run in the sandbox only.
**Same**: captions with an easy and a hard question; a coder's programs draw them; the solver's vote
on hard ones, where .25 to .75 agree and half do on the easy one; all rewards; GRPO, KL .01, 1e-6.
**Differs**: Python draws, no SVG; all learn in every step, not by turns of five; no content types;
proposals that always or never draw stay; a picture of one colour is none; shared weights.
"""
from selfloop.collect.illustrate import CONCEIVE, DRAW, Illustrate
from selfloop.engines.sandbox import Sandbox
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.by_question import ByQuestion
from selfloop.organize.refine.filters import AccuracyBand, Role
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.illustrated import Illustrated
from selfloop.roles import Optim, Sampling, Verifier


def mm_zero(metric: Verifier, *, proposals: int = 4, codes: int = 4, n: int = 8, low: float = 0.25,
            high: float = 0.75, seconds: float = 10.0, instruction: str = CONCEIVE,
            drawing: str = DRAW, proposal_tokens: int = 1024, program_tokens: int = 2048,
            max_new_tokens: int = 512, samples: int = 16, steps: int = 15, iterations: int = 6,
            lr: float = 1e-6, kl: float = 0.01, seed: int = 0) -> Loop:
    """`n` answers to each question of each picture; samples are topics in words."""
    optim = Optim(lr=lr, batch=4096, whole_groups=True, reference="seed")
    steps_of = {"proposer": (Role("proposer"),), "coder": (Role("coder"), ByQuestion()),
                "solver": (Role("solver"), ByQuestion(), AccuracyBand(low, high))}
    return Loop(
        name="mm_zero", sampler=Illustrate(
            Sandbox(seconds=seconds), proposals, codes, n, instruction, drawing, 1.0,
            proposal_tokens, program_tokens, max_new_tokens), verifier=Illustrated(),
        learn={role: Learn(organizer=Chain(steps=own, maker=GroupAdvantage()), loss=GRPO(kl=kl),
                           optim=optim) for role, own in steps_of.items()},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
