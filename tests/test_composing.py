"""Parts named in run.yaml: any sampler, step, maker and reward that ships, and one's own."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from clidata import with_splits
from selfloop.cli import main
from selfloop.collect.env import EnvSampler
from selfloop.collect.negatives import Negatives, worse_media
from selfloop.collect.search import TreeSearch
from selfloop.collect.swapped_pictures import Pool
from selfloop.collect.tools import PictureTool
from selfloop.composing import _shipped, part_named
from selfloop.config import build_loop, load_config, load_data
from selfloop.data import load
from selfloop.judging_costs import unplayed
from selfloop.loop import Loop
from selfloop.organize.advantages import LeaveOneOut, Marked
from selfloop.organize.chain import Chain
from selfloop.organize.refine.builders import Refine
from selfloop.organize.refine.degenerate import Degenerate
from selfloop.organize.refine.filters import AccuracyBand, Finished, HardToFind
from selfloop.organize.refine.pair_filters import LengthBalance
from selfloop.organize.refine.pairs import Margin, Pairs
from selfloop.organize.refine.replay import SelectiveReplay
from selfloop.organize.refine.together import Together
from selfloop.organize.signals import Demonstrate, GroupAdvantage
from selfloop.organize.verify.combine import AllOf, Weighted
from selfloop.organize.verify.format import Pattern
from selfloop.organize.verify.length import Brief, LengthWindow
from selfloop.organize.verify.numeric import Quantity
from selfloop.organize.verify.outside import Outside
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.similarity import DualEncoder
from selfloop.organize.verify.vote import MajorityVote
from selfloop.recipes.seva import seva
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.testbeds.scenes_looks import Looks
from selfloop.types import Group, Media, Message, Sample


def written(folder: Path, method: str = "star", **more: object) -> Path:
    """A run.yaml over digits with these keys besides."""
    path = with_splits(folder, method=method)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | more))
    return path


def built(folder: Path, method: str = "star", **more: object) -> Loop:
    return build_loop(load_config(written(folder, method, **more)))


def chain(loop: Loop):
    return loop.learn["solver"].organizer


# -- what is built --------------------------------------------------------------------------------


def test_a_name_alone_is_short_for_a_part_without_options(tmp_path):
    loop = built(tmp_path, sampler="Steered", reward="MajorityVote",
                 organize={"steps": ["Finished"]})
    long = built(tmp_path, sampler={"use": "Steered"}, reward={"use": "MajorityVote"},
                 organize={"steps": [{"use": "Finished"}]})
    assert loop.sampler == long.sampler and loop.fingerprint() == long.fingerprint()


def test_without_such_keys_the_loop_is_the_methods_own(tmp_path):
    plain = built(tmp_path)
    assert plain.fingerprint() == built(tmp_path, organize={}, evaluation={}).fingerprint()


def test_parts_stand_in_for_the_methods_own(tmp_path):
    own = built(tmp_path)
    loop = built(
        tmp_path, sampler={"use": "TreeSearch", "check": "exact", "budget": 4, "c": "1e0"},
        reward={"use": "MajorityVote"}, evaluation={"draws": 3, "no_image": False},
        organize={"steps": [{"use": "AccuracyBand", "low": 0.1, "high": 0.9},
                            {"use": "HardToFind"}], "wave": 5}, options={"samples": 6})
    assert loop.sampler == TreeSearch(check=exact, budget=4)
    assert loop.verifier == MajorityVote() and loop.evaluation.metric is exact
    assert chain(loop).steps == (*chain(own).steps, AccuracyBand(0.1, 0.9), HardToFind())
    assert chain(loop).maker == chain(own).maker
    assert (chain(loop).wave, loop.max_waves) == (5, 10)
    assert (loop.evaluation.draws, loop.evaluation.no_image) == (3, False)
    assert loop.fingerprint() != own.fingerprint()


def test_a_wave_needs_problems_that_a_step_has_not_drawn(tmp_path):
    with pytest.raises(SelfloopError, match=r"organize.wave=5: star draws all .* options.samples"):
        built(tmp_path, organize={"wave": 5})


def test_selective_replay_stands_around_the_methods_chain(tmp_path):
    plain = chain(built(tmp_path, "grpo", options={"samples": 6}))
    loop = built(tmp_path, "grpo", options={"samples": 6}, organize={
        "steps": ["Finished"], "wave": 4,
        "maker": {"use": "SelectiveReplay", "organizer": "LeaveOneOut", "alpha": 0.5}})
    assert chain(loop) == SelectiveReplay(
        Chain((*plain.steps, Finished()), LeaveOneOut(), wave=4), alpha=0.5)
    assert chain(loop).wants([]) == 4
    own = chain(built(tmp_path, "vl_rethinker", options={}))
    more = chain(built(tmp_path, "vl_rethinker", options={},
                       organize={"steps": ["Degenerate"]}))
    assert more == dataclasses.replace(own, organizer=dataclasses.replace(
        own.organizer, steps=(*own.organizer.steps, Degenerate())))


@pytest.mark.parametrize(("organize", "says"), [
    ({"maker": "AccuracyBand"}, "organize.maker: .*AccuracyBand gives groups.*under organize"),
    ({"steps": ["ClearView"]}, "organize.steps: .*ClearView makes signals.*as maker"),
])
def test_steps_and_makers_are_not_mistaken_for_one_another(tmp_path, organize, says):
    with pytest.raises(SelfloopError, match=says):
        built(tmp_path, organize=organize)


def test_parts_hold_parts(tmp_path):
    loop = built(tmp_path, method="dpo",
                 sampler={"use": "EnvSampler", "n": 2, "env": {"use": "PictureTool", "uses": 2}},
                 organize={"maker": {"use": "Pairs", "propose": {"use": "Margin", "gap": 0.5},
                                     "filters": [{"use": "LengthBalance"}]}})
    assert loop.sampler == EnvSampler(env=PictureTool(uses=2), n=2)
    assert chain(loop).maker == Pairs(Margin(0.5), (LengthBalance(),))


def test_a_function_is_taken_as_it_is_or_called_with_its_options(tmp_path):
    (tmp_path / "own_steps.py").write_text(
        "from selfloop.organize.refine.filters import AccuracyBand\n"
        "def band(low: float = 0.0):\n    return AccuracyBand(low, 1.0)\n"
        "def all_of_them(groups):\n    return list(groups)\n")
    steps = chain(built(tmp_path, organize={"steps": [
        {"use": "without_blind"}, {"use": "own_steps:all_of_them"},
        {"use": "own_steps:band", "low": 0.25}]})).steps[-3:]
    assert [getattr(s, "__name__", s) for s in steps] == [
        "without_blind", "all_of_them", AccuracyBand(0.25, 1.0)]


def test_pictures_of_the_training_data_stand_in_for_one_another(tmp_path):
    loop = built(tmp_path, method="seva",
                 sampler={"use": "Negatives", "causes": ["swapped", "near"], "pool": "train"})
    assert isinstance(loop.sampler, Negatives) and len(loop.sampler.pool.media) == 12


def test_of_two_parts_of_one_name_that_of_the_stage_is_meant(tmp_path):
    assert part_named("Pool", "selfloop.organize").__module__.endswith("refine.pools")
    with pytest.raises(SelfloopError, match=r"'Pool' may be .*swapped_pictures:Pool or .*write "):
        part_named("Pool")
    pool = chain(built(tmp_path, organize={"steps": [{"use": "Pool", "limit": 9}]})).steps[-1]
    assert pool.limit == 9


def _samplers() -> list[str]:
    found = []
    for name, modules in _shipped().items():
        part = part_named(f"{modules[0]}:{name}")
        if inspect.isclass(part) and dataclasses.is_dataclass(part) \
                and "selfloop.collect" in modules[0] \
                and inspect.iscoroutinefunction(vars(part).get("__call__")):
            found.append(name)
    return found


@pytest.mark.parametrize("name", sorted(_samplers()))
def test_every_sampler_has_one_name(name):
    assert part_named(name, "selfloop.collect") is part_named(name)


def test_samplers_are_found_at_all():
    assert {"Independent", "TreeSearch", "SentenceTree", "CritiqueRevise", "SelectAmong", "Propose",
            "EnvSampler", "SpyGame", "MixedDecoding", "MaskedAttention", "Rationalise",
            "FromGold", "ForcedPrefix", "AdaptiveTemperature"} <= set(_samplers())


@pytest.mark.parametrize(("reward", "made"), [
    ({"use": "Weighted", "verifiers": [[1, "exact"], [0.5, {"use": "Brief", "free": 3}]]},
     Weighted(((1.0, exact), (0.5, Brief(free=3))))),
    ({"use": "AllOf", "verifiers": ["exact", {"use": "Pattern", "regex": "^[0-9]$"}]},
     AllOf((exact, Pattern("^[0-9]$")))),
    ({"use": "LengthWindow", "right": "exact", "low": 1, "high": 3},
     LengthWindow(exact, low=1, high=3)),
])
def test_verifiers_are_combined(tmp_path, reward, made):
    assert built(tmp_path, reward=reward).verifier == made


@pytest.mark.parametrize(("given", "made"), [
    ("Quantity", Quantity()), ({"use": "Quantity", "relative": 0.05}, Quantity(relative=0.05)),
    ({"use": "AllOf", "verifiers": ["exact", "Brief"]}, AllOf((exact, Brief()))),
])
def test_the_metric_takes_options_too(tmp_path, given, made):
    path = written(tmp_path, verifier=given)
    loop = build_loop(load_config(path))
    assert loop.evaluation.metric == made == loop.verifier
    (tmp_path / "again.yaml").write_text(load_config(path).as_yaml())
    assert build_loop(load_config(tmp_path / "again.yaml")).evaluation.metric == made


def test_the_command_line_audits_a_verifier_with_options(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, ["audit", "{use: Quantity, relative: 0.05}"])
    assert "Quantity" in found.output and found.exit_code in (0, 1), found.output
    found = CliRunner().invoke(main, ["audit", "{use: Quantity, relativ: 0.05}"])
    assert found.exit_code == 2 and "did you mean 'relative'" in found.output


def test_what_goes_around_a_chain_goes_around_all_of_it(tmp_path):
    loop = built(tmp_path, "grpo", options={}, organize={
        "steps": ["Finished"], "maker": {"use": "SelectiveReplay", "organizer": "GroupAdvantage"}})
    replay = chain(loop)
    assert isinstance(replay, SelectiveReplay) and Finished() in replay.organizer.steps
    assert isinstance(replay.organizer.maker, GroupAdvantage)


def test_of_two_makers_of_one_name_the_one_that_takes_the_options(tmp_path):
    made = chain(built(tmp_path, organize={"maker": {
        "use": "Together", "parts": [[1.0, "Demonstrate"], [0.5, "Refine"]]}})).maker
    assert isinstance(made, Together) and isinstance(made.parts[1][1], Refine)


def test_a_reward_in_a_process_of_its_own(tmp_path):
    loop = built(tmp_path, reward=f"outside:{exact.__module__}:exact seconds=5")
    assert isinstance(loop.verifier, Outside) and loop.verifier.seconds == 5
    loop.verifier.close()


@pytest.mark.parametrize(("name", "made"), [
    ("selfloop.testbeds.scenes_looks:Looks", Looks()), ("models/clip", DualEncoder("models/clip"))])
def test_an_encoder_is_a_folder_or_ones_own(tmp_path, name, made):
    assert built(tmp_path, reward={"use": "ImageText", "encoder": name}).verifier.encoder == made


def test_a_part_of_ones_own_that_returns_something_else_is_named():
    def step(groups):
        return [1]

    def maker(groups):
        return groups

    group = Group(sample=Sample(prompt=(Message(content="?"),)), rollouts=())
    with pytest.raises(SelfloopError, match=r"step .*returned a int where a list of groups"):
        Chain((step,), Demonstrate())([group], {}, "k")
    with pytest.raises(SelfloopError, match=r"maker .*returned a Group where a list of signals"):
        Chain((), maker)([group], {}, "k")
    with pytest.raises(SelfloopError, match="does not take `groups`"):
        Chain((list,), Demonstrate())


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "said"), [
    ({"sampler": {"use": "TreeSerch"}},
     r"^sampler: use: 'TreeSerch' is no part that ships; did you mean 'TreeSearch'\?"),
    ({"sampler": {"use": "TreeSearch"}}, r"^sampler: TreeSearch needs the option 'check'"),
    ({"sampler": {"use": "Independent", "m": 3}},
     r"^sampler: Independent has no option 'm'; .*valid: .*max_new_tokens"),
    ({"sampler": {"use": "Independent", "n": "many"}}, r"Independent\.n = 'many': Input should"),
    ({"organize": {"steps": [{"use": "Negatives", "severity": 7}]}},
     r"^organize\.steps: .*severity"),
    ({"reward": {"use": "nowhere:thing"}}, r"^reward: no component 'nowhere:thing'"),
    ({"organize": {"maker": {"use": "GroupAdvantage"}}}, r"which loss SFT cannot read"),
    ({"sampler": {"use": "AccuracyBand"}}, r"sampler .*AccuracyBand asks for 'groups'"),
    # of the wrong kind: said before anything is drawn
    ({"sampler": "PictureTool"}, r"PictureTool is no sampler.*EnvSampler"),
    ({"verifier": "Independent"}, r"Independent is no verifier: it takes neither"),
    ({"organize": {"steps": ["exact"]}}, r"step .*exact asks for 'rollout'"),
    ({"organize": {"steps": ["Demonstrate"]}}, r"step .*Demonstrate makes signals.*as maker"),
    ({"organize": {"steps": ["TokenRewards"]}}, r"step .*TokenRewards makes signals.*as maker"),
    ({"organize": {"maker": "Degenerate"}}, r"^organize\.maker: .*Degenerate gives groups"),
    ({"organize": {"maker": {"use": "Pairs", "propose": "exact"}}}, r"Pairs\.propose: .*Margin"),
    ({"reward": {"use": "AllOf", "verifiers": ["exact", "MajorityVote"]}},
     r"^AllOf: its part MajorityVote judges whole groups.*InGroups"),
    ({"reward": {"use": "WithBlindAnswers", "verifier": "MajorityVote"}},
     r"^reward: WithBlindAnswers: .*MajorityVote judges the answers of a group together"),
    # pydantic's own words, with the option, its place and the value
    ({"reward": {"use": "AllOf", "verifiers": "exact"}},
     r"^reward: AllOf\.verifiers = 'selfloop.*:exact': .*valid tuple; write it as a list"),
    ({"reward": {"use": "Weighted", "verifiers": ["exact"]}}, r"Weighted\.verifiers\.0 = "),
    ({"organize": {"steps": [{"use": "Stages", "stages": [{"steps": 2}]}]}},
     r"Stages\.stages\.0 = .*steps.*: Field required 'name'"),
])
def test_what_does_not_fit_is_said_in_one_line(tmp_path, more, said):
    with pytest.raises(SelfloopError, match=said) as found:
        built(tmp_path, **more)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("more", "said"), [
    ({"sampler": ["TreeSearch"]}, r"line \d+: sampler = \['TreeSearch'\].*write it as"),
    ({"sampler": {"uses": "TreeSearch"}}, r"line \d+: sampler.*write it as \{use: NAME"),
    ({"organize": {"step": []}}, r"unknown key 'organize\.step'; did you mean 'steps'"),
    ({"evaluation": {"draws": -1}}, r"evaluation\.draws = -1"),
])
def test_a_malformed_key_is_named_with_its_line(tmp_path, more, said):
    with pytest.raises(SelfloopError, match=said):
        load_config(written(tmp_path, **more))


def test_a_method_without_a_chain_says_so(tmp_path):
    (tmp_path / "own_loop.py").write_text(
        "from selfloop.recipes.star import star\nfrom dataclasses import replace\n"
        "def plainly(groups, state, key):\n    return [], {}, {}\n"
        "def odd(verifier, metric, iterations, seed):\n"
        "    loop = star(verifier, metric)\n"
        "    return replace(loop, learn={'solver': replace(loop.learn['solver'], "
        "organizer=plainly)})\n")
    path = written(tmp_path, "own_loop:odd", options={},
                   organize={"steps": [{"use": "Finished"}]})
    with pytest.raises(SelfloopError, match="organize: star has no chain of steps"):
        build_loop(load_config(path))


# -- runs from the command line -------------------------------------------------------------------


def test_a_tree_search_is_run_from_the_command_line(tmp_path):
    """Search with its difficulty read-out, then only problems that were hard to find are kept."""
    path = written(tmp_path, sampler={"use": "TreeSearch", "check": "exact", "budget": 3,
                                      "children": 2, "depth": 1, "step_tokens": 2,
                                      "max_new_tokens": 6},
                   organize={"steps": [{"use": "HardToFind", "above": 1}]})
    found = CliRunner().invoke(main, ["run", str(path), "audit=off"])
    assert found.exit_code == 0, found.output
    groups = RunFolder(tmp_path / "runs" / "star").groups(0)
    spent = [r.sampling["iterations"] for g in groups for r in g.rollouts]
    assert spent and set(spent) <= {1, 2, 3}
    manifest = json.loads(next(tmp_path.glob("runs/star/steps/*/manifest.json")).read_text())
    assert manifest["counts"]["signals_solver"] <= manifest["counts"]["right"]


def test_looking_closer_is_run_and_evaluated_from_the_command_line(tmp_path):
    tool = {"use": "EnvSampler", "env": {"use": "PictureTool", "uses": 1}, "max_turns": 2,
            "max_new_tokens": 6}
    path = written(tmp_path, sampler={**tool, "n": 2},
                   reward={"use": "LastTurn", "right": "exact"},
                   evaluation={"sampler": {**tool, "n": 1, "temperature": 0}})
    found = CliRunner().invoke(main, ["run", str(path), "audit=off"])
    assert found.exit_code == 0, found.output
    groups = RunFolder(tmp_path / "runs" / "star").groups(0)
    assert all("said_last" in r.sampling for g in groups for r in g.rollouts)


SHORT = {"n": 2, "max_new_tokens": 4}
EVERY: dict[str, dict[str, object]] = {
    "AdaptiveTemperature": {**SHORT, "grid": [0.5, 1.0], "share": 0.5},
    "AskOrAnswer": {"ask": {"use": "Propose", "n": 1, "answers": 1, "checks": 1},
                    "answer": {"use": "Independent", **SHORT}},
    "CritiqueRevise": SHORT,
    "Describe": {"max_new_tokens": 4},
    "Distilled": {**SHORT, "guide": "describe_then_answer"},
    "EnvSampler": {**SHORT, "env": {"use": "PictureTool"}, "max_turns": 2},
    "ForcedPrefix": {**SHORT, "text": "1"},
    "FromGold": SHORT,
    "Independent": {**SHORT, "views": 0.5, "op": "blur"},
    "MaskedAttention": SHORT,
    "MixedDecoding": {**SHORT, "mean": 0.5, "spread": 0.2, "against": "mask"},
    "MixedViews": SHORT,
    "Negatives": {**SHORT, "causes": ["swapped", "near", "truncated"], "pool": "train",
                  "blind": True},
    "Propose": {"n": 1, "answers": 2, "checks": 1, "question_tokens": 4, "max_new_tokens": 4},
    "Rationalise": {**SHORT, "check": "exact"},
    "RefinedContext": {"n": 1, "rounds": 2, "max_new_tokens": 4},
    "RelatedQuestions": {"questions": 2, "views": 1, "n": 2, "max_new_tokens": 4},
    "Resumed": SHORT,
    "Rethink": {**SHORT, "share": 0.5, "triggers": ["= 1"]},
    "SelectAmong": {**SHORT, "votes": 1},
    "SentenceTree": {"width": 2, "depth": 2, "sentence_tokens": 3},
    "SpyGame": {"players": 3, "rounds": 1, "clue_tokens": 3, "vote_tokens": 3},
    "Steered": {**SHORT, "most": 3},
    "TreeSearch": {"check": "exact", "budget": 2, "depth": 1, "max_new_tokens": 4},
}
"""Every sampler with options that make it quick. Challenge and Illustrate need a sandbox: they are
tried by the tests of eve and mm_zero."""


def test_every_sampler_is_among_them():
    assert set(EVERY) | {"Challenge", "Illustrate"} == set(_samplers())


@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_runs_a_step_from_the_command_line(tmp_path, name):
    path = written(tmp_path, sampler={"use": name, **EVERY[name]})
    for split, n in (("train", 3), ("dev", 2)):
        rows = (tmp_path / split / f"{split}.jsonl").read_text().splitlines()
        (tmp_path / split / f"{split}.jsonl").write_text("\n".join(rows[:n]) + "\n")
    found = CliRunner().invoke(main, ["run", str(path), "audit=off", "evaluation.no_image=false",
                                      "max_errors=1.0"])
    assert found.exit_code == 0, found.output
    groups = RunFolder(tmp_path / "runs" / "star").groups(0)
    drawn = [r for g in groups for r in g.rollouts]
    assert drawn or name in ("SentenceTree", "Resumed"), "a seed that says one word has no sentence"


def test_refinement_runs_a_step_from_the_command_line(tmp_path):
    """The no-image filter, duplicates, caps and pair filters, named one by one."""
    path = written(
        tmp_path, "dpo", options={"n": 4, "max_new_tokens": 12, "updates": 1, "lr": 1e-5},
        reward={"use": "WithBlindAnswers", "n": 2, "max_new_tokens": 12,
                "verifier": "exact"},
        organize={
            "steps": [
                {"use": "Finished"}, {"use": "Degenerate", "short": 0}, {"use": "Learnt"},
                {"use": "AccuracyBand", "low": 0, "high": 1},
                {"use": "AtMost", "n": 9, "alike": [{"use": "SameText"}]},
                {"use": "NeedsPicture", "k": 3}, {"use": "without_blind"}],
            "maker": {"use": "Pairs", "propose": {"use": "Margin", "gap": 0.5, "per_sample": 2},
                      "filters": [{"use": "Distinct", "contained": False}, {"use": "SwapOrDrop"},
                                  {"use": "SimilarityWindow", "low": 0, "high": 1},
                                  {"use": "LengthBalance"}]}})
    found = CliRunner().invoke(main, ["run", str(path), "audit=off", "evaluation.no_image=false"])
    assert found.exit_code == 0, found.output
    folder = RunFolder(tmp_path / "runs" / "dpo")
    right = {g.sample.id: {s for _, s in g.scored()} for g in folder.groups(0)}
    manifest = json.loads(next(tmp_path.glob("runs/dpo/steps/*/manifest.json")).read_text())
    made = manifest["counts"]["signals_solver"]
    assert 0 < made <= 2 * sum(len(scores) > 1 for scores in right.values())
    assert "learnt" in manifest["state"]["solver"] or "learnt" in manifest["guidance"]


def _page() -> str:
    return (Path(__file__).parent.parent / "docs" / "composing.md").read_text()


def test_the_page_lists_every_sampler_step_and_maker():
    listed = set(re.findall(r"`(\w+)`", _page().partition("## What ships")[2]))
    for name in listed:
        assert name in _shipped(), name
    refining = {name for name, modules in _shipped().items()
                if any(".refine." in m for m in modules)
                and inspect.isclass(part := part_named(name, "selfloop.organize.refine"))
                and {"groups", "group", "candidates"} & _takes(vars(part).get("__call__"))}
    assert set(_samplers()) | refining - {"Decontaminated"} <= listed


def _takes(function: object) -> set[str]:
    return set(inspect.signature(function).parameters) if inspect.isfunction(function) else set()


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", _page(), re.S))
def test_the_pages_examples_are_loops(tmp_path, example):
    path = with_splits(tmp_path)
    given = {**yaml.safe_load(path.read_text()), **yaml.safe_load(example)}
    given.pop("options")
    path.write_text(yaml.safe_dump(given))
    assert build_loop(load_config(path)).name == yaml.safe_load(example)["method"]


def unevaluated(verifier) -> Loop:
    """A method of one's own that looks at no dev set."""
    return dataclasses.replace(seva(verifier), evaluation=None, gate=None)


def test_keys_of_an_evaluation_that_there_is_not_are_refused(tmp_path):
    with pytest.raises(SelfloopError, match="evaluation: seva evaluates nothing on dev"):
        built(tmp_path, f"{__name__}:unevaluated", options={}, evaluation={"draws": 4})


@pytest.mark.parametrize(("form", "found"), [
    ("Tags", "Tags(tags=('think', 'answer'))"), ({"use": "Pattern", "regex": "a"}, "regex='a'"),
    ("Tagz", "'Tagz' is no part that ships; did you mean 'Tags'"), ("exact", "asks for 'answer'"),
    ({"use": "Pattern", "regexp": "a"}, "options.form: Pattern has no option 'regexp'")])
def test_an_option_of_a_method_may_be_a_part(tmp_path, form, found):
    try:
        said = str(built(tmp_path, "visplay", options={"form": form}).verifier)
    except SelfloopError as error:
        said = str(error)
    assert found in said and "\n" not in said


def test_makers_that_are_named_alone_are_built(tmp_path):
    maker = {"use": "selfloop.organize.advantages:Together", "makers": ["GroupAdvantage", {
        "use": "Marked", "maker": "Demonstrate", "mark": "rethought"}]}
    made = chain(built(tmp_path, "grpo", options={}, organize={"maker": maker})).maker
    assert made.makers == (GroupAdvantage(), Marked(Demonstrate(), "rethought"))


# -- the pool of training pictures ----------------------------------------------------------------


def clips(folder: Path, n: int) -> Path:
    """n animations of 12 frames, each its own row."""
    rng = np.random.default_rng(0)
    for i in range(n):
        first, *rest = (Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
                        for _ in range(12))
        first.save(folder / f"{i}.gif", save_all=True, append_images=rest, duration=100)
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(
        {"video": f"{i}.gif", "prompt": f"<video>what is in {i}?", "answer": "x"}) + "\n"
        for i in range(n)))
    return path


def test_the_pool_holds_what_the_run_trains_on(tmp_path):
    """As many frames of each video as the run shows, and none of a row that dev knows."""
    path = clips(tmp_path, 4)
    dev = tmp_path / "dev.jsonl"
    dev.write_text(path.read_text().splitlines()[0] + "\n")
    loop = built(tmp_path, data={"train": str(path), "dev": str(dev), "frames": 3}, options={},
                 method="seva", sampler={"use": "Negatives", "causes": ["near"], "pool": "train"})
    train = load_data(load_config(tmp_path / "run.yaml")).train
    pool = loop.sampler.pool
    assert len(train) == 3 and len(pool.media) == 9
    other = worse_media(train[0].media, "near", 0.5, "k", pool)
    assert len(other) == 3 and len({m.sha256 for m in other}) == 1


class Redness:
    """Stands for a dual encoder."""

    def embeddings(self, picture, text):
        return [float(x) for x in np.asarray(picture).mean((0, 1))], [1.0, 0.0, 0.0]

    def __call__(self, picture, texts):
        return [0.0 for _ in texts]


def test_likeness_may_be_by_meaning(tmp_path):
    near = {"use": "Negatives", "causes": ["near"]}
    pool = {"use": "train", "encoder": f"{__name__}:Redness"}
    loop = built(tmp_path, "seva", options={}, sampler={**near, "pool": pool})
    assert len(loop.sampler.pool.vectors) == len(loop.sampler.pool.media) == 12
    with pytest.raises(SelfloopError, match="train, all training pictures, has no option 'encoding'"
                                            "; did you mean 'encoder'"):
        built(tmp_path, "seva", options={}, sampler={**near, "pool": {"use": "train",
                                                                      "encoding": "x"}})


def test_a_pool_is_printed_in_a_line_and_fingerprinted_whole():
    media = tuple(Media(sha256=f"{i:064x}", meta={"uri": f"/data/{i}.png"}) for i in range(900))
    pool = Pool(media, tuple(range(900)))
    loops = [seva(exact, causes=("blur",)) for _ in range(2)]
    first, second = (dataclasses.replace(loop, sampler=Negatives(causes=("near",), pool=p))
                     for loop, p in zip(loops, (pool, dataclasses.replace(
                         pool, hashes=(7, *pool.hashes[1:]))), strict=True))
    said = repr(pool)
    assert said in repr(first) and re.fullmatch(
        r"Pool\(900 pictures #[0-9a-f]{20}, likeness by layout: 0\.png, 1\.png, 2\.png, \.\.\.\)",
        said)
    assert first.fingerprint() != second.fingerprint()
    others = (Pool(media[1:], pool.hashes[1:]), Pool(media, pool.hashes, ((1.0,),) * 900),
              Pool(media, pool.hashes, ((1.0,),) * 899 + ((0.5,),)))
    told = [dataclasses.replace(first, sampler=Negatives(causes=("near",), pool=p))
            for p in (pool, *others)]
    assert len({loop.fingerprint() for loop in told}) == 4
    assert all(len(json.dumps(loop.described())) < 6000 for loop in told), "what loop.json holds"


def test_a_vote_named_as_verifier_is_refused_where_it_would_measure(tmp_path):
    with pytest.raises(SelfloopError, match=r"metric MajorityVote: .* name as metric what tells"):
        built(tmp_path, verifier="MajorityVote")


def test_a_test_picture_stands_in_for_none(tmp_path):
    """What decontamination leaves out of training may not come back as another's negative."""
    path = written(tmp_path, "seva", sampler={
        "use": "Negatives", "causes": ["swapped"], "pool": "train"})
    train, dev = tmp_path / "train" / "train.jsonl", tmp_path / "dev" / "dev.jsonl"
    rows = [json.loads(line) for line in dev.read_text().splitlines()[:2]]
    rows = [{**r, "images": [f"../dev/{i}" for i in r["images"]]} for r in rows]
    train.write_text(train.read_text() + "".join(json.dumps(r) + "\n" for r in rows))
    held = {m.sha256 for s in load(dev) for m in s.media}

    def shown(*more: str) -> set[str]:
        pool = build_loop(load_config(path, more)).sampler.pool
        return {m.sha256 for m in pool.media}

    assert not shown() & held and len(shown("data.decontaminate=none") & held) == 2
    with pytest.raises(SelfloopError, match=r"sampler: 2 of .* rows are known from the dev"):
        shown("data.decontaminate=raise")


def test_a_role_that_nobody_plays_is_told_before_anything_is_drawn(tmp_path):
    """One engine plays all roles; beside another, each that is asked for has to have its own."""
    path = written(tmp_path, reward="ClaimCheck", engines={"checker": "model"})
    for command in ("check", "run"):
        found = CliRunner().invoke(main, [command, str(path)])
        assert found.exit_code and "the role 'splitter' is asked for" in found.output, found.output
    assert not (tmp_path / "runs").exists()
    for engines in ({}, {"checker": "model", "splitter": "model"}):
        played = load_config(written(tmp_path, reward="ClaimCheck", engines=engines))
        assert unplayed(build_loop(played), played, load(played.data.train)) == ""
