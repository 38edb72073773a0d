"""The report page, the terminal view, and what both do with missing and hostile content."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

import toyland
from selfloop.engines.toy import ToyEngine
from selfloop.evaluate.answers import Answer, read, write
from selfloop.evaluate.statistics import paired_gain, wilson
from selfloop.pictures import Library
from selfloop.proof import verdict
from selfloop.recipes.mm_upt import mm_upt
from selfloop.report.arms import arms
from selfloop.report.facts import ARMS, gather
from selfloop.report.figures import axis, small
from selfloop.report.page import write_report
from selfloop.report.showing import describe_run, render, show_sample
from selfloop.report.words import decision, short
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder, put_json
from selfloop.types import Part

EVIL = "<script>alert('x')</script> \"><img src=http://evil/x.png onerror=alert(1)> \x1b[31m"
VOID = {"meta", "link", "img", "br", "line", "circle", "rect", "path"}


class Page(HTMLParser):
    """Collects what the tests ask about, and checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A finished toy run of two iterations."""
    home = tmp_path_factory.mktemp("report")
    toyland.perform("mixture", home / "run", home / "data")
    return home


@pytest.fixture
def proof(plain: Path, tmp_path: Path) -> Path:
    """That run as a proof's loop: promoted, with hostile texts, and answers for every arm."""
    shutil.copytree(plain / "run", tmp_path / "proof" / "loop")
    shutil.copytree(plain / "data", tmp_path / "proof" / "data")
    folder = RunFolder(tmp_path / "proof" / "loop")
    plan = folder.manifest(0)["shards"][0]
    drawing = plan if isinstance(plan, str) else plan[0]
    groups = folder.rollouts(0, 0, drawing)
    first = groups[0].rollouts[0].model_copy(update={"output": (Part(text=EVIL),)})
    groups[0] = groups[0].model_copy(
        update={"rollouts": (first, *groups[0].rollouts[1:])})
    folder.put_rollouts(0, 0, drawing, groups)
    seed = [a.model_copy(update={"right": i % 2 == 0}) for i, a in enumerate(
        read(folder.iteration("seed") / "answers.parquet"))]
    write(folder.iteration("seed") / "answers.parquet", seed)
    write(folder.iteration(1) / "answers.parquet", [
        a.model_copy(update={"right": i % 4 != 0, "text": EVIL}) for i, a in enumerate(seed)])
    last = folder.json("iterations", "001", "iteration.json")
    put_json(folder.iteration(1) / "iteration.json", {**last, "best": last["version"]})
    return _with_arms(tmp_path / "proof")


def _with_arms(folder: Path) -> Path:
    """Made-up test answers: arm k is right on a share of 60 questions that grows with k."""
    shares = dict(zip(ARMS, (0.8, 0.4, 0.5, 0.78, 0.45, 0.3, 0.55, 0.1, 0.95), strict=True))
    made = {arm: [Answer(sample=f"q{i}", cluster=f"c{i // 2}", arm=arm, right=(7 * i) % 60 / 60 < s)
                  for i in range(60)] for arm, s in shares.items()}
    for arm, answers in made.items():
        write(folder / "answers" / f"{arm}.parquet", answers)
    figures = {arm: round(100 * sum(a.right for a in found) / 60, 2)
               for arm, found in made.items()}
    gains = {}
    for arm in ARMS[1:]:
        gain = paired_gain(made["final_accuracy"], made[arm])
        gains[arm] = {"gain": 100 * gain.gain, "p_value": gain.p_value,
                      "interval": [100 * gain.low, 100 * gain.high]}
    gains.pop("no_image")
    control = gains["control_steps"]
    put_json(folder / "summary.json", {
        "method": "mixture", "seed": 0, "heldout_n": 60, **figures, "gains": gains,
        "gain_over_control": control["gain"], "interval": control["interval"], "promoted": 4,
        "seconds": 12.5, "words": verdict(figures, gains)})
    return folder


def test_page_is_one_file_that_asks_for_nothing(proof):
    path = write_report(proof)
    text = path.read_text()
    page = Page(text)
    assert path == proof / "report.html"
    assert not page.all("script") and not page.all("iframe") and "@import" not in text
    assert all(i["src"].startswith("data:image/") and i["alt"] for i in page.all("img"))
    assert all(a["href"] == "data:," for a in page.all("link"))
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert all(t.get("scope") in ("col", "row") for t in page.all("th"))
    assert page.all("img") and len(page.all("svg")) > 10


def test_what_a_model_wrote_is_escaped(proof):
    text = write_report(proof).read_text()
    assert "<script" not in text and "onerror=alert(1)>" not in text.replace("&gt;", "")
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in text


def test_page_tells_decision_arms_and_changes(proof):
    words = " ".join(Page(write_report(proof).read_text()).words.split())
    assert "mixture raised held-out accuracy from 40.0 % to 80.0 % on 60 questions" in words
    assert "does not beat “Control, same FLOPs”" in words
    assert "beaten" in words and "not beaten" in words and "reference" in words
    won = sum(not a.right and b.right for a, b in _dev_pairs(proof))
    lost = sum(a.right and not b.right for a, b in _dev_pairs(proof))
    assert won and lost and f"Won: {won}" in words and f"Lost: {lost}" in words
    order = [words.index(w) for w in (
        "Against every arm", "Over iterations", "What the gate decided", "Labels and cost",
        "What became of the answers", "Won and lost on dev", "The loop as it ran",
        "How to recompute this")]
    assert order == sorted(order)


def _dev_pairs(proof: Path):
    before, after = (
        [a for a in read(proof / "loop" / "iterations" / place / "answers.parquet")
         if a.arm == "greedy"] for place in ("seed", "001"))
    return list(zip(before, after, strict=True))


def test_each_arm_is_told_apart(proof):
    states = {row["key"]: row["state"] for row in arms(gather(proof))["rows"]}
    assert states == {
        "final_accuracy": "", "seed_accuracy": "beaten", "control_steps": "beaten",
        "control_flops": "not beaten", "testtime_vote": "beaten", "shuffled": "beaten",
        "supervised_on_answers": "beaten", "no_image": "reference", "skyline": "reference"}
    summary = json.loads((proof / "summary.json").read_text())
    summary["gains"]["shuffled"]["interval"] = [-9.0, -2.0]
    found = replace(gather(proof), summary=summary)
    assert {r["key"]: r["state"] for r in arms(found)["rows"]}["shuffled"] == "the arm is better"


def test_no_more_is_claimed_than_was_run(proof):
    summary = json.loads((proof / "summary.json").read_text())
    put_json(proof / "summary.json", {
        **{k: v for k, v in summary.items() if k != "shuffled"},
        "words": "self-improvement: above every arm, each interval clear of zero"})
    words = Page(write_report(proof).read_text()).words
    assert "above every arm that was run, each" in words
    assert "Not run: Shuffled verdicts" in words


def test_given_dev_questions_are_shown_with_their_pictures(proof):
    assert "were not found near the run" not in Page(write_report(proof).read_text()).words
    (proof / "loop" / "dev.jsonl").unlink()  # as in a run that was moved without it
    without = Page(write_report(proof).read_text())
    assert "were not found near the run" in without.words
    dev = toyland.samples(proof / "data", 6, first=12)
    shown = Page(write_report(proof, dev=dev).read_text())
    assert "were not found near the run" not in shown.words
    assert len(shown.all("img")) > len(without.all("img"))


def test_summary_that_its_answers_do_not_give_is_told(proof):
    summary = json.loads((proof / "summary.json").read_text())
    put_json(proof / "summary.json", {**summary, "control_steps": 10.0})
    assert "The stored answers disagree with the summary" in write_report(proof).read_text()


def test_plain_run_says_that_there_are_no_arms(plain, tmp_path):
    shutil.copytree(plain / "run", tmp_path / "run")
    words = Page(write_report(tmp_path / "run").read_text()).words
    assert "promoted nothing in 2 iterations" in words
    assert "single run without its arms" in words and "Against every arm" not in words


def voting(folder: Path, draws: int) -> Path:
    """A run that votes and reads no label, its dev questions drawn `draws` times."""
    loop = mm_upt(toyland.exact, n=6, max_new_tokens=2, samples=8, steps=1, iterations=1, lr=0.1)
    loop = replace(loop, evaluation=replace(loop.evaluation, draws=draws))
    run(loop, toyland.samples(folder / "data", 8), ToyEngine(("yes", "no")), folder / "run",
        dev=toyland.samples(folder / "data", 12, first=8),
        library=Library(folder / "run" / "images"))
    return folder / "run"


def test_precision_of_pseudo_labels_is_shown_by_vote_share(tmp_path):
    """Counted here again from the stored draws, bin by bin."""
    folder = voting(tmp_path, draws=4)
    page = Page(write_report(folder).read_text())
    assert "How right the majority is" in page.words
    for where in ("seed", "000"):
        drawn: dict[str, list[Answer]] = {}
        for a in read(folder / "iterations" / where / "answers.parquet"):
            if a.arm == "draws":
                drawn.setdefault(a.sample, []).append(a)
        assert len(drawn) == 12
        bins: dict[float, list[bool]] = {}
        for group in drawn.values():
            said = [a.parsed for a in group if a.parsed is not None]
            top = sorted(set(said), key=said.count)[-2:]
            if said and (len(top) == 1 or said.count(top[0]) != said.count(top[1])):
                right = next(a.right for a in group if a.parsed == top[-1])
                bins.setdefault(said.count(top[-1]) / 4, []).append(right)
        assert bins
        for share, rights in bins.items():
            low, high = (100 * end for end in wilson(sum(rights), len(rights)))
            told = f"{100 * sum(rights) / len(rights):.1f} % [{low:.1f}, {high:.1f}]"
            upto = {1.0: "90 to 100", 0.75: "70 to 80", 0.5: "40 to 50", 0.25: "20 to 30"}[share]
            assert f"{upto}{len(rights)}{told}" in page.words, (where, share, told)


def test_a_label_free_run_without_draws_says_that_its_majority_is_not_known(tmp_path, plain):
    page = Page(write_report(voting(tmp_path, draws=0)).read_text())
    assert "how often its majority answers are right is not known" in page.words
    assert "How right the majority is" not in Page(write_report(plain / "run").read_text()).words


def test_picture_that_is_gone_leaves_its_reason(plain, tmp_path):
    toyland.perform("seldom", tmp_path / "run", tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    page = Page(write_report(tmp_path / "run").read_text())
    assert not page.all("img") and "Picture not shown:" in page.words
    assert "no such picture" in page.words


def test_stopped_before_anything_was_decided(tmp_path):
    loop = replace(toyland.loops()["mixture"], gate=None, steps=2)

    def go(budget=None, watch=None):
        run(loop, toyland.samples(tmp_path / "data", 4), ToyEngine(("yes", "no"), seed=1),
            tmp_path / "run", library=Library(tmp_path / "run" / "images"), budget=budget,
            watch=watch)

    def interrupted(event, facts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(watch=interrupted)
    words = Page(write_report(tmp_path / "run").read_text()).words
    assert "No step has been collected" in words
    go(budget=1e-9)
    words = Page(write_report(tmp_path / "run").read_text()).words
    assert "has not decided anything yet" in words and "the budget of 1e-09 s is spent" in words
    assert "No step has been collected" not in words and "no dev answers" in words.lower()
    assert describe_run(tmp_path / "run")["iterations"] == []


def test_torn_files_are_named_and_the_rest_is_shown(proof):
    (proof / "answers" / "control_steps.parquet").write_bytes(b"torn")
    (proof / "loop" / "loop.json").write_text("{")
    words = Page(write_report(proof).read_text()).words
    assert "control_steps.parquet" in words and "loop.json cannot be read" in words
    assert "no interval stored" in words


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(SelfloopError, match="neither a run folder"):
        write_report(tmp_path)


def test_words_are_careful(proof):
    found = gather(proof)
    summary = {**found.summary, "interval": [-1.0, 3.0], "gain_over_control": 1.0}
    assert "not shown to be above" in decision(replace(found, summary=summary))
    summary = {**summary, "promoted": 0}
    assert "promoted nothing" in decision(replace(found, summary=summary))
    summary = {**found.summary, "interval": [-9.0, -2.0], "gain_over_control": -5.0}
    assert "5.0\xa0points below" in decision(replace(found, summary=summary))
    assert short(1234567) == "1.23\xa0M" and short(950) == "950"


def test_axes_hold_any_values():
    for values in ([0.5], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 1e6], [float("nan")], []):
        scale = axis(values)
        assert scale.high > scale.low and all(0 <= scale.at(t) <= 100 for t in scale.ticks)
    assert axis([0.02, 0.99], inside=(0.0, 1.0)).high <= 1.0
    assert "160" not in small("x", [float(i) for i in range(5000)])[:200]
    assert small("x", [None, float("nan")]) == ""


# -- the terminal ---------------------------------------------------------------------------------

def printed(described: dict) -> str:
    sink = io.StringIO()
    render(Console(file=sink, width=120, force_terminal=False), described)
    return sink.getvalue()


def test_a_run_and_a_sample_in_the_terminal(proof):
    told = describe_run(proof)
    assert json.loads(json.dumps(told))["name"] == "mixture"
    assert "raised held-out accuracy" in printed(told)
    group = RunFolder(proof / "loop").groups(0)[0]
    for prefix in (group.sample.id, group.rollouts[1].id):
        shown = show_sample(proof, prefix)
        json.dumps(shown)
        assert shown["id"] == group.sample.id and shown["sample"]["question"] == "is it red ?"
        first = shown["draws"][0]
        assert [r["id"] for r in first["rollouts"]] == [r.id for r in group.rollouts]
        assert first["rollouts"][1]["score"] == group.verdicts[1].score
        assert first["rollouts"][1]["logprob"] == pytest.approx(
            sum(group.rollouts[1].turns[0].logprobs))
        assert all(s["role"] == "solver" and s["branches"] for s in first["signals"])
        assert "\x1b" not in printed(shown) and "<script>" in printed(shown)
    dev = read(proof / "loop" / "iterations" / "seed" / "answers.parquet")[0]
    assert {a["after"] for a in show_sample(proof, dev.sample)["dev"]} == {"seed", 1, 2}


def test_unclear_ids_name_those_that_are_close(proof):
    sample = RunFolder(proof / "loop").groups(0)[0].sample.id
    with pytest.raises(SelfloopError, match=sample):
        show_sample(proof, sample[:-1] + "x")
    with pytest.raises(SelfloopError, match="give more letters"):
        ids = sorted(i for g in RunFolder(proof / "loop").groups(0) for i in
                     [r.id for r in g.rollouts])
        show_sample(proof, next(a[0] for a, b in itertools.pairwise(ids) if a[0] == b[0]))
