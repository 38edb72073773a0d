"""The words: exact through JSON, frozen, strict, and identified by what they mean."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
from pydantic import ValidationError

from selfloop.types import (
    Advantage,
    Branch,
    Context,
    Decision,
    Demonstration,
    Distill,
    Group,
    Iteration,
    Media,
    Message,
    Pair,
    Part,
    Rollout,
    Sample,
    Turn,
    Verdict,
)

RED = Media(sha256="a" * 64, meta={"uri": "/x.png"})
BLUE = Media(sha256="b" * 64)
ASKED = (Message(role="user", content=(Part(type="image"), Part(text="what ?"))),)
SEEN = Context(prompt=ASKED, media=(RED,))
AWKWARD = (0.1, 1 / 3, -math.pi, 5e-324, 1.7976931348623157e308, 2.0**-1022 / 3, -1e-17)
TURN = Turn(prompt_token_ids=(1, 2), token_ids=tuple(range(7)), logprobs=AWKWARD,
            loss_mask=(0, 1, 1, 1, 1, 1, 1), temperature=0.7, finish_reason="length", media=(RED,))
DRAWN = Rollout(id="r", sample="s", context=SEEN, turns=(TURN,), output=(Part(text="ü\n 7"),),
                role="critic", policy_version=3, sampling={"key": "k", "n": 1, "x": [0.1, None]})
HERE = Branch(context=SEEN, turns=(TURN,))
TOLD = Branch(context=SEEN, text="seven")
WORDS = [
    RED.with_op("crop", 1 / 3, "k"), SEEN, TURN, DRAWN, HERE, TOLD,
    Sample(prompt=ASKED, media=(RED,), answer={"x": [1, 0.1, None, "é"]}, rationale="so",
           meta={"task": "t", "cluster": 3}, parent="p"),
    Verdict(score=0.1 + 0.2, parts={"a": 1 / 3}, token_scores=AWKWARD, spans=((0, 2, 0.1),)),
    Verdict(error=True, rationale="boom"),
    Group(sample=Sample(prompt=ASKED, media=(RED,)), rollouts=(DRAWN,), verdicts=(Verdict(),),
          annotations={"hash": "0f"}),
    Demonstration(branches={"target": TOLD}, weight=0.1),
    Pair(branches={"chosen": HERE, "rejected": TOLD}, margin=1 / 3),
    Advantage(branches={"answer": HERE}, advantage=AWKWARD),
    Advantage(branches={"answer": HERE}, advantage=-1 / 7),
    Distill(branches={"student": HERE, "teacher": HERE}),
    Iteration(index=0, first_step=0, steps=1, version=1, continue_from=1, best=0, flops=1e17 / 3,
              dev={"greedy": 1 / 3}, decision=Decision(
                  action="hold", why="w", interval=(-math.inf, math.inf), p_value=0.1)),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda w: type(w).__name__)
def test_json_round_trip_is_exact(word):
    again = type(word).from_json(word.to_json())
    assert again == word
    assert again.to_json() == word.to_json()
    assert "\n" not in word.to_json()


def test_every_bit_of_a_float_survives():
    again = Turn.from_json(TURN.to_json())
    assert [x.hex() for x in again.logprobs] == [x.hex() for x in AWKWARD]


@pytest.mark.parametrize("word", WORDS, ids=lambda w: type(w).__name__)
def test_frozen_and_strict(word):
    name = next(iter(type(word).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(word, name, None)
    with pytest.raises(ValidationError, match="not permitted"):
        type(word).model_validate({**word.model_dump(), "nonsense": 1})


def test_placeholders_and_media_must_agree():
    with pytest.raises(ValidationError, match=r"placeholders \['image'\] but the media are none"):
        Context(prompt=ASKED)
    with pytest.raises(ValidationError, match=r"placeholders none but the media are \['image'\]"):
        Sample(prompt=(Message(role="user", content="hi"),), media=(RED,))
    video = Media(kind="video", sha256="c" * 64)
    with pytest.raises(ValidationError, match="one medium per placeholder, in the same order"):
        Context(prompt=ASKED, media=(video,))


def test_sample_ids_change_with_what_is_asked_and_with_nothing_else():
    base = Sample(prompt=ASKED, media=(RED,), answer="7", meta={"task": "t"})

    def other(**changed):
        return base.model_copy(update=changed).id

    assert other(meta={"task": "t", "cluster": "c", "related": ["q"]}) == base.id
    assert other(media=(RED.model_copy(update={"meta": {"uri": "elsewhere"}}),)) == base.id
    assert other(rationale="because") == base.id and other(parent="p") == base.id
    changed = [other(answer="8"), other(answer=None), other(meta={"task": "u"}),
               other(meta={"task": "t", "env_seed": 1}), other(media=(BLUE,)),
               other(media=(RED.with_op("crop"),)), other(
                   prompt=(Message(role="user", content=(Part(type="image"), Part(text="who?"))),))]
    assert len({base.id, *changed}) == len(changed) + 1


def test_media_identity_is_of_the_pixels():
    assert RED.identity == RED.model_copy(update={"meta": {}}).identity
    seen = [RED, BLUE, RED.with_op("crop"), RED.with_op("crop", 0.5), RED.with_op("crop", key="k"),
            RED.with_op("crop").with_op("view"), RED.with_op("view").with_op("crop")]
    assert len({m.identity for m in seen}) == len(seen)


def test_copies_keep_no_stale_identity():
    sample = Sample(prompt=ASKED, media=(RED,))
    assert SEEN.identity and RED.identity and sample.id
    assert SEEN.seen_as((BLUE,)).identity == Context(prompt=ASKED, media=(BLUE,)).identity
    assert RED.with_op("crop").identity != RED.identity
    moved = sample.model_copy(update={"media": (BLUE,)})
    assert moved.context.media == (BLUE,)
    assert moved.id == Sample(prompt=ASKED, media=(BLUE,)).id != sample.id
    assert pickle.loads(pickle.dumps(sample)) == sample == copy.deepcopy(sample)


def test_unlabelled_hides_the_gold_and_keeps_the_id():
    sample = Sample(prompt=ASKED, media=(RED,), answer="7", rationale="3 + 4 = 7")
    bare = sample.unlabelled()
    assert (bare.answer, bare.rationale) == (None, None)
    assert bare.id == sample.id and bare.context == sample.context
    assert "7" not in bare.to_json().replace(RED.sha256, "")
    assert pickle.loads(pickle.dumps(bare)).id == sample.id


def test_lengths_are_checked():
    with pytest.raises(ValidationError, match="logprobs has 1 entries for 2 token_ids"):
        Turn(token_ids=(1, 2), logprobs=(0.0,))
    with pytest.raises(ValidationError, match="loss_mask has 3 entries for 2 token_ids"):
        Turn(token_ids=(1, 2), loss_mask=(1, 1, 1))
    with pytest.raises(ValidationError, match="2 verdicts for 1 rollouts"):
        Group(sample=Sample(prompt=ASKED, media=(RED,)), rollouts=(DRAWN,),
              verdicts=(Verdict(),) * 2)


def test_verdicts_know_unknown_from_zero():
    assert Verdict().score is None and not Verdict().right
    assert [Verdict(score=s).right for s in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]
    for bad in (math.nan, math.inf):
        with pytest.raises(ValidationError):
            Verdict(score=bad)
    with pytest.raises(ValidationError, match="cannot carry a score"):
        Verdict(error=True, score=0.0)
    group = Group(sample=Sample(prompt=ASKED, media=(RED,)), rollouts=(DRAWN, DRAWN),
                  verdicts=(Verdict(), Verdict(score=0.0)))
    assert [s for _, s in group.scored()] == [0.0]


def test_signals_need_their_branches_and_branches_one_kind_of_answer():
    with pytest.raises(ValidationError, match="Pair lacks the branch 'rejected'"):
        Pair(branches={"chosen": HERE})
    with pytest.raises(ValidationError, match="either drawn turns or a text"):
        Branch(context=SEEN)
    with pytest.raises(ValidationError, match="either drawn turns or a text"):
        Branch(context=SEEN, turns=(TURN,), text="x")


def test_a_conversation_cannot_be_moved_under_another_context():
    two = DRAWN.model_copy(update={"turns": (TURN, TURN)})
    assert len(Branch.drawn(two).turns) == 2
    with pytest.raises(ValidationError, match="several turns cannot be put under another context"):
        Branch.under(SEEN, two)


def test_moving_an_answer_drops_what_no_longer_applies():
    turn = Branch.under(SEEN.seen_as((BLUE,)), DRAWN).turns[0]
    assert turn.token_ids == TURN.token_ids and turn.loss_mask == TURN.loss_mask
    assert (turn.logprobs, turn.prompt_token_ids, turn.media) == (None, (), ())
    assert turn.temperature == 1.0


def test_saying_something_brings_its_pictures():
    more = SEEN.said("assistant", "left").said("user", "look", BLUE)
    assert more.media == (RED, BLUE)
    assert [p.type for p in more.prompt[-1].content] == ["text", "image"]
    assert more.without_media().media == () and "look" in more.without_media().text
