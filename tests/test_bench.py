"""The bench's own rules: the bound, the table, what is a regression, going on after a kill."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from bench import baselines, grid, measure, models, table, vllm_peer
from bench.__main__ import main, options, points, tasks
from bench.agreement import Disagreement, compare
from bench.grid import Point
from bench.measure import Ratio, race, ratio
from bench.results import Result, Store
from bench.runner import run, too_large
from bench.tasks import Task

from selfloop.doctor import diagnose

MACHINE = {"processor": "one", "cores": 2, "threads": 1, "memory_gib": 8, "system": "Linux",
           "python": "3", "versions": {"torch": "2"}, "commit": "abc"}
needs_trl = pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="trl is not installed")


def result(median: float = 4.0, wide: float = 0.1, **more: object) -> Result:
    fields = {"section": "update", "kind": "llava", "checkpointing": False,
              "point": Point(600, 8, 48), "prompts": 1, "peer": "TRL",
              "ratio": Ratio(median, median - wide, median + wide),
              "seconds": {"ours": [1.0, 1.0], "TRL": [median, median]},
              "memory": {"ours": 5_000_000, "TRL": None}}
    return Result(**{**fields, **more})


def test_the_bound_is_the_token_formula():
    assert Point(600, 8, 48).bound == pytest.approx(8 * 648 / (600 + 8 * 48))
    assert Point(1200, 1, 7).bound == 1.0
    assert Point(10**9, 16, 1).bound == pytest.approx(16, rel=1e-3)
    assert min(p.bound for p in grid.DEFAULT) < 1.2 < 10 < max(p.bound for p in grid.DEFAULT)


def test_points_come_from_the_section_or_from_the_command_line():
    given = options().parse_args(["--points", "600,8,32"])
    assert points("update", given) == (Point(600, 8, 32),)
    assert points("dpo", given) == (Point(600, 2, 32),), "a pair is two answers"
    full = options().parse_args(["--full", "--only", "update", "--checkpointing", "both"])
    assert len(list(tasks(full))) == 2 * 64


def test_sides_take_turns_and_the_ratio_is_of_rounds(monkeypatch):
    order: list[str] = []
    seconds = race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert "".join(order) == "ab" "aabb" "bbaa", "short runs twice in a row, one of them timed"
    assert [len(t) for t in seconds.values()] == [2, 2]
    monkeypatch.setattr(measure, "AGAIN", 0.0)
    order.clear()
    race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert "".join(order) == "ab" "ab" "ba"
    assert ratio([4.0, 6.0, 9.0], [2.0, 2.0, 3.0]) == Ratio(3.0, 2.0, 3.0)


def test_a_row_says_ratio_bound_share_and_memory():
    cells = dict(zip(table.HEAD, table.cells(result()), strict=True))
    assert cells["times faster"] == "4.00 [3.90, 4.10]"
    assert (cells["S"], cells["share of S"]) == ("5.27", "76 %")
    assert (cells["ours MB"], cells["peer MB"]) == ("5", "")
    skipped = table.text([result(why_not="skipped: too large"), result()])
    assert "skipped: too large" in skipped and len(skipped.splitlines()) == 3


def test_the_page_keeps_what_stands_around_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.OPEN}\nold\n{table.CLOSE}\nafter\n")
    table.write_docs(page, table.markdown([result()], MACHINE, ["noted"]))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "4.00 [3.90, 4.10]" in text and "- noted" in text and "commit abc" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no <!-- bench -->"):
        table.write_docs(page, "x")


def test_only_a_fall_beyond_the_spread_is_a_regression(tmp_path):
    path = tmp_path / "baselines.json"
    assert baselines.regressions([result()], MACHINE, path) is None
    baselines.save([result(4.0), result(why_not="skipped")], MACHINE, path)
    assert baselines.regressions([result(3.9)], MACHINE, path) == []
    assert baselines.regressions([result(9.0)], MACHINE, path) == []
    (worse,) = baselines.regressions([result(3.0)], MACHINE, path) or []
    assert "3.00 [2.90, 3.10], was 4.00" in worse
    other = {**MACHINE, "processor": "another"}
    assert baselines.regressions([result(3.0)], other, path) is None
    kept = json.loads(path.read_text())["one, 2 cores, 1 threads"][result().name]
    assert kept["S"] == 5.268 and kept["share"] == 0.759


def test_a_killed_run_goes_on_and_other_settings_start_over(tmp_path):
    path = tmp_path / "points.jsonl"
    Store(path, {"repeats": 5}, resume=False).add(result())
    with path.open("a") as file:
        file.write('{"settings": {"rep')  # the kill came here
    again = Store(path, {"repeats": 5}, resume=True)
    assert again.has(result().name) and again.results == [result()]
    again.add(result(5.0))
    assert [r.ratio.median for r in again.results] == [5.0]
    assert Store(path, {"repeats": 7}, resume=True).results == []
    assert Store(path, {"repeats": 7}, resume=False).results == []


def test_a_skipped_point_is_tried_again(tmp_path):
    store = Store(tmp_path / "points.jsonl", {}, resume=True)
    store.add(result(why_not="skipped: needs 99 GiB"))
    assert not store.has(result().name)


def test_sides_that_differ_are_refused():
    same = torch.ones(2, 3)
    found = compare((same, same), (1.0, 1.0), ({"w": same}, {"w": same}))
    assert (found.logp, found.loss, found.gradient) == (0.0, 0.0, 0.0)
    with pytest.raises(Disagreement, match=r"log-probs by 0\.01"):
        compare((same, same + 0.01), (1.0, 1.0), ({"w": same}, {"w": same}))
    with pytest.raises(Disagreement, match="gradients by"):
        compare((same, same), (1.0, 1.0), ({"w": same}, {"w": 1.1 * same}))
    with pytest.raises(Disagreement, match="one side only: v"):
        compare((same, same), (1.0, 1.0), ({"w": same, "v": same}, {"w": same}))


def test_what_would_not_fit_is_refused_before_it_runs():
    assert not too_large(Task("update", "llava", Point(40, 2, 16)))
    assert "needs some" in too_large(Task("update", "llava", Point(1200, 4096, 1024)))


def test_wider_models_keep_their_proportions_and_have_no_baselines(capsys):
    (wide,) = tasks(options().parse_args(
        ["--only", "update", "--points", "40,2,16", "--width", "768"]))
    size = wide.size
    assert (size.width, size.heads, size.inner, size.layers) == (768, 24, 3 * 688, 6)
    for refused, why in ((["--width", "100"], "multiple of 64 from 256"),
                         (["--width", "768", "--compare"], "default --width only")):
        with pytest.raises(SystemExit):
            main(refused)
        assert why in capsys.readouterr().err


def test_no_vllm_is_said(tmp_path):
    assert vllm_peer.python(tmp_path) is None and "bench/setup_vllm" in vllm_peer.MISSING


@needs_trl
@pytest.mark.parametrize(("section", "kind"), [
    ("dpo", "llava"), ("update", "qwen2_5_vl"), ("rollouts", "llava"), ("update", "gemma3"),
    ("rollouts", "gemma3")])
def test_both_sides_do_the_same_work(tmp_path_factory, monkeypatch, section, kind):
    monkeypatch.setattr(models, "WINDOW", 24)  # of 46 tokens
    out = tmp_path_factory.getbasetemp() / "bench"
    task = Task(section, kind, Point(40, 2, 6), out=str(out))
    (found,) = run(task, 1, measure_memory=False)
    assert not found.why_not and found.ratio.median > 0
    if section == "rollouts":
        assert found.agreement == {"equal_greedy_tokens": 1.0}
    else:
        assert found.agreement["logp"] < 1e-4 and found.agreement["gradient"] < 1e-3


def test_the_doctor_tells_how_its_tower_attends_to_windows(tmp_path):
    models.images_only()
    told = [f.what for f in diagnose(str(models.build("qwen2_5_vl", 2, tmp_path)))]
    assert "windows of the vision tower: Qwen2_5_VLVisionAttention: in one call" in told
