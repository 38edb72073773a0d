"""Exported data: what other trainers are given says what the run's signals said, and trains."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import hf_models
import scripted
import toyland
from selfloop.cli import main
from selfloop.collect.independent import Independent
from selfloop.data import load
from selfloop.engines.toy import ToyEngine
from selfloop.exporting.signals_table import read_signals
from selfloop.exporting.truths import truth_of
from selfloop.exporting.writing import FORMATS, export_data
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.distill import ReverseKL
from selfloop.optimize.losses.preference import DPO, MDPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.decontaminate import Decontaminated, prints_of
from selfloop.organize.refine.filters import AccuracyBand
from selfloop.organize.refine.pools import Pool
from selfloop.organize.signals import (
    BestWorst,
    Demonstrate,
    GroupAdvantage,
    Privileged,
    Views,
)
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.recipes.mm_upt import mm_upt
from selfloop.recipes.visplay import visplay
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Branch, Context, Group, Media, Pair, Part, Verdict

datasets = pytest.importorskip("datasets")

MAKERS = {
    "sft": (Demonstrate(per_sample=2), SFT()), "dpo": (BestWorst(gap=0.5), DPO()),
    "grpo": (GroupAdvantage(), GRPO()), "mdpo": (BestWorst(gap=0.5, corrupted="crop"), MDPO()),
    "viewed": (Views(Demonstrate(per_sample=1), severity=1.0), SFT()),
    "distill": (Privileged(), ReverseKL()),
}


@dataclass(frozen=True)
class Runs:
    """One toy run of one step a kind of signal, made when first asked for."""

    home: Path

    def __getitem__(self, name: str) -> RunFolder:
        folder = self.home / name
        if not folder.exists():
            maker, loss = MAKERS[name]
            loop = Loop(name=name, sampler=Independent(n=6, max_new_tokens=2), verifier=exact,
                        learn={"solver": Learn(organizer=Chain(maker=maker), loss=loss,
                                               optim=toyland.FAST)},
                        gate=None, iterations=1)
            run(loop, toyland.samples(self.home / "data", 8), ToyEngine(("yes", "no")), folder)
        return RunFolder(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def table(folder: Path):
    return datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"),
                                 split="train", cache_dir=str(folder / "cache"))


def said(run: RunFolder) -> dict[tuple[str, ...], tuple[str, ...]]:
    """What the signals say, straight from the rollouts that they were made from."""
    texts = {r.id: r.text for g in run.groups(0) for r in g.rollouts}
    return {s.rollouts: tuple(texts[i] for i in s.rollouts) for s in run.signals(0, "solver")}


# -- what the rows say ---------------------------------------------------------------------------

def test_trl_rows_say_what_the_signals_say(runs, tmp_path):
    made = export_data(runs["dpo"].path, tmp_path / "dpo", "trl")
    rows = table(tmp_path / "dpo")
    assert made.kind == "dpo" and len(rows) == made.rows > 0
    assert sorted((r["chosen"][0]["content"][0]["text"], r["rejected"][0]["content"][0]["text"])
                  for r in rows) == sorted(said(runs["dpo"]).values())
    first = rows[0]
    assert [p["type"] for p in first["prompt"][0]["content"]] == ["image", "text"]
    assert isinstance(first["images"][0], Image.Image) and first["images"][0].size == (8, 8)
    pictures = {m.sha256: Library().open(m) for g in runs["dpo"].groups(0)
                for m in g.sample.media}
    assert any(first["images"][0].convert("RGB").tobytes() == p.tobytes()
               for p in pictures.values())
    export_data(runs["sft"].path, tmp_path / "sft", "trl")
    assert {r["completion"][0]["content"][0]["text"] for r in table(tmp_path / "sft")} \
        == {texts[0] for texts in said(runs["sft"]).values()}


@pytest.mark.parametrize("form", ["trl", "ms-swift", "verl"])
def test_questions_for_grpo_read_back_as_the_samples_they_were(runs, tmp_path, form):
    made = export_data(runs["grpo"].path, tmp_path / "out", form)
    suffix = "jsonl" if form == "ms-swift" else "parquet"
    back = load(tmp_path / "out" / f"train.{suffix}", images=tmp_path / "pictures")
    named = {signal.sample for signal in runs["grpo"].signals(0, "solver")}
    groups = [g for g in runs["grpo"].groups(0) if g.sample.id in named]
    assert made.kind == "grpo" and len(back) == len(groups) > 0
    # the same question, the same bytes of the picture, the same gold answer
    asked = {(s.context.identity, s.answer) for s in back}
    assert asked == {(g.sample.context.identity, g.sample.answer) for g in groups}


def test_kto_rows_are_all_judged_answers(runs, tmp_path):
    export_data(runs["sft"].path, tmp_path / "out", "ms-swift", kind="kto")
    rows = lines(tmp_path / "out")
    texts = {(r["messages"][-1]["content"], r["label"]) for r in rows}
    expected = {(r.text, score >= 0.5) for g in runs["sft"].groups(0) for r, score in g.scored()
                if r.finish_reason == "stop"}
    assert texts == expected and {r["label"] for r in rows} == {True, False}


def test_ms_swift_says_what_was_rejected(runs, tmp_path):
    export_data(runs["dpo"].path, tmp_path / "out", "ms-swift")
    rows = lines(tmp_path / "out")
    assert sorted((r["messages"][-1]["content"], r["rejected_response"]) for r in rows) \
        == sorted(said(runs["dpo"]).values())
    assert all(r["messages"][0]["content"].startswith("<image>is it red") for r in rows)
    assert all((tmp_path / "out" / p).exists() for r in rows for p in r["images"])


def test_llama_factory_names_its_columns(runs, tmp_path):
    for kind, extra in (("dpo", {"chosen", "rejected"}), ("kto", {"label"}), ("sft", set())):
        out = tmp_path / kind
        export_data(runs["dpo" if kind == "dpo" else "sft"].path, out, "llama-factory", kind=kind)
        info = json.loads((out / "dataset_info.json").read_text())["selfloop"]
        row = lines(out)[0]
        assert (out / info["file_name"]).exists() and info["formatting"] == "sharegpt"
        assert set(row) == {"messages", "images"} | extra == set(info["columns"].values())
        assert info.get("ranking", False) is (kind == "dpo")
        answered = [m["role"] for m in row["messages"]]
        assert answered == (["user"] if kind == "dpo" else ["user", "assistant"])
        text = "".join(m["content"] for m in row["messages"])
        assert text.count("<image>") == len(row["images"])


def test_verl_rows_have_the_columns_of_its_loaders(runs, tmp_path):
    export_data(runs["grpo"].path, tmp_path / "rl", "verl")
    row = table(tmp_path / "rl")[1]
    assert row["reward_model"]["style"] == "rule"
    assert row["reward_model"]["ground_truth"] in ("yes", "no")
    assert row["prompt"][0]["content"].startswith("<image>") and len(row["images"]) == 1
    assert row["extra_info"]["index"] == 1 and row["data_source"]
    export_data(runs["sft"].path, tmp_path / "sft", "verl")
    assert [m["role"] for m in table(tmp_path / "sft")[0]["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("name", MAKERS)
def test_the_datasets_table_loses_nothing(runs, tmp_path, name):
    made = export_data(runs[name].path, tmp_path / "out", "datasets")
    signals = runs[name].signals(0, "solver")
    assert read_signals(tmp_path / "out" / "train.parquet") == signals and made.rows == len(signals)
    row = table(tmp_path / "out")[0]
    assert isinstance(row["images"][0], Image.Image)
    named = {b["name"]: b for b in row["branches"]}
    assert set(named) == set(signals[0].branches)
    for branch, given in signals[0].branches.items():
        seen = [row["images"][i].convert("RGB") for i in named[branch]["pictures"]]
        drawn = [Library(runs[name].images).open(m) for m in given.context.media]
        assert [p.tobytes() for p in seen] == [p.tobytes() for p in drawn]


def test_changed_pictures_are_written_as_they_were_seen(runs, tmp_path):
    export_data(runs["viewed"].path, tmp_path / "out", "ms-swift")
    shown = {Image.open(tmp_path / "out" / r["images"][0]).convert("RGB").tobytes()
             for r in lines(tmp_path / "out")}
    library = Library()
    media = [s.branches["target"].context.media[0] for s in runs["viewed"].signals(0, "solver")]
    assert all(m.ops for m in media)
    assert shown == {library.open(m).tobytes() for m in media}


# -- only what the organizer kept ----------------------------------------------------------------

def held_out_run(folder: Path, data: Path) -> tuple[RunFolder, set[str]]:
    """A run on ten questions, and the ids of the four among them that an evaluation holds."""
    questions = toyland.samples(data, 10)
    prints = prints_of(questions[:4], None)
    chain = Chain((Decontaminated(prints, "drop", exact_only=True), AccuracyBand(0.05, 0.95)),
                  GroupAdvantage())
    loop = Loop(name="held", sampler=Independent(n=6, max_new_tokens=2), verifier=exact,
                learn={"solver": Learn(organizer=chain, loss=GRPO(), optim=toyland.FAST)},
                gate=None, iterations=1)
    run(loop, questions, ToyEngine(("yes", "no")), folder)
    return RunFolder(folder), {s.id for s in questions[:4]}


@pytest.mark.parametrize(("form", "kind"), [("verl", None), ("trl", None), ("ms-swift", None),
                                            ("trl", "kto"), ("llama-factory", "kto")])
def test_what_the_organizer_threw_away_is_not_exported(tmp_path, form, kind):
    found, held = held_out_run(tmp_path / "run", tmp_path / "data")
    signals = found.signals(0, "solver")
    named = {s.sample for s in signals}
    assert named and not named & held and len(named) < 6
    made = export_data(found.path, tmp_path / "out", form, kind=kind)
    if kind == "kto":
        rollouts = {r.id: (g.sample.id, r.text) for g in found.groups(0) for r in g.rollouts
                    if r.finish_reason == "stop"}
        named_rollouts = {i for s in signals for i in s.rollouts}
        assert made.rows == len({said for i, said in rollouts.items() if i in named_rollouts}) > 0
    else:
        assert made.rows == len(named)
    left = f"no signal names {10 - len(named)} of its questions"
    assert any(left in note for note in made.notes)
    assert left in (tmp_path / "out" / "export.json").read_text()
    if form == "verl":
        assert {r["extra_info"]["sample"] for r in table(tmp_path / "out")} == named


def test_kto_rows_are_the_rollouts_that_advantages_name(runs, tmp_path):
    """A filter of rollouts holds for the export too: here the signals of half the answers."""
    import shutil

    shutil.copytree(runs["grpo"].path, tmp_path / "run")
    there = RunFolder(tmp_path / "run")
    kept = [s for s in there.signals(0, "solver") if s.advantage > 0]
    there.put_signals(0, "solver", kept)
    made = export_data(there.path, tmp_path / "out", "ms-swift", kind="kto")
    named = {i for s in kept for i in s.rollouts}
    expected = {(g.sample.id, r.text) for g in there.groups(0) for r in g.rollouts
                if r.id in named and r.finish_reason == "stop"}
    assert made.rows == len(expected) and {r["label"] for r in lines(tmp_path / "out")} == {True}


def test_a_pool_names_questions_of_earlier_steps(tmp_path):
    chain = Chain((Pool(),), GroupAdvantage())
    loop = Loop(name="pooled", sampler=Independent(n=6, max_new_tokens=2), verifier=exact,
                learn={"solver": Learn(organizer=chain, loss=GRPO(), optim=toyland.FAST)},
                gate=None, iterations=1, steps=2, samples=4)
    run(loop, toyland.samples(tmp_path / "data", 8), ToyEngine(("yes", "no")), tmp_path / "run")
    there = RunFolder(tmp_path / "run")
    named = {s.sample for s in there.signals(1, "solver")}
    assert named - {g.sample.id for g in there.groups(1)}, "the pool holds step 0's questions"
    export_data(there.path, tmp_path / "out", "verl")
    assert {r["extra_info"]["sample"] for r in table(tmp_path / "out")} == named


# -- the truth of runs without labels ------------------------------------------------------------

@pytest.mark.parametrize("form", ["trl", "ms-swift", "verl"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_vote_is_the_truth_of_a_run_that_voted(tmp_path, form, labelled):
    loop = mm_upt(toyland.exact, n=6, max_new_tokens=2, samples=8, steps=1, iterations=1, lr=0.1)
    loop = replace(loop, gate=None)
    data = toyland.samples(tmp_path / "data", 8)
    # no gold answer is a word of the model, so that a vote cannot be mistaken for one
    data = [s.model_copy(update={"answer": "gold" if labelled else None}) for s in data]
    run(loop, data, ToyEngine(("yes", "no")), tmp_path / "run")
    there = RunFolder(tmp_path / "run")
    winners = {g.sample.context.identity: next(
        v.rationale for v in g.verdicts if v.score == 1) for g in there.groups(0)}
    made = export_data(there.path, tmp_path / "out", form)
    suffix = "jsonl" if form == "ms-swift" else "parquet"
    back = load(tmp_path / "out" / f"train.{suffix}", images=tmp_path / "pictures")
    assert len(back) == made.rows > 0
    assert all(s.answer == winners[s.context.identity] != "gold" for s in back)
    assert any(f"no label: {made.rows} vote" in note for note in made.notes)
    if form != "ms-swift":
        row = table(tmp_path / "out")[0]
        assert (row["extra_info"] if form == "verl" else row)["truth_from"] == "vote"
    else:
        assert {r["truth_from"] for r in lines(tmp_path / "out")} == {"vote"}


def test_pseudo_labels_are_the_truth_of_proposed_questions(tmp_path):
    loop = visplay(toyland.exact, asked=4, judged=5, n=4, max_new_tokens=2, samples=4, steps=3,
                   iterations=1, lr=0.05)
    asks = tuple(f"<question>is {word} there ?</question>" for word in ("it", "one", "red"))
    engines = {"solver": ToyEngine(("cat", "dog"), seed=1), "proposer": ToyEngine(asks, seed=2)}
    run(replace(loop, gate=None), toyland.samples(tmp_path / "data", 8), engines,
        tmp_path / "run")
    there = RunFolder(tmp_path / "run")
    groups = {g.sample.id: g.sample for step in range(3) for g in there.groups(step)}
    made = export_data(there.path, tmp_path / "out", "verl", step="all")
    rows = table(tmp_path / "out")
    assert made.rows == len(rows) > 0
    for row in rows:
        sample = groups[row["extra_info"]["sample"]]
        assert row["reward_model"]["ground_truth"] == sample.meta["pseudo_label"]
        assert row["extra_info"]["truth_from"] == "pseudo-label"


def test_answers_that_no_verifier_read_are_no_truth(tmp_path):
    def long(rollout) -> float:
        return float(len(rollout.text) > 2)

    loop = Loop(name="unread", sampler=Independent(n=6, max_new_tokens=2), verifier=long,
                learn={"solver": Learn(organizer=Chain(maker=GroupAdvantage()), loss=GRPO(),
                                       optim=toyland.FAST)}, gate=None, iterations=1)
    run(loop, toyland.samples(tmp_path / "data", 8), ToyEngine(("yes", "no")), tmp_path / "run")
    with pytest.raises(SelfloopError, match=r"the run never read it.*--as kto"):
        export_data(tmp_path / "run", tmp_path / "out", "trl")
    assert export_data(tmp_path / "run", tmp_path / "kto", "trl", kind="kto").rows


@pytest.mark.parametrize(("scores", "truth"), [
    ((1.0, 1.0, 0.0), ("a", "vote")), ((0.3, 0.3, 0.9), ("b", "vote")),
    ((None, None, None), None), ((0.0, 0.0, 0.0), None)])
def test_the_winner_is_what_a_vote_pays_most(scores, truth):
    sample = scripted.asked(answer="gold")
    rollouts = scripted.collect(Independent(n=3), lambda request, i: "aab"[i], sample)[0]
    verdicts = tuple(Verdict(score=score, rationale=text, parts={"vote_share": 2 / 3})
                     for score, text in zip(scores, "aab", strict=True))
    group = Group(sample=sample, rollouts=tuple(rollouts), verdicts=verdicts)
    assert truth_of(group, frozenset()) == truth
    assert truth_of(group, frozenset({sample.id})) == ("gold", "gold")


# -- several steps -------------------------------------------------------------------------------

@pytest.mark.parametrize(("steps", "expected"), [("all", (0, 1, 2)), ("1-2", (1, 2)), ("1", (1,)),
                                                 (None, (2,))])
def test_several_steps_make_one_set_of_files(runs, tmp_path, steps, expected):
    folder = runs.home / "three"
    if not folder.exists():
        loop = Loop(name="three", sampler=Independent(n=6, max_new_tokens=2), verifier=exact,
                    learn={"solver": Learn(organizer=Chain(maker=BestWorst(gap=0.5)), loss=DPO(),
                                           optim=toyland.FAST)},
                    gate=None, iterations=1, steps=3, samples=4)
        run(loop, toyland.samples(runs.home / "data", 12), ToyEngine(("yes", "no")), folder)
    there = RunFolder(folder)
    pairs = [s for step in expected for s in there.signals(step, "solver")]
    made = export_data(folder, tmp_path / "out", "trl", step=steps)
    assert made.steps == expected and made.step == expected[-1]
    assert made.rows + made.left_out.get("repeated rows", 0) == len(pairs) > 0
    assert len(table(tmp_path / "out")) == made.rows
    whole = export_data(folder, tmp_path / "whole", "datasets", step=steps)
    assert read_signals(tmp_path / "whole" / "train.parquet") == pairs and whole.rows == len(pairs)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["steps"] == list(expected)
    if steps == "all":
        done = CliRunner().invoke(main, ["export", str(folder), "--format", "trl", "--step", steps,
                                         "--out", str(tmp_path / "called")])
        assert done.exit_code == 0 and "rows of steps 0 to 2" in done.output, done.output
    for other in ("2-", "some", "-1"):
        with pytest.raises(SelfloopError, match="a number, a range such as 2-5, or all"):
            export_data(folder, tmp_path / "other", "trl", step=other)


# -- what cannot be carried ----------------------------------------------------------------------

@pytest.mark.parametrize(("name", "form", "kind", "says"), [
    ("mdpo", "trl", None, "further branch 'corrupted'.*--format datasets"),
    ("distill", "trl", None, "kind distill.*--format datasets.*--as kto"),
    ("grpo", "llama-factory", None, "no trainer that draws.*--format trl, ms-swift or verl"),
    ("dpo", "verl", None, "no trainer of dpo rows.*--as grpo"),
    ("dpo", "trl", "sft", "kind pair.*leave out --as"),
    ("dpo", "json", None, "expected one of trl, ms-swift"),
    ("dpo", "trl", "ppo", "expected one of sft, dpo"),
    ("dpo", "datasets", "dpo", "leave out --as"),
])
def test_refusals_name_the_mend(runs, tmp_path, name, form, kind, says):
    with pytest.raises(SelfloopError, match=f"(?s){says}"):
        export_data(runs[name].path, tmp_path / "out", form, kind=kind)
    assert not (tmp_path / "out").exists(), "nothing is left half-written"


def test_steps_roles_and_full_folders(runs, tmp_path):
    folder = runs["sft"].path
    with pytest.raises(SelfloopError, match="no finished step 4: there are 0 to 0"):
        export_data(folder, tmp_path / "out", "trl", step=4)
    with pytest.raises(SelfloopError, match="role 'judge': there are solver"):
        export_data(folder, tmp_path / "out", "trl", role="judge")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(SelfloopError, match="not empty"):
        export_data(folder, tmp_path / "full", "trl")


def rewritten(runs: Runs, folder: Path, change) -> Path:
    """The dpo run with its first pair changed."""
    shutil.copytree(runs["dpo"].path, folder)
    there = RunFolder(folder)
    first, *others = there.signals(0, "solver")
    there.put_signals(0, "solver", [change(first), *others])
    return folder


def test_pairs_over_two_pictures_go_to_ms_swift_alone(runs, tmp_path):
    def blanked(pair: Pair) -> Pair:
        old = pair.branches["rejected"]
        media = tuple(m.with_op("blank") for m in old.context.media)
        changed = Branch.model_validate({**old.model_dump(), "context": old.context.seen_as(media)})
        return pair.model_copy(update={"branches": {**pair.branches, "rejected": changed}})

    folder = rewritten(runs, tmp_path / "run", blanked)
    for form in ("trl", "llama-factory"):
        with pytest.raises(SelfloopError, match=r"another prompt or picture.*ms-swift"):
            export_data(folder, tmp_path / form, form)
    export_data(folder, tmp_path / "out", "ms-swift")
    row = lines(tmp_path / "out")[0]
    assert row["images"] != row["rejected_images"] and "rejected_response" not in row
    assert row["rejected_messages"][0] == row["messages"][0]
    blank = Image.open(tmp_path / "out" / row["rejected_images"][0]).convert("RGB")
    assert len(blank.getcolors()) == 1


def test_texts_that_look_like_a_picture_are_refused(runs, tmp_path):
    def named(pair: Pair) -> Pair:
        def asked(branch: Branch) -> Branch:
            found = json.loads(branch.to_json().replace("is it red", "what is <image>"))
            return Branch.model_validate(found)
        return pair.model_copy(update={"branches": {k: asked(b) for k, b in pair.branches.items()}})

    folder = rewritten(runs, tmp_path / "run", named)
    with pytest.raises(SelfloopError, match=r"itself says <image>.*--format trl"):
        export_data(folder, tmp_path / "out", "ms-swift")
    assert export_data(folder, tmp_path / "trl", "trl").rows


@pytest.mark.parametrize(("form", "side"), [("ms-swift", "chosen"), ("llama-factory", "rejected")])
def test_answers_that_say_a_mark_are_left_out_and_counted(runs, tmp_path, form, side):
    """A model writes <image>; a loader that counts marks against pictures stops at that row."""
    def marking(pair: Pair) -> Pair:
        said = Branch(context=pair.branches[side].context, text="see <video> and <image>")
        return pair.model_copy(update={"branches": {**pair.branches, side: said}})

    folder = rewritten(runs, tmp_path / "run", marking)
    every = export_data(folder, tmp_path / "trl", "trl").rows
    made = export_data(folder, tmp_path / "out", form)
    assert made.rows == every - 1
    assert made.left_out["answers that say <image>, <video> or <audio>"] == 1
    assert "<video>" not in (tmp_path / "out" / "train.jsonl").read_text()


def test_questions_with_sound_do_not_keep_the_others_from_being_exported(runs, tmp_path):
    def heard(pair: Pair) -> Pair:
        def asked(branch: Branch) -> Branch:
            (first, *rest) = branch.context.prompt
            spoken = first.model_copy(update={"content": (*first.content, Part(type="audio"))})
            sound = Media(kind="audio", sha256="c" * 64, meta={"seconds": 1.0})
            return branch.model_copy(update={"context": Context(
                prompt=(spoken, *rest), media=(*branch.context.media, sound))})
        return pair.model_copy(update={"branches": {k: asked(b) for k, b in pair.branches.items()}})

    folder = rewritten(runs, tmp_path / "run", heard)
    every = len(RunFolder(folder).signals(0, "solver"))
    for form in ("trl", "ms-swift"):
        made = export_data(folder, tmp_path / form, form)
        assert (made.rows, made.left_out["questions with sound"]) == (every - 1, 1)
    made = export_data(folder, tmp_path / "all", "datasets")
    assert made.rows == every and list(made.left_out.values()) == [1]
    (first, *_) = read_signals(tmp_path / "all" / "train.parquet")
    assert [m.kind for m in first.branches["chosen"].context.media] == ["image", "audio"]


def test_kto_rows_of_scores_that_call_no_answer_good_are_refused(runs, tmp_path):
    """RLAIF-V's score is minus the number of rejected claims: 0 is the best answer."""
    shutil.copytree(runs["dpo"].path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    groups = [g.model_copy(update={"verdicts": tuple(
        v.model_copy(update={"score": v.score - 1}) for v in g.verdicts)})
        for g in folder.groups(0)]
    ((_, plan),) = folder.manifest(0)["shards"]
    folder.put_verdicts(0, 0, plan, groups, {})
    with pytest.raises(SelfloopError, match=r"between -1 and 0.*all would be bad.*--as dpo"):
        export_data(folder.path, tmp_path / "kto", "trl", kind="kto")
    assert export_data(folder.path, tmp_path / "dpo", "trl").rows


def test_what_is_left_out_is_counted(runs, tmp_path):
    def weighed(pair: Pair) -> Pair:
        return pair.model_copy(update={"weight": 0.5, "margin": 0.25})

    folder = rewritten(runs, tmp_path / "run", weighed)
    assert export_data(folder, tmp_path / "out", "trl").left_out == {"weights": 1, "margins": 1}
    kept = json.loads((tmp_path / "out" / "export.json").read_text())
    assert kept["left_out"] == {"weights": 1, "margins": 1} and "DPOTrainer" in kept["use"]


# -- the command line ----------------------------------------------------------------------------

def test_the_command_line_exports_every_format(runs, tmp_path):
    for form in FORMATS:
        kind = [] if form == "datasets" else ["--as", "sft"]
        out = tmp_path / form
        done = CliRunner().invoke(main, ["export", str(runs["sft"].path), "--format", form, *kind,
                                         "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert (out / "export.json").exists() and "how to load" in done.output
    done = CliRunner().invoke(main, ["export", str(runs["sft"].path), "--as", "kto"])
    assert done.exit_code == 2
    done = CliRunner().invoke(main, ["export", str(runs["sft"].path), "--format", "trl",
                                     "--merge"])
    assert done.exit_code == 2


# -- TRL trains on it ----------------------------------------------------------------------------

@pytest.mark.slow
def test_trl_draws_and_rewards_answers_to_exported_questions(runs, tmp_path):
    """GRPOTrainer takes a step on the grpo rows: the reward is handed `solution`, row by row."""
    trl = pytest.importorskip("trl")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    hf_models.llava(tmp_path / "model")
    export_data(runs["grpo"].path, tmp_path / "out", "trl")
    handed: list[tuple[str, str]] = []

    def reward(completions, solution, truth_from, **_) -> list[float]:
        handed.extend(zip(solution, truth_from, strict=True))
        texts = [c[0]["content"] for c in completions]
        return [float(len(text) % 3) + 0.1 * i for i, text in enumerate(texts)]

    settings = trl.GRPOConfig(
        output_dir=str(tmp_path / "trained"), max_steps=1, report_to=[], num_generations=2,
        per_device_train_batch_size=2, learning_rate=0.1, use_cpu=True, bf16=False, beta=0.0,
        gradient_checkpointing=False, save_strategy="no", max_completion_length=4)
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    before = {n: p.clone() for n, p in model.named_parameters()}
    made = trl.GRPOTrainer(model=model, args=settings, reward_funcs=reward,
                           train_dataset=table(tmp_path / "out"), processing_class=processor)
    done = made.train()
    assert done.global_step == 1 and torch.isfinite(torch.tensor(done.training_loss))
    assert {solution for solution, _ in handed} <= {"yes", "no"} and handed
    assert {source for _, source in handed} == {"gold"}
    assert any(not torch.equal(p, before[n]) for n, p in made.model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_trl_trains_a_step(runs, tmp_path, kind):
    trl = pytest.importorskip("trl")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    hf_models.llava(tmp_path / "model")
    export_data(runs["sft" if kind == "kto" else kind].path, tmp_path / "out", "trl", kind=kind)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer, config = {"sft": (trl.SFTTrainer, trl.SFTConfig),
                       "dpo": (trl.DPOTrainer, trl.DPOConfig),
                       "kto": (trl.KTOTrainer, trl.KTOConfig)}[kind]
    settings = config(output_dir=str(tmp_path / "trained"), max_steps=1, report_to=[],
                      per_device_train_batch_size=2, learning_rate=0.1, use_cpu=True, bf16=False,
                      gradient_checkpointing=False, save_strategy="no", max_length=None)
    made = trainer(model=model, args=settings, train_dataset=table(tmp_path / "out"),
                   processing_class=AutoProcessor.from_pretrained(tmp_path / "model"))
    done = made.train()
    assert done.global_step == 1 and torch.isfinite(torch.tensor(done.training_loss))
    assert any(not torch.equal(p, before[n]) for n, p in made.model.named_parameters())
