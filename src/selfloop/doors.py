"""The door to the models: runs many samplers or verifiers at once and batches what they ask.

A batch's last floating-point bits depend on what is in it, so batches are formed by rule and not
by timing: wait until every live job is blocked on `generate`, sort what they asked by job and
call, and hand it to the engine in one piece.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from selfloop.roles import Engine, Generate, Request, Sampling, SelfloopError
from selfloop.types import Context, Media, Message, Part, Rollout, Sample, Turn, digest, placed


class Stopped(SelfloopError):
    """Raised by an engine that ends the whole run, where any other error ends one request."""


Job = Callable[[Generate], Any]
"""What one sampler or verifier call does, given its door; sync or async."""


@dataclass
class _Ask:
    job: int
    call: int
    role: str
    request: Request
    sample: str
    future: asyncio.Future[list[Turn]]


@dataclass
class Doors:
    """Opens `generate` for jobs, at fixed policy versions, under keys made from `scope`."""

    engines: Mapping[str, Engine]
    version: int
    scope: str
    """Seed, step and wave: the part of every key that the jobs share."""
    sampling: Sampling = Sampling()
    heat: float = 1.0
    """Factor on every temperature that is asked for; greedy stays greedy."""
    keep: Callable[[Any], Media] | None = None
    """Stores a picture that a sampler drew (an environment's) with the run: Library.keep."""
    _asks: list[_Ask] = field(default_factory=list)
    _live: int = 0

    def run(self, jobs: Sequence[tuple[Sample, str, Job]]) -> list[Any]:
        """Run all jobs (sample, who, job) to their end; results in the order given."""
        results: list[Any] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                results.extend(asyncio.run(self._run(jobs)))
            except BaseException as error:
                failure.append(error)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            work()
        else:  # inside a notebook: its loop is busy running us, so ours lives in a thread
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        if failure:
            raise failure[0]
        return results

    async def _run(self, jobs: Sequence[tuple[Sample, str, Job]]) -> list[Any]:
        self._asks, self._live = [], len(jobs)
        self._wake = asyncio.Event()
        # A thread for each plain function: with fewer, those that wait would hold up the rest.
        plain = sum(_wants_blocking(job) for _, _, job in jobs)
        self._threads = ThreadPoolExecutor(max(1, plain))
        tasks = [asyncio.ensure_future(self._one(i, *job)) for i, job in enumerate(jobs)]
        try:
            while self._live:
                await self._wake.wait()
                self._wake.clear()
                for _ in range(3):  # let calls made side by side by one job arrive
                    await asyncio.sleep(0)
                if self._asks and len({ask.job for ask in self._asks}) >= self._live:
                    self._answer()
                if any(t.done() for t in tasks):
                    _raise_first(tasks)
            return [await task for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            self._threads.shutdown(wait=False)

    def decode(self, token_ids: Sequence[int], role: str = "solver") -> str:
        """Drawn tokens as the text that the engine of this role makes of them."""
        return engine_for(self.engines, role).decode(token_ids)

    async def _one(self, index: int, sample: Sample, who: str, job: Job) -> Any:
        door = self._door(index, sample, who, asyncio.get_running_loop())
        try:
            if inspect.iscoroutinefunction(job) or inspect.iscoroutinefunction(
                getattr(job, "__call__", None)  # noqa: B004
            ):
                return await job(door)
            loop = asyncio.get_running_loop()
            result = job(door) if not _wants_blocking(job) else await loop.run_in_executor(
                self._threads, job, _blocking(door, loop))
            return await result if isinstance(result, Awaitable) else result
        finally:
            self._live -= 1
            self._wake.set()

    def _answer(self) -> None:
        asks, self._asks = sorted(self._asks, key=lambda a: (a.job, a.call)), []
        for role in sorted({ask.role for ask in asks}):
            mine = [ask for ask in asks if ask.role == role]
            engine = engine_for(self.engines, role)
            # A remote engine tells of each request whether it failed; others fail as a whole.
            draw = getattr(engine, "attempt", None) or engine.generate
            try:
                turns = draw([ask.request for ask in mine], self.version)
            except Stopped:
                raise
            except Exception as error:
                for ask in mine:
                    if not ask.future.done():
                        ask.future.set_exception(error)
                continue
            for ask, drawn in zip(mine, turns, strict=True):
                if ask.future.done():
                    continue
                if isinstance(drawn, Exception):
                    ask.future.set_exception(drawn)
                else:
                    ask.future.set_result(drawn)

    def _heated(self, sampling: Sampling) -> Sampling:
        if self.heat == 1:
            return sampling
        return replace(sampling, temperature=sampling.temperature * self.heat)

    def _refuse_unsupported(self, sampling: Sampling, role: str) -> None:
        """What a decoding needs must never be ignored: the draws would be others."""
        lacking = sampling.asks - engine_for(self.engines, role).supports
        if lacking:
            raise SelfloopError(f"role {role!r}: its engine does not decode with "
                                f"{', '.join(sorted(lacking))}: use another sampler or engine")

    def _door(self, job: int, sample: Sample, who: str, loop: Any) -> Generate:
        calls = iter(range(1_000_000))
        said: Counter[str] = Counter()

        async def generate(
            context: Context | Sample, *, n: int = 1, role: str = "solver",
            sampling: Sampling | None = None, history: Sequence[Turn] = (), label: str = "",
        ) -> list[Rollout]:
            seen = context.context if isinstance(context, Sample) else context
            chosen = self._heated(sampling or self.sampling)
            self._refuse_unsupported(chosen, role)
            call = next(calls)
            named = label or str(call)
            again = said[named]  # a label used twice must not draw the same answers twice
            said[named] += 1
            key = (f"{self.scope}/{sample.id}/{role}@{self.version}/{who}.{named}"
                   + (f"#{again}" if again else ""))
            request = Request(context=seen, key=key, n=n, sampling=chosen, history=tuple(history))
            future: asyncio.Future[Any] = loop.create_future()
            self._asks.append(_Ask(job, call, role, request, sample.id, future))
            self._wake.set()
            turns = await future
            decode = engine_for(self.engines, role).decode
            return [
                Rollout(
                    id=digest([key, draw]), sample=sample.id, context=seen, turns=(turn,),
                    output=(Part(text=decode(turn.token_ids)),), role=role,
                    policy_version=self.version,
                    sampling={"sampler": who, "key": f"{key}/{draw}",
                              "temperature": chosen.temperature},
                )
                for draw, turn in enumerate(turns)
            ]

        return generate


def _raise_first(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Raise what the first failed job raised; the others may wait for answers for ever."""
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error


def _wants_blocking(job: Job) -> bool:
    """Plain functions run in a thread, with a `generate` that simply returns."""
    return bool(getattr(job, "blocking", False))


def _blocking(door: Generate, loop: asyncio.AbstractEventLoop) -> Any:
    def generate(*args: Any, **named: Any) -> list[Rollout]:
        if loop.is_closed():
            raise SelfloopError("the run was stopped by another job")
        asked = asyncio.run_coroutine_threadsafe(door(*args, **named), loop)
        while True:
            try:
                return asked.result(timeout=1.0)
            except TimeoutError:
                if asked.done() or loop.is_closed():  # nobody is left who could answer
                    raise
    return generate


def engine_for(engines: Mapping[str, Engine], role: str) -> Engine:
    """The engine that plays `role`; a run with a single engine plays every role with it."""
    if role in engines:
        return engines[role]
    if len(engines) == 1:
        return next(iter(engines.values()))
    raise SelfloopError(
        f"no engine plays the role {role!r}: give engines={{{role!r}: ...}} "
        f"beside {sorted(engines)}, or write `engines: {{{role}: model}}` in run.yaml"
    )


def is_async(component: Any) -> bool:
    """Whether calling the component gives a coroutine."""
    return inspect.iscoroutinefunction(component) or inspect.iscoroutinefunction(
        getattr(component, "__call__", None)  # noqa: B004
    )


def user(text: str) -> tuple[Message, ...]:
    """One user message of plain text."""
    return (Message(role="user", content=(Part(text=text),)),)


def filled(prompt: str, **slots: str) -> str:
    """`prompt` with each {slot} replaced once, in one pass: braces inside a value are left alone,
    so a quoted text can name no slot. Unknown braces stay."""
    return re.sub(r"\{(\w+)\}", lambda m: slots.get(m[1], m[0]), prompt)


def asking(sample: Sample, question: str) -> Context:
    """Another question about a sample's pictures."""
    return asking_of(sample.media, question)


def asking_of(media: Sequence[Media], question: str) -> Context:
    """A question about these pictures: first they, then the text."""
    message = Message(role="user", content=(*placed(media), Part(text=question)))
    return Context(prompt=(message,), media=tuple(media))
