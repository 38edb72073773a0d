"""What a loop's judges will ask of models: requests, tokens, dollars, and the least time.

How often a verifier asks is not read off its class: it is called on made-up answers to a few of the
run's own problems, by an engine that counts and says something readable. So a verifier of the
user's own is counted like those that ship. Tokens of texts are their characters / 4; replies count
with the most that they may be, so tokens and dollars are "at most", and a floor is of replies of
one token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from selfloop import floor
from selfloop.calling import asks_a_model
from selfloop.casting import EngineConfig
from selfloop.costs import Counts, Stage
from selfloop.doors import Doors
from selfloop.floor import Machine, Shape, Work
from selfloop.loop import Loop
from selfloop.organize.judging import judge
from selfloop.roles import Engine, Request, Verifier, name_of
from selfloop.types import Group, Part, Rollout, Sample, Turn

if TYPE_CHECKING:
    from selfloop.config import RunConfig

PROBLEMS = 3
"""Problems that made-up answers are judged on."""
LETTERS = 4.0
"""Characters a token: a rule of thumb for English."""
CLAIMS = "- it is one\n- it is two\n- it is three"
"""What is said to whoever asks for neither points nor a preference: three claims to check."""


@dataclass(frozen=True)
class Judging:
    """What one role is asked for by verifiers, over a whole run."""

    role: str
    model: str
    """As run.yaml has it; "" = the run's own model."""
    requests: int
    prompt_tokens: int
    """Of the requests' text, and pictures where the run's own model sees them."""
    most_drawn: int
    """Tokens of all replies if each is as long as it may be."""
    pictures: bool
    """Whether requests hold pictures."""
    dollars: float | None = None
    """At most; None without prices."""
    floor: float | None = None
    """Least seconds, for the run's own model on the machine that is planned for."""
    flops: float | None = None
    rounds: int | None = None
    """Requests one after the other at a server's concurrency."""

    def __str__(self) -> str:
        said = (f"{self.role} ({self.model or 'the model itself'}): {self.requests:,} requests, "
                f"{self.prompt_tokens:,} tokens asked, at most {self.most_drawn:,} answered")
        if self.dollars is not None:
            said += f", at most ${self.dollars:,.2f}"
        if self.rounds is not None:
            said += f"; {self.rounds:,} times a server's answer in a row"
        return said + (f"; at least {self.floor:.3g} s" if self.floor is not None else "")


@dataclass
class _Tally:
    requests: float = 0.0
    letters: float = 0.0
    pictures: float = 0.0
    drawn: float = 0.0

    def add(self, other: _Tally, times: float) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))


class _Dry:
    """An engine for one role that counts what it is asked."""

    version = 0
    supports = frozenset({"images", "stop", "history", "forced_prefix", "contrast",
                          "masked_attention", "diversity"})

    def __init__(self) -> None:
        self.tally = _Tally()

    def generate(self, requests: Sequence[Request], version: int) -> list[list[Turn]]:
        return [[self._turn(r)] * r.n for r in requests]

    def _turn(self, request: Request) -> Turn:
        text, media = request.context.text, request.context.media
        self.tally.add(_Tally(1, len(text), len(media), request.sampling.max_new_tokens), request.n)
        asked = re.search(r"(score|better) ([0-9a-f]{8}): N", text)
        said = f"{asked[1]} {asked[2]}: {'0' if asked[1] == 'score' else '1'}" if asked else CLAIMS
        return Turn(token_ids=tuple(map(ord, said)))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


class _Everybody(dict[str, _Dry]):
    """A counting engine for every role that is asked for."""

    def __contains__(self, role: object) -> bool:
        return True

    def __missing__(self, role: str) -> _Dry:
        return self.setdefault(role, _Dry())


def asked_for(verifier: Verifier | None, samples: Sequence[Sample], answers: int, words: int
              ) -> tuple[dict[str, _Tally], str]:
    """What one problem's `answers` answers of `words` words cost by role, as a mean over a few
    problems; and why that is not the whole, if it fails on them."""
    if verifier is None or not asks_a_model(verifier) or not samples or answers < 1:
        return {}, ""
    everybody = _Everybody()
    groups = [_made_up(sample, answers, words) for sample in samples[:PROBLEMS]]
    judged = judge(verifier, groups, Doors(cast(dict[str, Engine], everybody), 0, "plan"))
    found = {}
    for role, engine in everybody.items():
        found[role] = _Tally()
        found[role].add(engine.tally, 1 / len(groups))
    failed = judged.unknown.first_error
    return found, f"what {name_of(verifier)} asks ({failed[:120]})" if failed else ""


def unplayed(loop: Loop, config: RunConfig, samples: Sequence[Sample]) -> str:
    """What to mend where a role is asked for that nobody plays; "" where all are played.

    Without `engines:` the run's model plays every role, with them only the solver's. Which roles
    a verifier asks is found by counting, as its costs are: before anything is drawn, not after.
    """
    if not config.engines:
        return ""
    asked = set(loop.learn)
    for part in (loop.sampler, getattr(loop.sampler, "ask", None)):
        asked |= {str(role) for name in ("role", "critic") if (role := getattr(part, name, ""))}
    for verifier in (loop.verifier, loop.evaluation.metric if loop.evaluation else None):
        asked |= asked_for(verifier, list(samples[:PROBLEMS]), 2, 4)[0].keys()
    missing = sorted(asked - {"solver", *config.engines})
    if not missing:
        return ""
    return (f"the role {missing[0]!r} is asked for and nobody plays it (there are solver, "
            f"{', '.join(sorted(config.engines))}): write `{missing[0]}: model` under `engines:` "
            "for the run's own model, or give it another")


def _made_up(sample: Sample, answers: int, words: int) -> Group:
    return Group(sample=sample, rollouts=tuple(
        Rollout(id=f"plan-{i}", sample=sample.id, context=sample.context,
                turns=(Turn(token_ids=(1,)),), output=(Part(text=f"{i} " + "word " * words),))
        for i in range(answers)))


def judging(loop: Loop, config: RunConfig, n: Counts, samples: Sequence[Sample],
            shape: Shape | None, machine: Machine | None
            ) -> tuple[tuple[Judging, ...], list[str]]:
    """What each role is asked by the loop's verifier and its metric, and what is not counted.

    The verifier judges every problem's draws, and the greedy dev answers where the evaluation
    compares the two; the metric judges every dev answer.
    """
    words, how = max(1, round(n.answer)), loop.evaluation
    parts = [(loop.verifier, round(n.draws), n.problems)]
    if how is not None:
        greedy = n.asked / (1 + how.draws)
        parts += [(how.metric, 1, n.asked + n.blind),
                  (loop.verifier if how.rewarded else None, 1, greedy)]
    whole: dict[str, _Tally] = {}
    unknown: list[str] = []
    for verifier, answers, times in parts:
        found, why = asked_for(verifier, samples, answers, words)
        unknown += [why] if why and why not in unknown else []
        for role, tally in found.items():
            whole.setdefault(role, _Tally()).add(tally, times)
    made = tuple(_priced(role, tally, config, shape, machine)
                 for role, tally in sorted(whole.items()) if tally.requests)
    unknown += [f"pictures in what the {j.role} is asked ({j.model} counts them its own way)"
                for j in made if j.pictures and j.model]
    return made, unknown


def _priced(role: str, tally: _Tally, config: RunConfig, shape: Shape | None,
            machine: Machine | None) -> Judging:
    how = _other(role, config)
    seen = tally.pictures * ((shape.picture_tokens or 0.0) if shape and how is None else 0.0)
    made = Judging(role, how.model if how else "", round(tally.requests),
                   round(tally.letters / LETTERS + seen), round(tally.drawn), tally.pictures > 0)
    if how is None:
        work = _least(made, shape, machine)
        return replace(made, flops=work.flops if work else None,
                       floor=work.seconds if work and machine else None)
    if how.base_url is not None:
        made = replace(made, rounds=math.ceil(made.requests / how.concurrency))
    if how.prices is not None:
        made = replace(made, dollars=(made.prompt_tokens * how.prices.prompt
                                      + made.most_drawn * how.prices.completion) / 1e6)
    return made


def _other(role: str, config: RunConfig) -> EngineConfig | None:
    """The engine of another model; None where the run's own plays the role."""
    how = config.engines.get(role)
    return how if isinstance(how, EngineConfig) else None


def _least(made: Judging, shape: Shape | None, machine: Machine | None) -> Work | None:
    """Reading each request once and answering with one token."""
    if shape is None:
        return None
    return floor.rollouts(machine or Machine(1.0, 1.0), shape, prompts=made.requests, group=1,
                          prompt=made.prompt_tokens / made.requests, answer=1.0,
                          batch=made.requests)


def with_judging(stages: tuple[Stage, ...], found: Sequence[Judging]) -> tuple[Stage, ...]:
    """The stages with what the run's own model reads and draws as its judge, in total as well."""
    own = [j for j in found if not j.model]
    if not own:
        return stages
    more = Stage("verify", sum(j.prompt_tokens for j in own), sum(j.most_drawn for j in own),
                 flops=_sum(j.flops for j in own), floor=_sum(j.floor for j in own))
    return tuple(_plus(s, more) if s.name in ("verify", "total") else s for s in stages)


def _plus(stage: Stage, more: Stage) -> Stage:
    return replace(stage, read=stage.read + more.read, drawn=stage.drawn + more.drawn,
                   flops=_sum((stage.flops, more.flops)), floor=_sum((stage.floor, more.floor)))


def _sum(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def over_budget(found: Sequence[Judging], config: RunConfig) -> list[str]:
    """Judges whose budget may end before the run does, one note each."""
    notes = []
    for one in found:
        how = _other(one.role, config)
        if how is None:
            continue
        tokens = one.prompt_tokens + one.most_drawn
        if how.budget is not None and one.dollars is not None and one.dollars > how.budget:
            notes.append(f"engines.{one.role}.budget is ${how.budget:g}, and the run may need "
                         f"${one.dollars:,.2f}")
        if how.token_budget is not None and tokens > how.token_budget:
            notes.append(f"engines.{one.role}.token_budget is {how.token_budget:,}, and the run "
                         f"may need {tokens:,}")
    return notes
