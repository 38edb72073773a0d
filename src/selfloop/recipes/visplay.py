"""VisPlay: a questioner and a solver raise each other (arXiv 2511.15661). Reads no label.

**Same**: a question earns min(s, 1 - s), s = share of the solver's most frequent answer, less the
share of questions like it; the solver learns from those with .3 <= s <= .8; GRPO with KL for both.
**Differs**: likeness in a picture; no question types; shared weights; `checks`, `steer` are ours.
"""
from selfloop.collect.propose import PROPOSE, AskOrAnswer, Propose, plain_question, tagged_question
from selfloop.collect.steered import plain_or_steered
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.filters import Role
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.refine.own_questions import AskNext
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.own_questions import OwnQuestions, PseudoLabel
from selfloop.organize.verify.questions import QuestionReward
from selfloop.roles import Optim, Sampling, Verifier


def visplay(metric: Verifier, *, asked: int = 8, judged: int = 10, n: int = 8, low: float = 0.3,
            high: float = 0.8, form: Verifier | None = None, tags: bool = True,
            instruction: str = PROPOSE, max_new_tokens: int = 1024, samples: int = 128,
            steps: int = 20, iterations: int = 3, lr: float = 1e-6, kl: float = 0.01,
            checks: int = 0, steer: bool = False, seed: int = 0) -> Loop:
    """`tags`: questions stand between <question>s; `form` judges the form of answers."""
    ask = Propose(asked, judged, checks, instruction, tags, max_new_tokens=max_new_tokens)
    loss, optim = GRPO(kl=kl), Optim(lr=lr, batch=4096, whole_groups=True, reference="seed")
    asking = QuestionReward(crowding=1, unreadable=-1,
                            read=tagged_question if tags else plain_question)
    proposing = Chain((Learnt(),) * steer + (Role("proposer"),), maker=GroupAdvantage())
    solving = Chain(steps=(AskNext(low, high, least=1), Role("solver")), maker=GroupAdvantage())
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    return Loop(
        name="visplay", sampler=AskOrAnswer(ask, plain_or_steered(steer, n, 1.0, max_new_tokens)),
        verifier=OwnQuestions(PseudoLabel(form), asking),
        learn={"proposer": Learn(organizer=proposing, loss=loss, optim=optim),
               "solver": Learn(organizer=solving, loss=loss, optim=optim)},
        evaluation=Evaluation(metric=metric, sampling=greedy),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
