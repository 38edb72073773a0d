"""R3V, MM-UPT and VisPlay: what they draw, pay and learn from, and what one step tells the next."""

from __future__ import annotations

from dataclasses import replace

import pytest

import toyland
from killing import contents
from scripted import Scripted, asked, collect, picture
from selfloop.collect.drawing import draw
from selfloop.collect.env import EnvSampler
from selfloop.collect.hinted import Rationalise
from selfloop.collect.propose import EASIER, HARDER, VISIBLE, AskOrAnswer, Propose
from selfloop.collect.steered import Steered
from selfloop.config import SEED, RunConfig
from selfloop.data import load
from selfloop.doors import Doors, asking
from selfloop.engines.hf import HFEngine
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Loop
from selfloop.methods import build_loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.refine.own_questions import AskNext, proposed_samples
from selfloop.organize.refine.together import Together
from selfloop.organize.signals import Demonstrate, SuperviseAnswers
from selfloop.organize.verify.own_questions import OwnQuestions, PseudoLabel
from selfloop.organize.verify.vote import MajorityVote
from selfloop.pictures import Library
from selfloop.recipes.mm_upt import mm_upt
from selfloop.recipes.r3v import r3v
from selfloop.recipes.supervised import supervised
from selfloop.recipes.visplay import visplay
from selfloop.roles import SelfloopError, reads
from selfloop.running import run
from selfloop.stepping import proposed
from selfloop.store import RunFolder
from selfloop.testbeds import digits
from selfloop.types import Group, Rollout, Sample, Verdict

QUESTIONS = tuple(f"<question>{q}?</question>" for q in ("why", "who", "where", "when"))
WORDS = ("yes", "no", "left", "right")


def first_word(rollout: Rollout, answer):
    return rollout.text.split()[:1] == [answer]


def toy(words=WORDS, seed: int = 1) -> ToyEngine:
    return ToyEngine(words, contexts=512, seed=seed)


def played(loop, folder, data, engines) -> RunFolder:
    train, dev = toyland.samples(data, 8), toyland.samples(data, 4, first=8)
    run(replace(loop, gate=None), train, engines, folder, dev=dev,
        library=Library(folder / "images"))
    return RunFolder(folder)


def all_signals(found: RunFolder, role: str, steps: int) -> list:
    return [s for step in range(steps) for s in found.signals(step, role)]


# -- R3V ------------------------------------------------------------------------------------------


def test_r3v_imitates_mends_and_chooses_from_the_seed(tmp_path):
    loop = r3v(first_word, n=3, hard=6, max_new_tokens=2, iterations=2, updates=2, lr=0.1,
               refine=0.5, select=2.0)
    found = played(loop, tmp_path / "run", tmp_path / "data", toy())
    signals = found.signals(1, "solver")
    weights = {s.why: s.weight for s in signals}
    assert weights["wrong -> right"] == 0.5 and weights["one of 3"] == 2.0
    assert weights["gold answer"] == 1.0 and any("drawn" in why for why in weights)
    texts = {s.why: s.branches["target"].context.text for s in signals}
    assert "This was answered:" in texts["wrong -> right"]
    assert "Which one is right?" in texts["one of 3"]
    groups = {g.sample.id: g for g in found.groups(0)}
    right = {r.id for g in groups.values() for r, s in g.scored() if s}
    pooled = {s.rollouts[0] for s in signals if s.rollouts} & {
        r.id for g in groups.values() for r in g.rollouts}
    assert pooled and pooled <= right, "right answers of the first step are still learned from"
    assert loop.learn["solver"].optim.start == "seed"


def test_r3v_gives_gold_rows_of_pooled_problems_and_its_pool_holds_no_gold(tmp_path):
    """With half of the problems a step: the other half is pooled, and supervised all the same."""
    loop = r3v(first_word, n=3, hard=6, samples=4, max_new_tokens=2, iterations=2, updates=1,
               lr=1e-6)
    found = played(loop, tmp_path / "run", tmp_path / "data", toy())
    first, second = ({g.sample.id: g.sample for g in found.groups(s)} for s in (0, 1))
    assert not set(first) & set(second)
    gold = {s.sample: s.branches["target"].text for s in found.signals(1, "solver")
            if s.why == "gold answer"}
    assert gold == {i: s.answer for i, s in (first | second).items()}
    pool = found.manifest(1)["state"]["solver"]["pool"]
    assert {name for name, _ in pool} == set(gold)
    assert all(Group.from_json(line).sample.answer is None for _, line in pool)
    labels = found.manifest(1)["labels"]
    assert set(labels["full"] + labels["answer_only"]) == set(second), "nothing is counted twice"


def test_r3v_draws_more_where_no_answer_was_right(tmp_path):
    loop = r3v(first_word, n=3, hard=6, max_new_tokens=2, iterations=2, updates=1, lr=1e-6)
    found = played(loop, tmp_path / "run", tmp_path / "data", toy())
    unsolved = {g.sample.id for g in found.groups(0) if not any(s for _, s in g.scored())}
    assert unsolved
    draws = {g.sample.id: len(g.rollouts) for g in found.groups(1)}
    assert {draws[i] for i in unsolved} == {6}
    assert {n for i, n in draws.items() if i not in unsolved} == {3}


# -- MM-UPT ---------------------------------------------------------------------------------------


def test_mm_upt_pays_the_majority_and_reads_no_label(tmp_path):
    loop = mm_upt(toyland.exact, n=6, max_new_tokens=2, samples=4, steps=2, iterations=1, lr=0.1)
    assert not loop.labels_read
    found = played(loop, tmp_path / "run", tmp_path / "data", toy())
    assert found.iterations()[0].labels_answer_only == 0
    for group in found.groups(0):
        said = [r.text for r in group.rollouts if r.text]
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            most = max(said.count(t) for t in said)
            assert verdict.score == 0 or said.count(rollout.text) == most
    advantages = all_signals(found, "solver", 2)
    assert advantages and all(s.kind == "advantage" for s in advantages)
    assert {s.advantage > 0 for s in advantages} == {True, False}


@pytest.mark.parametrize("kind", ["direct", "in-context"])
def test_mm_upt_learns_on_questions_of_its_own(tmp_path, kind):
    loop = mm_upt(toyland.exact, questions=kind, asked=2, n=6, max_new_tokens=2, samples=4,
                  steps=2, iterations=1, lr=0.1)
    engine = toy((*WORDS[:2], *QUESTIONS))
    found = played(loop, tmp_path / "run", tmp_path / "data", engine)
    assert not found.signals(0, "solver"), "proposals are not learned from"
    shown = found.groups(0)[0].rollouts[0].context.text
    assert ("is it red ?" in shown) == (kind == "in-context")
    own = [g for g in found.groups(1) if g.sample.parent]
    assert own and found.manifest(1)["counts"]["proposed"] == len(own)
    assert {len(g.rollouts) for g in own} == {6}
    assert {s.sample for s in found.signals(1, "solver")} <= {g.sample.id for g in own}


@pytest.mark.parametrize("asking", [
    {"checks": 3}, {"asked": 2}, {"tags": False}, {"instruction": "ask"}])
def test_mm_upt_refuses_a_proposer_that_nobody_asks(asking):
    with pytest.raises(SelfloopError, match="questions='own' answers the data's questions"):
        mm_upt(toyland.exact, **asking)
    assert mm_upt(toyland.exact, questions="direct", **asking).sampler.ask.n


def test_mm_upt_refuses_another_kind_of_questions():
    with pytest.raises(SelfloopError, match="expected own, direct or in-context"):
        mm_upt(toyland.exact, questions="mine")


# -- VisPlay --------------------------------------------------------------------------------------


def visplay_run(tmp_path, name="run"):
    loop = visplay(toyland.exact, asked=4, judged=5, n=4, max_new_tokens=2, samples=4, steps=3,
                   iterations=1, lr=0.05)
    engines = {"solver": toy(), "proposer": toy((*QUESTIONS, "hm"), seed=2)}
    return played(loop, tmp_path / name, tmp_path / "data", engines)


def test_visplay_raises_both_roles_without_labels(tmp_path):
    found = visplay_run(tmp_path)
    assert found.iterations()[0].labels_answer_only == 0
    for role in ("proposer", "solver"):
        signals = all_signals(found, role, 3)
        assert signals and {s.role for s in signals} == {role}
    scored = {r.text: s for g in found.groups(0) for r, s in g.scored()}
    assert all(s < 0 for text, s in scored.items() if "?" not in text), "-1 where unreadable"
    assert max(scored.values()) > 0 and max(scored.values()) <= 0.5
    questions = [g.sample for g in found.groups(1) if g.sample.parent]
    assert questions and all(0.3 <= s.meta["vote_share"] <= 0.8 for s in questions)
    proposals = {r.id for g in found.groups(0) for r in g.rollouts if r.role == "proposer"}
    assert {s.parent for s in questions} <= proposals
    assert all(s.answer is None and s.media for s in questions)
    for group in found.groups(1):
        if group.sample.parent:
            for rollout, score in group.scored():
                assert score == (rollout.text == group.sample.meta["pseudo_label"])
    ids = {s.id for s in questions}
    assert {s.sample for s in found.signals(1, "solver")} <= ids


def test_visplay_resumes_to_the_same_bits(tmp_path):
    whole = visplay_run(tmp_path)
    again = visplay_run(tmp_path, "again")
    step = again.step(2)
    for file in (*step.iterdir(), *again.iteration(0).iterdir()):
        file.unlink()
    for version in (3,):
        (again.checkpoint(version) / "manifest.json").unlink()
    visplay_run(tmp_path, "again")
    assert contents(again.path) == contents(whole.path)


# -- through run.yaml -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["r3v", "mm_upt", "visplay"])
def test_reachable_from_run_yaml(method):
    config = RunConfig.model_validate({
        "data": {"train": "train.jsonl"}, "model": "embedded", "verifier": "exact",
        "method": method, "options": {"n": 4, "max_new_tokens": 8}})
    loop = build_loop(config)
    assert loop.name == method and "n=4" in repr(loop)
    assert bool(loop.labels_read) == (method == "r3v")


def test_r3v_draws_no_fewer_for_the_unsolved_than_for_the_others():
    sampler = r3v(toyland.exact, n=8).sampler
    assert (sampler.least, sampler.n, sampler.most) == (8, 8, 8)


# -- what one step tells the next -----------------------------------------------------------------


def judged(name: str, scores, role: str = "solver", **notes) -> Group:
    sample = asked(f"{name} ?", answer=None)
    drawn, _ = collect(Steered(n=max(1, len(scores)), most=99, least=1), lambda r, i: f"a{i}",
                       sample)
    rollouts = tuple(r.model_copy(update={"role": role, "sampling": {**r.sampling, **notes}})
                     for r in drawn)
    return Group(sample=sample, rollouts=rollouts,
                 verdicts=tuple(Verdict(score=s) for s in scores))


def test_learnt_tells_difficulty_and_shares():
    groups = [judged("easy", [1, 1, 1, 1]), judged("hard", [0, 0, 0, 0]),
              judged("mixed", [1, 0, 1, 0]), judged("unknown", [None, None])]
    _, update = Learnt()(groups, {"guidance": {"kept": 1}})
    told = update["guidance"]
    by_name = {g.sample.context.text: told["difficulty"].get(g.sample.id) for g in groups}
    assert list(by_name.values()) == [0.0, 1.0, 0.5, None] and told["kept"] == 1
    third = pytest.approx(1 / 3)
    assert told["learnt"] == {"in_band": third, "zero_variance": pytest.approx(2 / 3),
                              "saturated": third, "hopeless": third}


def test_learnt_remembers_the_newest_only():
    first, second = judged("first", [1]), judged("second", [0])
    step = Learnt(memory=1)
    _, update = step([first], {})
    _, update = step([second], update)
    assert update["guidance"]["difficulty"] == {second.sample.id: 1.0}


def test_learnt_counts_unanswerable_proposals_and_votes():
    proposals = judged("asked", [None, None], role="proposer", answerable=False)
    answers = judged("answered", [1, 0])
    answers = answers.model_copy(update={"verdicts": (
        Verdict(score=1, parts={"vote_share": 0.75}), Verdict(score=0, parts={"vote_share": .25}))})
    _, update = Learnt()([proposals, answers], {})
    assert update["guidance"]["learnt"]["unanswerable"] == 1.0
    assert update["guidance"]["learnt"]["vote_share"] == 0.75


@pytest.mark.parametrize(("difficulty", "n"), [(None, 4), (0.0, 1), (0.5, 4), (0.95, 9), (1.0, 9)])
def test_steered_draws_by_difficulty(difficulty, n):
    sampler = Steered(n=4, most=9, least=1)
    known = {} if difficulty is None else {asked().id: difficulty}
    drawn, _ = collect(sampler, lambda r, i: "a", guidance={"difficulty": known})
    assert len(drawn) == n


@pytest.mark.parametrize(("saturated", "heat"), [(None, 1.0), (0.0, 1.0), (0.4, 1.2), (1.0, 1.3)])
def test_steered_is_hotter_where_groups_are_saturated(saturated, heat):
    told = {} if saturated is None else {"saturated": saturated}
    _, engine = collect(Steered(hottest=1.3), lambda r, i: "a", guidance={"learnt": told})
    assert engine.asked[0].sampling.temperature == pytest.approx(heat)


@pytest.mark.parametrize(("learnt", "line"), [
    ({}, ""), ({"vote_share": 0.9}, HARDER), ({"vote_share": 0.1}, EASIER),
    ({"vote_share": 0.5}, ""), ({"unanswerable": 0.5}, VISIBLE)])
def test_proposers_hear_what_was_learnt(learnt, line):
    _, engine = collect(Propose(n=1), lambda r, i: "", guidance={"learnt": learnt})
    assert engine.asked[0].context.text.endswith(line or Propose().instruction)


# -- own questions --------------------------------------------------------------------------------


def says(request, index: int) -> str:
    text = request.context.text
    if "Ask one question" in text:
        return ["<question>Q easy?</question>", "<question>Q split?</question>",
                "<question>Q wild?</question>", "none"][index]
    if "easy" in text:
        return "cat"
    return "cat" if "split" in text and index < 2 else f"dog {index}"


def proposals() -> Group:
    (group,) = draw(Propose(n=4, answers=4, checks=0), [asked()],
                    Doors({"solver": Scripted(says), "proposer": Scripted(says)}, 0, "s"), {})
    return group


@pytest.mark.parametrize(("band", "kept"), [
    ((0.3, 0.8), ["Q split?"]), ((0.0, 1.0), ["Q easy?", "Q split?", "Q wild?"]),
    ((0.9, 1.0), ["Q easy?"])])
def test_only_questions_in_the_band_are_asked_next(band, kept):
    groups = [proposals()]
    same, update = AskNext(*band)(groups, {}, "k")
    found = proposed(update["guidance"], 1)
    assert same == groups and [s.context.text.strip() for s in found] == kept
    ids = {r.id: r for r in groups[0].rollouts}
    assert all(ids[s.parent].sampling["proposed"] == s.context.text.strip() for s in found)
    assert all(s.meta["pseudo_label"] == "cat" for s in found if "wild" not in s.context.text)


def test_no_more_questions_than_asked_for_and_none_unanswered():
    assert len(AskNext(most=2)([proposals()], {}, "k")[1]["guidance"]["samples"]) == 2
    assert not AskNext(least=5)([proposals()], {}, "k")[1]["guidance"]["samples"]


def test_equal_questions_about_one_picture_are_one_problem_and_all_their_answers_vote():
    """Data have several samples of one picture; samples of one id would draw the same twice."""
    groups = draw(Propose(n=4, answers=4, checks=0), [asked("one ?"), asked("two ?")],
                  Doors({"solver": Scripted(says), "proposer": Scripted(says)}, 0, "s"), {})
    found = proposed_samples(groups)
    assert len({s.id for s in found}) == len(found) == 3
    split = next(s for s in found if "split" in s.context.text)
    assert (split.meta["votes"], split.meta["vote_share"]) == (8, 0.5)
    other = groups[1].sample.model_copy(update={"media": (picture(7),)})
    assert len(proposed_samples([groups[0], groups[1].model_copy(update={"sample": other})])) == 6


def test_a_sample_in_the_guidance_that_is_none_is_named():
    with pytest.raises(SelfloopError, match=r'step 3: guidance\["samples"\]\[0\] is no sample'):
        proposed({"samples": [{"question": "?"}]}, 3)


def test_ask_or_answer_by_parent():
    sampler = AskOrAnswer(Propose(n=4, answers=0, checks=0), Steered(n=2, least=1))
    drawn, _ = collect(sampler, says)
    assert {r.role for r in drawn} == {"proposer"} and len(drawn) == 4
    question = proposed_samples([Group(sample=asked(), rollouts=tuple(drawn))])[0]
    assert question.meta["votes"] == 0 and "pseudo_label" not in question.meta
    answered, _ = collect(sampler, says, question)
    assert {r.role for r in answered} == {"solver"} and len(answered) == 2


def test_ask_or_answer_gives_each_what_it_names(tmp_path):
    """An environment needs `keep`, a second chance needs `answer`: through a whole loop."""
    sampler = AskOrAnswer(Rationalise(first_word, n=2, max_new_tokens=2),
                          EnvSampler(toyland.TwoTurns, n=1, max_new_tokens=2))
    assert reads(sampler) == {"answer"}
    loop = Loop(name="both", sampler=sampler, verifier=first_word, iterations=1, samples=6,
                learn=toyland._learn(Demonstrate(), SFT()))
    data = toyland.samples(tmp_path / "data", 6)
    run(loop, [*data[:3], *(s.model_copy(update={"parent": "p"}) for s in data[3:])],
        toy(("yes", "left")), tmp_path / "run", library=Library(tmp_path / "images"))
    drawn = {g.sample.parent: g.rollouts for g in RunFolder(tmp_path / "run").groups(0)}
    assert {len(r.turns) for r in drawn["p"]} == {2}
    hinted = [r for g in RunFolder(tmp_path / "run").groups(0) for r in g.rollouts
              if r.sampling.get("hinted")]
    assert hinted, "where the gold answer is no, which the toy cannot say"


def test_ask_or_answer_refuses_when_built():
    async def asks_too_much(generate, sample, deadline):
        return []

    def waits_for_nobody(generate, sample):
        return []

    ask = Propose(n=1)
    with pytest.raises(SelfloopError, match="asks for 'deadline', which a sampler is never given"):
        AskOrAnswer(ask, asks_too_much)
    with pytest.raises(SelfloopError, match="waits_for_nobody is not asynchronous"):
        AskOrAnswer(waits_for_nobody, ask)


def formed(rollout: Rollout) -> bool:
    return rollout.text.startswith("dog")


@pytest.mark.parametrize(("label", "text", "form", "score"), [
    ("cat", "Cat.", None, 1.0), ("cat", "dog", None, 0.0), (None, "cat", None, None),
    ("cat", "cat", formed, 0.9), ("cat", "dog", formed, 0.1), ("dog", "dog", formed, 1.0)])
def test_pseudo_label(label, text, form, score):
    sample = Sample(prompt=asked().prompt, media=asked().media,
                    meta={} if label is None else {"pseudo_label": label})
    (rollout,), _ = collect(Steered(n=1, least=1), lambda r, i: text, sample)
    found = PseudoLabel(form)(rollout, sample).score
    assert found == (None if score is None else pytest.approx(score))


def test_own_questions_judges_each_kind_of_group_by_its_own():
    answered = judged("plain", [None] * 3)
    verifier = OwnQuestions(MajorityVote(share=0.0, ties="first"))
    assert [v.score for v in verifier(answered)] == [1.0, 0.0, 0.0]
    assert {v.score for v in verifier(proposals())} == {None}
    assert reads(verifier) == frozenset()


def test_together_weighs_and_keeps_apart_who_reads_labels():
    maker = Together(((2.0, Demonstrate()), (0.5, SuperviseAnswers())))
    group = judged("q", [1])
    found = maker([group], "k", answers={group.sample.id: "gold"})
    assert [s.weight for s in found] == [2.0, 0.5]
    assert reads(maker) == {"answers"} and reads(Together(((1.0, Demonstrate()),))) == frozenset()
    with pytest.raises(SelfloopError, match="weights above 0"):
        Together(((0.0, Demonstrate()),))




# -- on the embedded model ------------------------------------------------------------------------

ASK = "please write what to read in this picture ."


def embedded(folder=SEED) -> HFEngine:
    return HFEngine(str(folder), threads=1)


def digit_samples(folder, n: int) -> list[Sample]:
    digits.write(folder, "train", n, seed=0)
    return list(load(folder / "train.jsonl"))


def asking_engine(samples, folder) -> HFEngine:
    """The seed, taught for a few updates to write one of the questions that it knows."""
    taught = []
    for i, sample in enumerate(samples):
        shown = asking(sample, ASK)
        question = list(digits.prompts.values())[i % len(digits.prompts)]
        taught.append(Sample(prompt=shown.prompt, media=shown.media, answer=question))
    engine = embedded()
    run(replace(supervised(toyland.exact, labels="answer", updates=60, batch=16, lr=1e-3,
                           views=0.0, iterations=1), evaluation=None), taught, engine, folder)
    engine.save(folder / "asks")
    return embedded(folder / "asks")


@pytest.mark.slow
def test_r3v_on_the_embedded_model(tmp_path):
    samples = digit_samples(tmp_path / "data", 40)
    loop = r3v(toyland.exact, n=3, hard=6, max_new_tokens=12, samples=24, iterations=2, updates=4,
               batch=16, lr=2e-4)
    run(replace(loop, gate=None), samples[:32], embedded(), tmp_path / "run", dev=samples[32:])
    found = RunFolder(tmp_path / "run")
    whys = {s.why for s in found.signals(1, "solver")}
    assert {"wrong -> right", "one of 3", "gold answer"} <= whys
    assert found.json("steps", "000001", "learned.json")["solver"]["updates"] == 4


@pytest.mark.slow
def test_mm_upt_on_the_embedded_model(tmp_path):
    samples = digit_samples(tmp_path / "data", 24)
    loop = mm_upt(toyland.exact, n=6, temperature=1.0, max_new_tokens=12, samples=8, steps=2,
                  iterations=1, lr=1e-5)
    (done,) = run(replace(loop, gate=None), samples[:16], embedded(), tmp_path / "run",
                  dev=samples[16:])
    found = RunFolder(tmp_path / "run")
    assert done.labels_answer_only == done.labels_full == 0
    assert all(found.signals(step, "solver") for step in range(2))


@pytest.mark.slow
def test_visplay_on_the_embedded_model(tmp_path):
    samples = digit_samples(tmp_path / "data", 40)
    proposer = asking_engine(samples, tmp_path / "warm")
    loop = visplay(toyland.exact, asked=4, judged=5, n=4, tags=False, instruction=ASK,
                   max_new_tokens=12, samples=8, steps=2, iterations=1, lr=1e-5)
    (done,) = run(replace(loop, gate=None), samples[:32],
                  {"solver": embedded(), "proposer": proposer}, tmp_path / "run",
                  dev=samples[32:])
    found = RunFolder(tmp_path / "run")
    assert done.labels_answer_only == done.labels_full == 0
    asked_for = {r.sampling.get("proposed") for g in found.groups(0) for r in g.rollouts
                 if r.role == "proposer"}
    assert asked_for & set(digits.prompts.values()), "the questions of the testbed are asked"
    own = [g for g in found.groups(1) if g.sample.parent]
    assert own and all(0.3 <= g.sample.meta["vote_share"] <= 0.8 for g in own)
    assert found.signals(0, "proposer") and found.signals(1, "solver")
