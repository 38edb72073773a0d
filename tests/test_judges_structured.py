"""Judges that an engine holds to a JSON Schema: what is read, what is none, who is asked how."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="pip install 'selfloop[openai]'")

from judge_server import said, scripted
from scripted import asked
from selfloop.casting import EngineConfig, cast
from selfloop.config import load_config
from selfloop.doors import Doors
from selfloop.engines.json_schema import check_schema, mismatch
from selfloop.engines.openai import OpenAIEngine
from selfloop.engines.toy import ToyEngine
from selfloop.organize.judging import judge
from selfloop.organize.verify.asking import BrokenReply, object_in
from selfloop.organize.verify.judges import (
    POINTS_SCHEMA,
    PREFER_SCHEMA,
    PairwiseJudge,
    PointwiseJudge,
    points,
    preference,
    reason_of,
)
from selfloop.roles import SelfloopError
from selfloop.types import Group, Part, Rollout, Turn

SAMPLE = asked(n_pictures=0)


def group(*texts: str) -> Group:
    return Group(sample=SAMPLE, rollouts=tuple(
        Rollout(id=t, sample=SAMPLE.id, context=SAMPLE.context, turns=(Turn(token_ids=(1,)),),
                output=(Part(text=t),)) for t in texts))


def whole(**told: Any) -> str:
    return json.dumps({"reason": "so it is", "code": "ab", **told})


@pytest.mark.parametrize(("reply", "value"), [
    (whole(score=7), 0.7), (whole(score=0), 0.0), (whole(score=10.0), 1.0),
    (whole(score=2.5), 0.25),
    (whole(score=11), None), (whole(score=-1), None), (whole(score=True), None),
    (whole(score="7"), None), (whole(score=None), None), (whole(score=7, code="xy"), None),
    (whole(score=7, more=1), None), (whole(), None), ('{"score": 7, "code": "ab"}', None),
    (whole(score=7)[:-1], None), (whole(score=7) + " yes", None), (f"[{whole(score=7)}]", None),
    ('{"reason": "", "code": "ab", "score": 2, "score": 9}', None),
    ('{"reason": "", "code": "ab", "score": NaN}', None), ("{" * 5000, None),
    (f"  {whole(score=7)}\n", 0.7), ("score ab: 7", 0.7),
    (whole(score=7) + "\nscore ab: 7", 0.7),  # the line counts, as ever
])
def test_points_of_an_object_truth_table(reply: str, value: float | None) -> None:
    assert points(reply, "ab") == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(("reply", "value"), [
    (whole(better="1"), 1.0), (whole(better="2"), 0.0), (whole(better="tie"), 0.5),
    (whole(better=1), None), (whole(better="3"), None), (whole(better="1", code="x"), None),
    (whole(better=["1"]), None), ("better ab: 2", 0.0)])
def test_preferences_of_an_object_truth_table(reply: str, value: float | None) -> None:
    assert preference(reply, "ab") == value


def test_what_is_read_and_what_the_schema_allows_are_the_same() -> None:
    for schema, good, bad in [(POINTS_SCHEMA, whole(score=7), whole(score=11)),
                              (PREFER_SCHEMA, whole(better="tie"), whole(better="first"))]:
        check_schema(schema)
        assert not mismatch(json.loads(good), schema) and mismatch(json.loads(bad), schema)


def test_the_reason_is_kept_and_a_deep_object_is_none() -> None:
    assert reason_of(whole(score=7)) == "so it is" and reason_of("plain words") == "plain words"
    assert object_in('{"a":' * 20_000) is None and object_in("[1]") is None
    assert object_in('{"a": "' + "x" * 100_000 + '"}') is None


# -- through a server -----------------------------------------------------------------------------

def mark_of(body: dict[str, Any]) -> str:
    text = body["messages"][-1]["content"]
    return re.search(r"(?:score|better) ([0-9a-f]{8}): N", text)[1]  # type: ignore[index]


def held(body: dict[str, Any], n: int) -> dict[str, Any]:
    """A server that keeps to the schema it is given, and cuts every answer that holds "cut"."""
    schema = body["response_format"]["json_schema"]["schema"]
    text = body["messages"][-1]["content"]
    told: dict[str, Any] = {"reason": "as asked", "code": mark_of(body)}
    if "score" in schema["properties"]:
        told["score"] = 9 if "a cat" in text else 1
    else:
        told["better"] = "1" if text.index("a cat") < text.index("a dog") else "2"
    whole_ = json.dumps(told)
    return said(whole_[:20], "length") if "cut" in text else said(whole_)


def test_judges_on_a_server_that_holds_them_to_the_schema() -> None:
    with scripted(held) as (url, script):
        engines = {"judge": OpenAIEngine("m", url, json_schema=POINTS_SCHEMA)}
        (judged,) = judge(PointwiseJudge(), [group("a cat", "a dog")],
                          Doors(engines, 0, "s")).groups  # type: ignore[arg-type]
        assert [v.score for v in judged.verdicts] == [0.9, 0.1]
        assert judged.verdicts[0].rationale == "as asked"
        engines = {"judge": OpenAIEngine("m", url, json_schema=PREFER_SCHEMA)}
        (judged,) = judge(PairwiseJudge(), [group("a dog", "a cat")],
                          Doors(engines, 0, "s")).groups  # type: ignore[arg-type]
        assert [v.score for v in judged.verdicts] == [0.0, 1.0]
    assert script.asked[0]["response_format"]["json_schema"]["schema"] == POINTS_SCHEMA


class Broken:
    """An engine that was told a schema and whose model does not keep to it."""

    supports = frozenset({"images"})
    version = 0

    def attempt(self, requests: Any, version: int) -> list[SelfloopError]:
        return [BrokenReply("the answer is not what json_schema asks for")] * len(requests)

    generate = attempt

    def decode(self, token_ids: Any) -> str:
        return ""


@pytest.mark.parametrize("verifier", [PointwiseJudge(), PairwiseJudge()])
def test_broken_output_is_an_abstention_and_no_failure(verifier: Any) -> None:
    (judged,) = judge(verifier, [group("a cat", "a dog")],
                      Doors({"judge": Broken()}, 0, "s")).groups  # type: ignore[dict-item]
    assert all(v.score is None and not v.error for v in judged.verdicts)


def test_a_server_that_breaks_the_schema_is_an_abstention() -> None:
    with scripted(held) as (url, _):
        engines = {"judge": OpenAIEngine("m", url, json_schema=POINTS_SCHEMA)}
        (judged,) = judge(PointwiseJudge(), [group("a cat", "cut short")],
                          Doors(engines, 0, "s")).groups  # type: ignore[arg-type]
    good, broken = judged.verdicts
    assert good.score == 0.9 and broken.score is None and not broken.error
    assert "json_schema" in broken.rationale


# -- run.yaml -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "schema"), [
    ("points", POINTS_SCHEMA), ("preference", PREFER_SCHEMA),
    ("selfloop.organize.verify.judges:POINTS_SCHEMA", POINTS_SCHEMA)])
def test_the_judges_schemas_have_names_in_run_yaml(tmp_path: Path, name: str, schema: Any) -> None:
    from clidata import with_splits

    path = with_splits(tmp_path)
    how = f"{{model: m, base_url: 'http://127.0.0.1:9/v1', json_schema: {name}}}"
    path.write_text(path.read_text() + f"engines:\n  judge: {how}\n")
    found = cast(load_config(path), ToyEngine())["judge"]
    assert isinstance(found, OpenAIEngine) and found.schema == schema


def test_a_schema_that_is_none_is_named(tmp_path: Path) -> None:
    from clidata import with_splits

    config = load_config(with_splits(tmp_path))
    how = EngineConfig(model="m", base_url="http://127.0.0.1:9/v1", json_schema="pionts")
    with pytest.raises(SelfloopError, match=r"engines\.judge.*'pionts'.*'points'"):
        cast(config.model_copy(update={"engines": {"judge": how}}), ToyEngine())
