"""Continuous self-evolving with a process reward model and an adaptive temperature.

M-STaR: Liu et al., arXiv 2412.17451.
**Same**: short rounds that go on from the last weights and optimizer; right answers are reranked by
a process reward model and the best `keep` (2) a problem imitated; the next round draws at the
temperature of the highest Reward-Pass@2.
**Differs**: no warm-up on written chains; the reward model is `ranker`, the folder of one trained
by `process_reward` or module:name of a verifier; without it the role `judge` says yes or no to
every step. The worst step counts. Reward-Pass@2 is taken on a fixed `share` of the training
problems, which are learned from as well; grid and LR ours.
"""
from selfloop.collect.adaptive import AdaptiveTemperature, ChooseTemperature
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.best_right import BestRight
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify.steps import Reranked, StepCheck, ranker_named
from selfloop.roles import Optim, Sampling, Verifier


def m_star(verifier: Verifier, metric: Verifier | None = None, *, ranker: str = "", votes: int = 4,
           keep: int = 2, n: int = 16, grid: tuple[float, ...] = (0.5, 0.7, 0.9, 1.1, 1.3),
           temperature: float = 1.0, share: float = 0.1, max_new_tokens: int = 512,
           samples: int = 1024, steps: int = 1, iterations: int = 8, updates: int | None = None,
           epochs: int = 1, batch: int = 64, lr: float = 1e-6, seed: int = 0) -> Loop:
    """`votes` replies a step; `temperature` is that of the first round; `grid` the others."""
    process = ranker_named(ranker) if ranker else StepCheck(
        n=votes, sampling=Sampling(temperature=1.0 if votes > 1 else 0.0, max_new_tokens=8))
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    return Loop(
        name="m_star", verifier=Reranked(verifier, process), sampler=AdaptiveTemperature(
            grid=grid, start=temperature, share=share, n=n, max_new_tokens=max_new_tokens),
        learn={"solver": Learn(
            organizer=Chain((ChooseTemperature(2, "rank"), BestRight("rank", keep)),
                            Demonstrate(per_sample=keep)),
            loss=SFT(), optim=Optim(lr=lr, updates=updates, epochs=epochs, batch=batch))},
        evaluation=Evaluation(metric=metric or verifier, sampling=greedy),
        iterations=iterations, steps=steps, samples=samples, seed=seed)
