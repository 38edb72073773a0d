"""Learning curves of ours and of TRL's trainers on the same recorded completions.

Ours is the learner as a run calls it (`learning.learn`); TRL's side is `GRPOTrainer.train()` and
`DPOTrainer.train()`, whole, with one method replaced: what would be generated is read from the
record. Both load the same folder, in float32. From the command line: `scripts/trl-curves --help`.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from bench import models
from bench.questions import Question, ask, layout
from bench.trl_head import put_lean_head

from selfloop.engines.hf import HFEngine
from selfloop.learning import learn, updates
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.signals import GroupAdvantage
from selfloop.roles import Optim
from selfloop.testbeds import digits, tiny_vlm
from selfloop.types import (
    AnySignal,
    Branch,
    Group,
    Media,
    Message,
    Pair,
    Part,
    Rollout,
    Sample,
    Turn,
    Verdict,
)

SMALL = models.Size(64, 2, 4, 128, 64, 2, 4, 320)
UPDATES = 20


@dataclass(frozen=True)
class World:
    """A model's folder, questions for it, and what ends an answer in its template."""

    folder: Path
    questions: tuple[Question, ...]
    end: str
    words: tuple[str, ...]
    """What recorded answers are made of."""

    def ids(self, text: str) -> list[int]:
        """An answer's tokens, end of turn included, as TRL's chat template has them."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        found: list[int] = tokenizer(text + self.end, add_special_tokens=False)["input_ids"]
        return found


def embedded(count: int) -> World:
    """The model that ships with the package, and `count` questions about digits."""
    items = digits.items("train", count, seed=5)
    questions = tuple(
        Question((digits.picture(item),), digits.prompts[item.task],
                 (Media(sha256=f"{i:064x}"),)) for i, item in enumerate(items))
    return World(Path(tiny_vlm.__file__).parent / "seed", questions, "<eos>",
                 (" 0", " 1", " 2", " 3", " 4", " 5"))


def random_model(kind: str, folder: Path, count: int, prompt: int = 60,
                 size: models.Size = SMALL) -> World:
    """A `kind` of the benchmark's models with random weights, prompts of `prompt` tokens."""
    models.images_only()
    made = models.build(kind, layout(prompt)[1], folder, size)
    processor = transformers.AutoProcessor.from_pretrained(made)
    return World(made, tuple(ask(kind, processor, prompt, count)), "<|im_end|>\n",
                 tuple("abcdefgh"))


# -- the record -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Drawn:
    """The answers to one question of a generation, and what each of them scored."""

    question: Question
    answers: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]


Record = list[list[Drawn]]
"""For each generation what was drawn for each of its questions."""


def record(world: World, generations: int, prompts: int, group: int, longest: int,
           shortest: int = 2) -> Record:
    """Random answers of unequal lengths, scored by the share of one word (never all alike)."""
    rng = np.random.default_rng(7)

    def answer() -> tuple[tuple[int, ...], float]:
        said = _said(world, rng, shortest, longest)
        return tuple(world.ids("".join(said))), said.count(world.words[0]) / len(said)

    def drawn(question: Question) -> Drawn:
        for _ in range(20):
            answers, scores = zip(*(answer() for _ in range(group)), strict=True)
            if len(set(scores)) > 1:
                return Drawn(question, answers, scores)
        raise AssertionError("no group whose scores differ in twenty tries")

    asked = iter(world.questions)
    return [[drawn(next(asked)) for _ in range(prompts)] for _ in range(generations)]


def _said(world: World, rng: np.random.Generator, shortest: int, longest: int) -> list[str]:
    size = int(rng.integers(shortest, longest + 1))
    return [world.words[i] for i in rng.integers(0, len(world.words), size)]


# -- a curve --------------------------------------------------------------------------------------

@dataclass
class Curve:
    """What happened at each update, and the weights after the last one."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    """Of this process on the processor, so that other processes change little."""

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(float(value))

    def gap(self, other: Curve, name: str) -> float:
        """Largest difference over the updates, relative to the largest value of `other`."""
        mine, theirs = (np.array(c.figures[name]) for c in (self, other))
        assert len(mine) == len(theirs), (name, len(mine), len(theirs))
        most = float(np.abs(theirs).max())
        return float(np.abs(mine - theirs).max()) / (most or 1.0)

    def apart(self, other: Curve, seed: Mapping[str, torch.Tensor]) -> tuple[float, float]:
        """The weights' distance: over the weights' norm, and over the way from the seed."""
        def norm(f: Callable[[str], torch.Tensor]) -> float:
            return float(torch.sqrt(sum(f(n).double().square().sum() for n in other.weights)))

        gap = norm(lambda n: self.weights[n].double() - other.weights[n].double())
        return (gap / norm(lambda n: other.weights[n]),
                gap / norm(lambda n: other.weights[n].double() - seed[n].double()))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What both sides are told."""

    lr: float = 1e-4
    clip: float = 1.0
    kl: float = 0.04
    clip_low: float = 0.2
    clip_high: float = 0.2
    iterations: int = 1
    """Updates on each generation."""
    beta: float = 0.1
    pairs: int = 2
    """Pairs an update (DPO)."""
    lean: bool = False
    """Give TRL the benchmark's faster head."""

    def optim(self, **more: Any) -> Optim:
        """AdamW as transformers' Trainer has it, without weight decay."""
        return Optim(lr=self.lr, betas=(0.9, 0.999), clip=self.clip, **more)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# -- ours -----------------------------------------------------------------------------------------

def engine_of(world: World) -> HFEngine:
    """Our engine on the world's pictures. TRL suppresses no tokens, so nothing is suppressed."""
    engine = HFEngine(world.folder, device="cpu")
    engine.banned_V.zero_()
    pictures = {m.sha256: p for q in world.questions
                for m, p in zip(q.media, q.pictures, strict=True)}
    engine.bind(lambda medium: pictures[medium.sha256])
    engine.publish(0, 0)
    return engine


def our_grpo(world: World, made: Record, how: Settings) -> tuple[Curve, dict[str, torch.Tensor]]:
    """The curve and the seed's weights; log-probs are noted as the sampler would have."""
    engine, curve = engine_of(world), Curve()
    seed = weights(engine.model)
    loss = GRPO(how.clip_low, how.clip_high, kl=how.kl)
    optim = how.optim(batch=10_000, epochs=how.iterations, reference="seed")
    for g, generation in enumerate(made):
        groups = [_group(engine, drawn, f"{g}.{i}") for i, drawn in enumerate(generation)]
        start = time.process_time()
        signals = GroupAdvantage(scale=False)(groups, "")
        learn(engine, signals, loss, optim, str(g), _noting(curve, how))
        curve.seconds += time.process_time() - start
    curve.weights = weights(engine.model)
    return curve, seed


def _noting(curve: Curve, how: Settings) -> Callable[[int, int, Mapping[str, float]], None]:
    def note(number: int, total: int, found: Mapping[str, float]) -> None:
        curve.note("loss", sum(found.get(name, 0.0) for name in ("policy", "kl", "dpo")))
        curve.note("grad_norm", found["grad_norm"])
        if "kl" in found:
            curve.note("kl", found["kl"] / how.kl)
        for name in ("clipped", "margin"):
            if name in found:
                curve.note(name, found[name] * (how.beta if name == "margin" else 1))
    return note


def _group(engine: HFEngine, drawn: Drawn, name: str) -> Group:
    context = drawn.question.context
    sample = Sample(prompt=(Message(role="user", content=(
        *(Part(type="image") for _ in context.media), Part(text=drawn.question.text))),),
        media=context.media, meta={"task": name})
    prompt, media = engine.render(context)
    turns = [Turn(prompt_token_ids=prompt, media=media, token_ids=ids) for ids in drawn.answers]
    known = engine.logprobs([Branch(context=context, turns=(turn,)) for turn in turns])
    rollouts = tuple(
        Rollout(id=f"{name}.{i}", sample=sample.id, context=context, output=(),
                turns=(turn.model_copy(update={"logprobs": tuple(logps)}),))
        for i, (turn, logps) in enumerate(zip(turns, known, strict=True)))
    return Group(sample=sample, rollouts=rollouts,
                 verdicts=tuple(Verdict(score=s) for s in drawn.scores))


@dataclass(frozen=True)
class Preferred:
    """Two texts that answer one question."""

    question: Question
    chosen: str
    rejected: str


def preferences(world: World, count: int, longest: int, shortest: int = 2) -> list[Preferred]:
    """Random answers of unequal lengths to each of the first `count` questions."""
    rng = np.random.default_rng(3)

    def said() -> str:
        return "".join(_said(world, rng, shortest, longest))

    return [Preferred(question, said(), said()) for question in world.questions[:count]]


def our_dpo(world: World, made: Sequence[Preferred], how: Settings
            ) -> tuple[Curve, dict[str, torch.Tensor], list[Preferred]]:
    """The curve, the seed's weights, and the pairs in the order in which they were learned."""
    engine, curve = engine_of(world), Curve()
    seed = weights(engine.model)

    def branch(pair: Preferred, text: str) -> Branch:
        ids = tuple(world.ids(text))
        return Branch(context=pair.question.context, turns=(Turn(token_ids=ids),))

    signals: list[AnySignal] = [Pair(branches={
        "chosen": branch(p, p.chosen), "rejected": branch(p, p.rejected)}) for p in made]
    optim = how.optim(batch=how.pairs, updates=UPDATES, schedule="linear")
    start = time.process_time()
    learn(engine, signals, DPO(how.beta), optim, "dpo", _noting(curve, how))
    curve.seconds = time.process_time() - start
    curve.weights = weights(engine.model)
    return curve, seed, [made[i] for chosen in updates(signals, optim, "dpo") for i in chosen]


# -- TRL ------------------------------------------------------------------------------------------

_TOLD = {"loss": "loss", "grad_norm": "grad_norm", "kl": "kl", "rewards/margins": "margin",
         "clip_ratio/region_mean": "clipped"}


class _Listening(transformers.TrainerCallback):
    """Keeps what a trainer logs at each update."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        for theirs, name in _TOLD.items():
            if theirs in (logs or {}):
                self.curve.note(name, logs[theirs])


def _arguments(out: str, how: Settings, **more: Any) -> dict[str, Any]:
    return {"output_dir": out, "learning_rate": how.lr, "max_grad_norm": how.clip,
            "adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0, "max_steps": UPDATES,
            "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "bf16": False,
            "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
            "disable_tqdm": True, "dataloader_num_workers": 0, "seed": 0, **more}


def _loaded(world: World) -> tuple[Any, Any]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        world.folder, dtype=torch.float32)
    return model, transformers.AutoProcessor.from_pretrained(world.folder, padding_side="left")


def _trained(trainer: Any, curve: Curve, lean: bool) -> Curve:
    if lean:
        for model in (trainer.model, trainer.ref_model):
            if model is not None:
                put_lean_head(model)
    trainer.remove_callback(transformers.PrinterCallback)
    start = time.process_time()
    trainer.train()
    curve.seconds = time.process_time() - start
    curve.weights = weights(trainer.model)
    return curve


def trl_grpo(world: World, made: Record, how: Settings) -> Curve:
    """GRPOTrainer.train() on the record."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    played = iter(made)
    now: list[Drawn] = []

    class Replaying(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, images: Any, *_: Any, **__: Any) -> Any:
            now[:] = next(played)
            found = [list(ids) for drawn in now for ids in drawn.answers]
            assert len(found) == len(prompt_ids) == len(images)
            return found, None

    def scored(completion_ids: Any, **_: Any) -> list[float]:
        assert completion_ids == [list(ids) for drawn in now for ids in drawn.answers]
        return [s for drawn in now for s in drawn.scores]

    group, batch = len(made[0][0].answers), sum(len(d.answers) for d in made[0])
    model, processor = _loaded(world)
    curve = Curve()
    with TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = GRPOConfig(**_arguments(
            out, how, per_device_train_batch_size=batch, num_generations=group,
            steps_per_generation=1, num_iterations=how.iterations, beta=how.kl, temperature=1.0,
            epsilon=how.clip_low, epsilon_high=how.clip_high, scale_rewards="none",
            # TRL's default multiplies the KL by the ratio: equal in value, another gradient
            loss_type="dapo", use_bias_correction_kl=False, shuffle_dataset=False,
            lr_scheduler_type="constant",
            max_completion_length=max(len(a) for g in made for d in g for a in d.answers)))
        rows = [dict(drawn.question.row) for generation in made for drawn in generation]
        trainer = Replaying(model, reward_funcs=scored, args=args, processing_class=processor,
                            train_dataset=Dataset.from_list(rows),
                            callbacks=[_Listening(curve)])
        return _trained(trainer, curve, how.lean)


def trl_dpo(world: World, made: Sequence[Preferred], how: Settings) -> Curve:
    """DPOTrainer.train() on pairs in the given order."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    model, processor = _loaded(world)
    curve = Curve()
    with TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = DPOConfig(**_arguments(
            out, how, per_device_train_batch_size=how.pairs, beta=how.beta, max_length=None,
            lr_scheduler_type="linear", train_sampling_strategy="sequential"))
        rows = [{**p.question.row, "chosen": said(p.chosen), "rejected": said(p.rejected)}
                for p in made]
        trainer = DPOTrainer(model, args=args, processing_class=processor,
                             train_dataset=Dataset.from_list(rows),
                             callbacks=[_Listening(curve)])
        return _trained(trainer, curve, how.lean)


# -- both -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Compared:
    """Two curves and how far they are apart."""

    ours: Curve
    trl: Curve
    seed: dict[str, torch.Tensor]

    @property
    def gaps(self) -> dict[str, float]:
        """Each figure's largest difference relative to TRL's largest value; the weights' distance
        relative to their norm (`weights`) and to the way that TRL's have gone (`way`)."""
        names = sorted(self.ours.figures.keys() & self.trl.figures.keys())
        found = {name: self.ours.gap(self.trl, name) for name in names}
        found["weights"], found["way"] = self.ours.apart(self.trl, self.seed)
        return found

    def written(self) -> dict[str, Any]:
        """Plot-ready: one list a figure and side."""
        return {"gaps": self.gaps, "seconds": {"ours": self.ours.seconds, "trl": self.trl.seconds},
                "ours": self.ours.figures, "trl": self.trl.figures}


def grpo(world: World, made: Record, how: Settings) -> Compared:
    """GRPO on both sides."""
    ours, seed = our_grpo(world, made, how)
    return Compared(ours, trl_grpo(world, made, how), seed)


def dpo(world: World, made: Sequence[Preferred], how: Settings) -> Compared:
    """DPO on both sides, TRL in the order that ours took."""
    ours, seed, order = our_dpo(world, made, how)
    return Compared(ours, trl_dpo(world, order, how), seed)


# -- from the command line ------------------------------------------------------------------------

def table(found: Mapping[str, Compared]) -> str:
    """One row a run, as Markdown."""
    names = ("loss", "grad_norm", "kl", "margin", "weights", "way")
    lines = ["| run | loss | gradient norm | KL | margin | weights | way | ours, CPU s "
             "| TRL, CPU s | ratio |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for name, run in found.items():
        gaps = " | ".join(f"{run.gaps[n]:.1e}" if n in run.gaps else "" for n in names)
        ours, trl = run.ours.seconds, run.trl.seconds
        lines.append(f"| {name} | {gaps} | {ours:.1f} | {trl:.1f} | {trl / ours:.1f} |")
    return "\n".join(lines)


def _asked() -> argparse.Namespace:
    say = argparse.ArgumentParser(prog="scripts/trl-curves", description=(
        "GRPO and DPO, 20 updates, ours and TRL's on the same recorded completions."))
    say.add_argument("--model", choices=("embedded", "llava", "qwen2_5_vl"), default="embedded")
    say.add_argument("--prompt", type=int, default=60, help="tokens of a random model's prompt")
    say.add_argument("--group", type=int, default=4, help="answers to a prompt")
    say.add_argument("--prompts", type=int, default=2, help="prompts, or pairs, an update")
    say.add_argument("--answer", type=int, default=6, help="most words of an answer")
    say.add_argument("--shortest", type=int, default=2, help="fewest words of an answer")
    say.add_argument("--lr", type=float, default=1e-4)
    say.add_argument("--kl", type=float, default=0.04)
    say.add_argument("--large", action="store_true", help="a random model of width 256")
    say.add_argument("--lean", action="store_true", help="give TRL the benchmark's faster head")
    say.add_argument("--only", choices=("grpo", "grpo2", "dpo"), nargs="*",
                     default=["grpo", "grpo2", "dpo"], help="grpo2: two updates a generation")
    say.add_argument("--out", type=Path, help="a JSON file for the curves")
    return say.parse_args()


def main() -> None:
    """Run what is asked for; print the table and write the curves."""
    asked = _asked()
    how = Settings(lr=asked.lr, kl=asked.kl, pairs=asked.prompts, lean=asked.lean)
    count = UPDATES * asked.prompts
    found: dict[str, Compared] = {}
    with TemporaryDirectory() as folder:
        world = embedded(count) if asked.model == "embedded" else random_model(
            asked.model, Path(folder), count, asked.prompt, models.TINY if asked.large else SMALL)
        made = record(world, UPDATES, asked.prompts, asked.group, asked.answer, asked.shortest)
        pairs = preferences(world, count, asked.answer, asked.shortest)
        runs: dict[str, Callable[[], Compared]] = {
            "grpo": lambda: grpo(world, made, how),
            "grpo2": lambda: grpo(world, made[:UPDATES // 2], replace(
                how, iterations=2, clip_low=0.05, clip_high=0.05)),
            "dpo": lambda: dpo(world, pairs, how)}
        for name in asked.only:
            found[f"{asked.model} {name}"] = runs[name]()
    print(table(found))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        curves = {name: run.written() for name, run in found.items()}
        asked.out.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
