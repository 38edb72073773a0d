"""Every family of models: the shared path equals the plain one, and rollouts equal scoring.

Models are tiny, random and built from their own configurations; pictures are made tensors
(tests/families). In float64 both paths agree to about fourteen digits, once transformers' own
float32 casts are out of the way (families/wide.py). All combinations are behind `slow`.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from families import FAMILIES
from families.drawing import draw, drift, generated, jobs, sampler
from families.making import BANNED
from families.measuring import (
    BUDGET,
    checkpointed,
    exactly,
    frozen,
    groups,
    measure,
    share,
)
from families.table import written
from selfloop.optimize import attend
from selfloop.optimize.fork import Fork
from selfloop.optimize.prefix import Shared
from selfloop.optimize.score import Plain
from selfloop.optimize.together import Together

torch.set_num_threads(1)

EXPECTED_PLAIN = {
    "kimi_k25": "did not pass the cache",
    "mllama": "cross-attention to pictures",
    "qwen4_exp": "DynamicIndexedLayer cannot be forked",
}
"""Families that are not shared today, and what the reason says. All others must be shared; a
family that becomes shared fails here too, until it is taken out."""
TWO_PASSES = {
    "a mask of another kind than causality": {
        "gemma3", "paligemma", "llama4", "aya_vision", "cohere2_vision", "gemma4",
        "gemma4_unified"},
    "answers keep a state": {"qwen3_5", "qwen3_5_moe", "lfm2_vl", "lfm3_vl"},
}
"""Families whose one prompt cannot run in one pass with its answers, by what is in the way."""
LOGP = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference of a log-prob or entropy, in nats."""
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest relative difference of a parameter's gradient."""
DRIFT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference of a drawn token's log-prob from the plain path's."""

every_family = pytest.mark.parametrize("name", FAMILIES)
DTYPES = [torch.float32, torch.float64]


def expect_path(name: str, why_not: str) -> None:
    """A regression from shared to plain fails, and so does an entry that is out of date."""
    if reason := EXPECTED_PLAIN.get(name):
        assert reason in why_not, f"{name} is listed as plain; now: {why_not or 'shared'}"
    else:
        assert why_not == "", f"{name} was shared: {why_not}"


def hold(name: str, dtype: torch.dtype, *, freeze: bool = False, again: bool = False,
         budget: int = BUDGET) -> None:
    """Both paths agree: log-probs, entropies, and the gradient of every parameter that learns."""
    family = FAMILIES[name](dtype)
    with ExitStack() as stack:
        stack.enter_context(exactly(dtype))
        if freeze:
            stack.enter_context(frozen(family.model))
        if again:
            stack.enter_context(checkpointed(family.model))
        found = measure(family, groups(family), budget)
    expect_path(name, found.why_not)
    assert found.logp < LOGP[dtype]
    assert found.gradient < GRADIENT[dtype], found.worst
    seen = share(family, found.shared.gradients)
    assert (seen == 0.0) if freeze else (seen > 1e-3)


def roll(name: str, dtype: torch.dtype) -> None:
    """Draws' log-probs are the plain path's; greedy draws are transformers' own."""
    family = FAMILIES[name](dtype)
    mine = sampler(family)
    with exactly(dtype):
        asked = jobs(family)
        drawn = draw(mine, asked)
        assert max(len(one.token_ids) for row in drawn for one in row) == 12
        assert drift(family, asked, drawn) < DRIFT[dtype]
        expect_path(name, mine.why_not)
        alone = sampler(family)
        draw(alone, jobs(family, n=4)[:1])  # queries come in another layout than of several
        expect_path(name, alone.why_not)
        greedy = jobs(family, n=1, tokens=10, temperature=0.0)
        for job, (one,) in zip(greedy, draw(mine, greedy), strict=True):
            assert one.token_ids == generated(family, job)


@every_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_equals_plain(name: str, dtype: torch.dtype) -> None:
    hold(name, dtype)


BY_DEFAULT = ("llava", "qwen2_5_vl", "gemma3", "qwen3_5")
"""Families whose one pass is tried with checkpointing as well in the default run: plain, with
places in three numbers, with windows, with states. The others' is behind `slow`."""


@pytest.mark.parametrize(("name", "few", "again"), [
    pytest.param(name, few, again, id=f"{label}-{name}",
                 marks=[pytest.mark.slow] if again and name not in BY_DEFAULT else [])
    for label, few, again in (("masked", 10**9, False), ("merged", 0, False),
                              ("merged, checkpointed", 0, True))
    for name in sorted(set(FAMILIES) - set(EXPECTED_PLAIN))])
def test_one_prompt_in_one_pass_equals_plain(
        monkeypatch: pytest.MonkeyPatch, name: str, few: int, again: bool) -> None:
    monkeypatch.setattr(attend, "_FEW", few)
    family = FAMILIES[name](torch.float64)
    expected = next((why for why, names in TWO_PASSES.items() if name in names), "")
    with ExitStack() as stack:
        stack.enter_context(exactly(torch.float64))
        if again:
            stack.enter_context(checkpointed(family.model))
        for rows in (family.rows((1, 2), 5, (1, 7, 3, 5)), family.rows((), 9, (4, 8))):
            found = measure(family, rows)
            assert found.path.together.open == found.path.together.short == (not expected)
            assert expected in found.path.together.why_not
            assert found.logp < LOGP[torch.float64]
            assert found.gradient < GRADIENT[torch.float64], found.worst


def test_a_pass_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that count from zero: two passes are found right, one pass is not."""
    monkeypatch.setattr(Together, "offset_T", property(
        lambda fork: torch.zeros(fork.tokens, dtype=torch.long)))
    family = FAMILIES["qwen2_5_vl"](torch.float32)
    found = measure(family, family.rows((1,), 5, (7, 6)))
    assert not found.path.why_not and "differ from the plain" in found.path.together.why_not
    assert found.logp < LOGP[torch.float32]


@every_family
def test_frozen_checkpointed_and_in_small_batches(name: str) -> None:
    hold(name, torch.float32, freeze=True, again=True, budget=60)


@every_family
def test_plain_equals_the_model(name: str) -> None:
    """One row at a time, all logits, no path: so that both paths cannot be wrong together."""
    family = FAMILIES[name](torch.float32)
    rows = groups(family)
    with torch.no_grad():
        found = Plain(family.model, family.reader, BANNED, BUDGET)(rows)[0]
        for row, logps in zip(rows, found, strict=True):
            logits_TV = family.model(**family.reader.alone(row)).logits[0, row.prompt - 1:-1]
            expected_TV = logits_TV.masked_fill(BANNED, -torch.inf).log_softmax(-1)
            answer_T = torch.tensor(row.token_ids[row.prompt:])
            assert torch.allclose(logps, expected_TV.gather(1, answer_T[:, None])[:, 0],
                                  rtol=0, atol=1e-5)


@every_family
def test_rollouts_equal_scoring(name: str) -> None:
    roll(name, torch.float32)


def test_a_short_answer_to_a_prefix_language_model_comes_first() -> None:
    family = FAMILIES["paligemma"](torch.float32)
    row = family.rows((1,), 3, (1,))[0]
    with torch.no_grad():
        found = Plain(family.model, family.reader, BANNED, BUDGET)([row])[0][0]
        logits_V = family.model(**family.reader.alone(row)).logits[0, row.prompt - 1]
    expected_V = logits_V.masked_fill(BANNED, -torch.inf).log_softmax(-1)
    assert float((found[0] - expected_V[row.token_ids[-1]]).abs()) < 1e-5


def test_draws_of_one_token_settle_nothing() -> None:
    mine = sampler(FAMILIES["llava"](torch.float32))
    draw(mine, jobs(FAMILIES["llava"](torch.float32), tokens=1))
    assert not mine.checked


@pytest.fixture()
def wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers count from zero: a fork that is wrong from an answer's second token on."""
    monkeypatch.setattr(Fork, "start_T", property(
        lambda fork: torch.zeros(fork.tokens, dtype=torch.long)))


@pytest.mark.usefixtures("wrong_positions")
def test_greedy_draws_are_checked_too() -> None:
    family = FAMILIES["llava"](torch.float32)
    mine = sampler(family)
    draw(mine, jobs(family, n=1, temperature=0.0))
    assert "differ from the plain path" in mine.why_not


@pytest.mark.usefixtures("wrong_positions")
def test_answers_of_one_token_settle_nothing() -> None:
    family = FAMILIES["llava"](torch.float32)
    path = Shared(family.model, family.reader, BANNED, BUDGET, worth=0)
    with torch.no_grad():
        path(family.rows((1,), 20, (1, 1)))
        assert not path.why_not and not path.checked
        with pytest.warns(UserWarning, match="shared prefix off"):
            path(family.rows((1,), 20, (9, 9)))


@pytest.mark.slow
@every_family
@pytest.mark.parametrize(("dtype", "freeze", "again", "budget"), [*itertools.product(
    DTYPES, (False, True), (False, True), (60, 150, BUDGET))])
def test_all_combinations(name: str, dtype: torch.dtype, freeze: bool, again: bool, budget: int
                          ) -> None:
    hold(name, dtype, freeze=freeze, again=again, budget=budget)


@pytest.mark.slow
@every_family
def test_rollouts_in_float64(name: str) -> None:
    roll(name, torch.float64)


def test_the_table_is_of_these_families() -> None:
    found = written((Path(__file__).parent.parent / "docs" / "conformance.md").read_text())
    assert [row["family"] for row in found] == list(FAMILIES)
    for row in found:
        reason = EXPECTED_PLAIN.get(row["family"])
        assert row["path"].startswith("plain: ") and reason in row["path"] if reason \
            else row["path"] == "shared", row["family"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("change", "scale", "cap"), [
    (lambda z: z, 1.0, 0.0), (lambda z: z / 6, 1 / 6, 0.0), (lambda z: z * 0.99, 0.99, 0.0),
    (lambda z: 30 * torch.tanh(z / 30), 1.0, 30.0)])
def test_what_a_model_does_to_its_logits_is_found_exactly_and_on_any_batch(
    dtype, change, scale, cap
):
    family = FAMILIES["llava"](dtype)
    usual = family.model.forward

    def forward(*args, **named):
        out = usual(*args, **named)
        out.logits = change(out.logits)
        return out

    family.model.forward = forward
    for text in (3, 7):
        scorer = Shared(family.model, family.reader, BANNED, 100_000, worth=0)
        with torch.no_grad():
            rows = family.rows((1,), text, (5, 5))
            found = scorer(rows)[0][0]
            own = family.model(**family.reader.alone(rows[0])).logits[0, rows[0].prompt - 1:-1]
        assert scorer.head.separate and scorer.head.scale == pytest.approx(scale, rel=1e-12)
        assert scorer.head.cap == pytest.approx(cap, rel=1e-9)
        own = own.float().masked_fill(BANNED, -torch.inf).log_softmax(-1)
        answer = torch.tensor(rows[0].token_ids[rows[0].prompt:])
        assert torch.allclose(found.float(), own.gather(1, answer[:, None])[:, 0],
                              atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3"])
def test_autocast_keeps_the_shared_path(name):
    family = FAMILIES[name](torch.float32)
    scorer = Shared(family.model, family.reader, BANNED, 100_000, worth=0)
    rows = family.rows((1,), 5, (8, 8, 8))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = torch.cat([x.float() for x in scorer.forward(rows)[0]])
        plain = torch.cat([x.float() for x in scorer.plain(rows)[0]])
    assert float((found - plain).abs().mean()) < 0.05
