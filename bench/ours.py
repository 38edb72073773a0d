"""selfloop's side, through the engine's public calls alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from bench.grid import Point
from bench.questions import Question
from bench.work import LEARNING_RATE, Choice, Group, reward
from selfloop.engines.hf import HFEngine
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.roles import Known, Optim, Request, Sampling
from selfloop.types import Advantage, Branch, Pair, Turn

BUDGET = 2**17
"""Tokens of a batch: the whole group at once, as TRL is given it."""
OPTIM = Optim(lr=LEARNING_RATE)


class Ours:
    """One engine, and the work that is timed."""

    name = "ours"

    def __init__(self, folder: Path, *, checkpointing: bool = False, device: str = "cpu",
                 dtype: str = "float32") -> None:
        # Named only when asked for, so that engines without it can still be measured.
        more: dict[str, Any] = {"checkpointing": True} if checkpointing else {}
        self.engine = HFEngine(folder, dtype=dtype, device=device, max_batch_tokens=BUDGET, **more)
        self.engine.publish(0, 0)
        self.engine.sampler.recorder.after = 0  # in the warm round, not 64 steps later
        self.processor = self.engine.processor
        self.pictures: dict[str, Any] = {}
        self.engine.bind(lambda medium: self.pictures[medium.sha256])

    def show(self, question: Question) -> None:
        """Let the engine find a question's pictures."""
        self.pictures |= dict(zip((m.sha256 for m in question.media), question.pictures,
                                  strict=True))

    def suppress(self, tokens: Sequence[int]) -> None:
        """Exactly these tokens have no probability: the same rule for both sides."""
        self.engine.banned_V.zero_()
        self.engine.banned_V[list(tokens)] = True

    def restart(self) -> None:
        """Seed weights, fresh optimizer."""
        self.engine.restart()

    # -- updates ----------------------------------------------------------------------------

    def grpo_signals(self, work: Group) -> list[Advantage]:
        """The group as the learner reads it, with the log-probs that sampling noted."""
        self.show(work.question)
        context = work.question.context

        def branch(ids: list[int], logprobs: Any = None) -> Branch:
            return Branch(context=context, turns=(Turn(
                prompt_token_ids=tuple(work.prompt_ids), media=context.media,
                token_ids=tuple(ids), logprobs=logprobs),))

        now = self.engine.logprobs([branch(ids) for ids in work.answers])
        old = [tuple(a + b for a, b in zip(lp, noise, strict=True))
               for lp, noise in zip(now, work.noise, strict=True)]
        return [Advantage(branches={"answer": branch(ids, logps)}, advantage=value)
                for ids, logps, value in zip(work.answers, old, work.advantages, strict=True)]

    def grpo_loss(self, signals: Sequence[Advantage]) -> float:
        """Loss, with gradients added to the weights."""
        return self.engine.forward_backward(signals, GRPO(), {})["policy"]

    def pair(self, work: Choice) -> Pair:
        """A preference pair, with TRL's tokens: its end of turn has a line break, ours has none."""
        self.show(work.question)
        context = work.question.context

        def branch(text: str) -> Branch:
            ids = self.processor.tokenizer(text + "<|im_end|>\n", add_special_tokens=False)
            return Branch(context=context, turns=(Turn(token_ids=tuple(ids["input_ids"])),))

        return Pair(branches={"chosen": branch(work.chosen), "rejected": branch(work.rejected)})

    def reference(self, pair: Pair) -> Known:
        """The seed's log-probs of both answers."""
        names = sorted(pair.branches)
        found = self.engine.logprobs([pair.branches[name] for name in names], "seed")
        return {"reference": {(0, n): lp for n, lp in zip(names, found, strict=True)}}

    def dpo_loss(self, pair: Pair, known: Known) -> float:
        """Loss, with gradients added to the weights."""
        return self.engine.forward_backward([pair], DPO(), known)["dpo"]

    def step_optimizer(self) -> None:
        """Clip, AdamW, clear."""
        self.engine.optim_step(OPTIM, OPTIM.lr)

    # -- rollouts and whole steps -------------------------------------------------------------

    def rollouts(self, questions: Sequence[Question], point: Point) -> list[list[Turn]]:
        """G answers of R tokens to each question."""
        return self.engine.generate([
            Request(context=q.context, key=str(i), n=point.group,
                    sampling=Sampling(max_new_tokens=point.answer))
            for i, q in enumerate(questions)], self.engine.version)

    def greedy(self, questions: Sequence[Question], point: Point) -> torch.Tensor:
        """[prompts, R]: each question's likeliest tokens."""
        drawn = self.engine.generate([
            Request(context=q.context, key="greedy", n=1,
                    sampling=Sampling(max_new_tokens=point.answer, temperature=0.0))
            for q in questions], self.engine.version)
        return torch.tensor([turn.token_ids for (turn,) in drawn])

    def step(self, question: Question, point: Point) -> None:
        """Draw a group, reward it, learn from it, name the new weights."""
        (turns,) = self.rollouts([question], point)
        rewards = [reward(self.engine.decode(turn.token_ids)) for turn in turns]
        mean, spread = fmean(rewards), pstdev(rewards) + 1e-4
        self.grpo_loss([Advantage(
            branches={"answer": Branch(context=question.context, turns=(turn,))},
            advantage=(r - mean) / spread) for turn, r in zip(turns, rewards, strict=True)])
        self.step_optimizer()
        self.engine.publish(self.engine.version + 1, 0)

    # -- checks -----------------------------------------------------------------------------

    def logps(self, branches: Sequence[Branch]) -> torch.Tensor:
        """[answers, tokens], under the current weights."""
        return torch.tensor(self.engine.logprobs(branches))

    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients by the parameter's name in the model; they are cleared."""
        found = {n: p.grad.clone() for n, p in self.engine.model.named_parameters()
                 if p.grad is not None}
        self.engine.model.zero_grad(set_to_none=True)
        return found

    def update(self, signals: Sequence[Advantage]) -> Callable[[], None]:
        """The work of one GRPO update."""
        def work() -> None:
            self.grpo_loss(signals)
            self.step_optimizer()
        return work

    def dpo_update(self, pair: Pair, known: Known) -> Callable[[], None]:
        """The work of one DPO update, its reference known."""
        def work() -> None:
            self.dpo_loss(pair, known)
            self.step_optimizer()
        return work

    def dpo_step(self, pair: Pair) -> None:
        """Score the reference, loss, backward, optimizer."""
        self.dpo_loss(pair, self.reference(pair))
        self.step_optimizer()
