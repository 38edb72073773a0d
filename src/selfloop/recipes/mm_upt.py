"""MM-UPT: unsupervised post-training by a vote (Wei et al., arXiv 2505.22453). Reads no label.

**Same**: GRPO on groups of 10 at temperature .7; an answer earns 1 if it is its group's most
frequent one; k3 KL. Questions are the data's own, or the model's own: about the pictures alone
("direct") or to differ from the data's ("in-context"). **Differs**: no missing answer wins;
text is compared; mean over tokens; own questions are answered in the next step; the example has no
answer; 45 updates of 512 problems, not 15 episodes in batches of 128; `checks`, `steer` (off).
"""
from selfloop.collect.propose import PROPOSE, Propose, answering_or_asking
from selfloop.collect.steered import plain_or_steered
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.refine.own_questions import AskNext
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.own_questions import OwnQuestions
from selfloop.organize.verify.vote import MajorityVote
from selfloop.roles import Optim, Sampling, Verifier


def mm_upt(metric: Verifier, *, questions: str = "own", asked: int = 1, n: int = 10,
           temperature: float = 0.7, top_p: float = 0.99, instruction: str = PROPOSE,
           tags: bool = True, checks: int = 0, steer: bool = False, max_new_tokens: int = 2048,
           samples: int = 512, steps: int = 15, iterations: int = 3, lr: float = 1e-6,
           kl: float = 0.01, seed: int = 0) -> Loop:
    """`questions`: own, direct, in-context; `asked` to `checks` are for the last two: how many a
    picture, `tags`: whether <question> marks them, `checks`: draws of whether it can be answered.
    """
    answer = plain_or_steered(steer, n, temperature, max_new_tokens, top_p)
    ask = Propose(asked, 0, checks, instruction, tags, example=questions == "in-context")
    organizer = Chain((Learnt(),) * steer + (AskNext(),) * (questions != "own"), GroupAdvantage())
    optim = Optim(lr=lr, batch=4096, whole_groups=True, weight_decay=0.01, reference="seed")
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    return Loop(
        name="mm_upt", sampler=answering_or_asking(questions, ask, answer),
        verifier=OwnQuestions(MajorityVote(share=0.0, ties="first")),
        learn={"solver": Learn(organizer=organizer, loss=GRPO(kl=kl), optim=optim)},
        evaluation=Evaluation(metric=metric, sampling=greedy),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
