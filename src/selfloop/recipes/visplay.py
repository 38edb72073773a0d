"""VisPlay: a questioner and a solver raise each other (arXiv 2511.15661). Reads no label.

**Same**: a question earns min(s, 1 - s), s = share of the solver's most frequent answer, less the
share of questions like it; the solver learns from those with .3 <= s <= .8; GRPO with KL for both.
**Differs**: both learn each step; likeness within a picture; no question types; weights are shared.
"""
from selfloop.collect.independent import Independent
from selfloop.collect.propose import PROPOSE, AskOrAnswer, Propose, plain_question, tagged_question
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.filters import Role
from selfloop.organize.refine.own_questions import AskNext
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.own_questions import OwnQuestions, PseudoLabel
from selfloop.organize.verify.questions import QuestionReward
from selfloop.roles import Optim, Sampling, Verifier


def visplay(metric: Verifier, *, asked: int = 8, judged: int = 10, n: int = 8, low: float = 0.3,
            high: float = 0.8, form: Verifier | None = None, tags: bool = True,
            instruction: str = PROPOSE, max_new_tokens: int = 1024, samples: int = 128,
            steps: int = 20, iterations: int = 3, lr: float = 1e-6, kl: float = 0.01,
            seed: int = 0) -> Loop:
    """`tags`: questions stand between <question>s; `form` judges the form of answers."""
    ask = Propose(n=asked, answers=judged, checks=0, instruction=instruction, tags=tags,
                  max_new_tokens=max_new_tokens)
    loss, optim = GRPO(kl=kl), Optim(lr=lr, batch=4096, whole_groups=True, reference="seed")
    asking = QuestionReward(crowding=1, unreadable=-1,
                            read=tagged_question if tags else plain_question)
    proposing = Chain(steps=(Role("proposer"),), maker=GroupAdvantage())
    solving = Chain(steps=(AskNext(low, high, least=1), Role("solver")), maker=GroupAdvantage())
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    return Loop(
        name="visplay", sampler=AskOrAnswer(ask, Independent(n=n, max_new_tokens=max_new_tokens)),
        verifier=OwnQuestions(PseudoLabel(form), asking),
        learn={"proposer": Learn(organizer=proposing, loss=loss, optim=optim),
               "solver": Learn(organizer=solving, loss=loss, optim=optim)},
        evaluation=Evaluation(metric=metric, sampling=greedy),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
