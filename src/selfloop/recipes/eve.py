"""EVE: programs that change pictures make problems whose answers are known because they were run.

Heng et al., arXiv 2604.18320. Reads no label; programs run in the sandbox only.
**Same**: a challenger writes picture-editing programs with values to try; a solver sees both
pictures and says which value it was; the answer comes from running the program; the challenger
earns for programs that run, for problems that are right half of the time and for variety; GRPO.
**Differs**: only this kind of question, not which picture a value gives; no queue of examples; both
learn in every step; variety is the share of equal programs about a picture; one engine may share
the weights; weights of the reward, KL and sizes are chosen by us.
"""
from selfloop.collect.challenge import INSTRUCTION, Challenge
from selfloop.engines.sandbox import Sandbox
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.by_question import ByQuestion
from selfloop.organize.refine.filters import Role
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.constructed import ByConstruction
from selfloop.roles import Optim, Sampling, Verifier


def eve(metric: Verifier, *, programs: int = 4, n: int = 8, seconds: float = 10.0,
        temperature: float = 1.0, program_tokens: int = 512, max_new_tokens: int = 64,
        instruction: str = INSTRUCTION, images: str = "", samples: int = 64, steps: int = 20,
        iterations: int = 3, lr: float = 1e-6, kl: float = 0.01, seed: int = 0) -> Loop:
    """`programs` a picture, `n` answers to each problem, `seconds` a run; `metric` judges dev."""
    optim = Optim(lr=lr, batch=4096, whole_groups=True, reference="seed")
    challenger = Chain(steps=(Role("proposer"),), maker=GroupAdvantage())
    solver = Chain(steps=(ByQuestion(), Role("solver")), maker=GroupAdvantage())
    return Loop(
        name="eve", sampler=Challenge(
            Sandbox(seconds=seconds), n=programs, answers=n, temperature=temperature, images=images,
            program_tokens=program_tokens, max_new_tokens=max_new_tokens, instruction=instruction),
        verifier=ByConstruction(),
        learn={"proposer": Learn(organizer=challenger, loss=GRPO(kl=kl), optim=optim),
               "solver": Learn(organizer=solver, loss=GRPO(kl=kl), optim=optim)},
        evaluation=Evaluation(metric=metric, sampling=Sampling(
            temperature=0.0, max_new_tokens=max_new_tokens)),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
