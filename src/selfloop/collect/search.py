"""Tree search over reasoning steps, which also says how hard a problem is (primitive S4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from selfloop import keys
from selfloop.collect.beams import stopped
from selfloop.collect.conditioning import noted, wholly_own
from selfloop.collect.hinted import judged
from selfloop.collect.unsayable import if_sayable
from selfloop.roles import Generate, Sampling, SelfloopError, Verifier
from selfloop.types import Rollout, Sample, Verdict


@dataclass
class Node:
    """A beginning of an answer, with what was found below it."""

    text: str = ""
    depth: int = 0
    parent: Node | None = None
    answer: Rollout | None = None
    """The whole answer, where the text is one: below it there is nothing."""
    verdict: Verdict | None = None
    """What was said of that answer, once it has been judged."""
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0
    """Sum of the scores of the answers that passed through."""

    def ucb(self, c: float) -> float:
        """Mean value + c sqrt(ln N_parent / n) (UCB1); infinite before the first visit."""
        if not self.visits:
            return math.inf
        parent = self.parent.visits if self.parent else self.visits
        return self.value / self.visits + c * math.sqrt(math.log(parent) / self.visits)

    def root(self) -> Node:
        """The empty beginning."""
        return self if self.parent is None else self.parent.root()

    def leaf(self, c: float) -> Node:
        """The node that the search goes on from: down by the highest UCB, the first of equals."""
        node = self
        while node.children:
            node = max(node.children, key=lambda child: child.ucb(c))
        return node

    def drop(self) -> None:
        """Take the node out of the tree; one that has lost all of its children grows new ones."""
        if self.parent is not None:
            self.parent.children.remove(self)

    def credit(self, score: float | None) -> None:
        """Count an answer for this node and all above it; an unjudged one as the mean so far.

        The mean (one half at the start) moves no choice, which a zero would.
        """
        node: Node | None = self
        if score is None:
            root = self.root()
            score = root.value / root.visits if root.visits else 0.5
        while node is not None:
            node.visits += 1
            node.value += score
            node = node.parent


@dataclass(frozen=True)
class TreeSearch:
    """Monte Carlo tree search for a right answer, at most `budget` iterations.

    ThinkLite-VL (arXiv 2504.07934; its code has c = 1, three children, temperature .5, 50
    iterations): choose a leaf by UCB, add `children` next steps, finish one of them to an answer,
    credit its score upwards, stop at the first right answer. Every finished answer is given back
    with `sampling["iterations"]` (in all) and `["solved"]`: the iterations are the difficulty
    that ThinkLite selects problems by. An answer that `check` cannot judge is credited as the mean
    so far, and a step whose text cannot be forced is taken out of the tree. `check` is a verifier
    of single answers; if it reads labels, so does the sampler.
    """

    check: Verifier
    budget: int = 50
    children: int = 3
    depth: int = 10
    c: float = 1.0
    step_tokens: int = 64
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ("\n",)
    temperature: float = 0.5
    asks: ClassVar[frozenset[str]] = frozenset({"forced_prefix", "stop"})

    def __post_init__(self) -> None:
        if min(self.budget, self.children, self.depth) < 1 or self.c < 0:
            raise SelfloopError(f"{self}: budget, children and depth must be >= 1 and c >= 0")

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates: of one that is never solved."""
        return self.budget

    async def __call__(self, generate: Generate, sample: Sample, key: str, **gold: Any
                       ) -> list[Rollout]:
        """The finished answers, in the order in which they were found."""
        root, found, solved, iterations = Node(), list[Rollout](), False, 0
        while iterations < self.budget and not solved:
            at = f"it{iterations}"
            iterations += 1
            leaf = root.leaf(self.c)
            if leaf.answer is None and leaf.depth < self.depth:
                await self._expand(generate, sample, leaf, at)
            if leaf.children:
                pick = int(keys.generator(f"{key}/{at}").integers(len(leaf.children)))
                leaf = leaf.children[pick]
            if leaf.verdict is None:
                answer = leaf.answer or await self._finish(generate, sample, leaf, at)
                if answer is None:
                    leaf.drop()
                    continue
                verdict = await judged(self.check, answer, sample, key=f"{key}/{at}",
                                       generate=generate, **gold)
                leaf.verdict = verdict if leaf.answer else None  # other leaves end anew each time
                found.append(noted(answer, check=verdict.score))
                solved = verdict.right
            else:
                verdict = leaf.verdict
            leaf.credit(verdict.score)
        return [noted(r, iterations=iterations, solved=solved) for r in found]

    async def _expand(self, generate: Generate, sample: Sample, leaf: Node, label: str) -> None:
        steps = await if_sayable(generate(
            sample, n=self.children, label=f"{label}.step", sampling=Sampling(
                temperature=self.temperature, max_new_tokens=self.step_tokens, stop=self.stop,
                prefix=leaf.text)))
        known: set[str] = set()
        for step in steps:
            if step.text not in known:
                known.add(step.text)
                whole = (step.finish_reason == "stop"
                         and not stopped(step.text, leaf.text, self.stop))
                leaf.children.append(Node(step.text, leaf.depth + 1, leaf,
                                          wholly_own(step) if whole else None))

    async def _finish(self, generate: Generate, sample: Sample, node: Node, label: str
                      ) -> Rollout | None:
        """A whole answer that begins with the node's text; None if that cannot be forced."""
        drawn = await if_sayable(generate(sample, label=f"{label}.answer", sampling=Sampling(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            prefix=node.text)))
        return wholly_own(drawn[0]) if drawn else None
