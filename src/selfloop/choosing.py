"""Which method fits, by the probe, and why: the rules behind `method: auto`, each in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from selfloop.probing import Probed

NOTHING_TO_VERIFY = 0.05
CALIBRATED = 0.2
ENOUGH_LABELS = 50
LONG_ANSWER = 48
STEP_SECONDS = 60.0
"""A GRPO step (16 questions, 8 draws, one update) slower than this is no cheap step."""


@dataclass(frozen=True)
class Choice:
    """The method that fits ("" = none) and why; and why each other one was not taken."""

    method: str
    why: str
    others: dict[str, str]


def choose(probed: Probed) -> Choice:
    """Pick among the methods that exist. The same probe always gives the same choice."""
    against: dict[str, str] = {}
    if probed.accuracy.n == 0:
        return _label_free(probed, against)
    nothing = _nothing_to_verify(probed)
    if nothing:
        return nothing
    if probed.labelled < 0.25:
        found = _label_free(probed, {})
        # A share of the samples may still be enough to verify with; the others then abstain.
        if found.method or probed.labelled * probed.train < ENOUGH_LABELS:
            return found
        against["agreement"] = found.others["agreement"]
    for method, rule in (("grpo", _grpo), ("dpo", _dpo), ("star", _star)):
        fits, why = rule(probed)
        if fits:
            return Choice(method, why, against | _rest(method, against))
        against[method] = why
    if _calibrated(probed) and probed.vote.value > probed.accuracy.value:
        return Choice("agreement", f"draws hardly find more than the greedy answer does, but the "
                      f"vote ({probed.vote}) beats it ({probed.accuracy}) and its share tells "
                      "right from wrong: imitate what the answers agree on",
                      against | _rest("agreement", against))
    return Choice("supervised", "draws find nothing that the greedy answer does not already: the "
                  "loop would only teach the model what it says anyway; the labels themselves "
                  "still teach something", against | _rest("supervised", against))


def _nothing_to_verify(probed: Probed) -> Choice | None:
    best = probed.pass_at_draws
    if best.value < NOTHING_TO_VERIFY:
        return Choice("", f"in {probed.draws} draws only {best.k} of {best.n} questions are ever "
                      "answered right: there is next to nothing to verify, so no method of "
                      "self-improvement can start. Label more first (a few hundred, with worked "
                      "solutions if answers need reasoning) and run method=supervised, try a "
                      "larger model, or mend the prompt and verifier if the answers are really "
                      "right (`selfloop check`)", {})
    if probed.parsed.value < 0.5:
        return Choice("", f"the verifier can read only {probed.parsed} of the answers: mend the "
                      "prompt (prompt: ... in run.yaml), the verifier or max_new_tokens first", {})
    return None


def _label_free(probed: Probed, against: dict[str, str]) -> Choice:
    for method in ("star", "grpo", "dpo"):
        against[method] = f"only {100 * probed.labelled:.0f} % of train has answers to verify with"
    if _calibrated(probed) or (probed.accuracy.n == 0 and probed.vote_share >= 0.4):
        why = "related questions about one picture can be checked against each other" \
            if probed.related else (
                f"the draws agree ({100 * probed.vote_share:.0f} % for the winner on average)" + (
                    f" and the vote is calibrated (error {probed.calibration_error:.2f})"
                    if probed.calibration_error is not None else ""))
        return Choice("agreement", f"most of train has no labels, but {why}: the vote takes the "
                      "label's place", against)
    error = probed.calibration_error
    why = f"the vote is not calibrated (error {error:.2f} > {CALIBRATED})" if error is not None \
        else "the draws do not agree, and nothing says which are right"
    against["agreement"] = why
    return Choice("", f"most of train has no labels and {why}: nothing here can be verified. "
                  "Label more first: a few dozen for dev, a few hundred for train", against)


def _calibrated(probed: Probed) -> bool:
    error = probed.calibration_error
    return error is not None and error <= CALIBRATED and not math.isnan(probed.vote.value)


def step_seconds(probed: Probed) -> float:
    """About how long a GRPO step takes here: draw 16 x 8 answers, one update on them."""
    machine = probed.machine
    answer = machine.get("answer_tokens", 64.0)
    prompt = machine.get("prompt_tokens", 64.0)
    reading = machine.get("seconds_per_read_token", machine.get("seconds_per_drawn_token", 0.0))
    return 128 * answer * machine.get("seconds_per_drawn_token", 0.0) \
        + 3 * reading * (16 * prompt + 128 * answer)


def _grpo(probed: Probed) -> tuple[bool, str]:
    rise = probed.pass_at_draws.value - probed.accuracy.value
    mixed = 1 - probed.zero_variance.value
    step = step_seconds(probed)
    if rise < 0.25:
        return False, (f"pass@{probed.draws} is only {100 * rise:.0f} points above the greedy "
                       "accuracy: too few draws to reinforce")
    if mixed < 0.5:
        return False, (f"{probed.zero_variance} of the groups are all right or all wrong, and "
                       "teach it nothing")
    if step > STEP_SECONDS:
        return False, (f"a step takes about {step:.0f} s here, and it needs hundreds of them: "
                       "use a GPU or a smaller model")
    return True, (f"pass@{probed.draws} ({probed.pass_at_draws}) is {100 * rise:.0f} points above "
                  f"the greedy accuracy ({probed.accuracy}), {100 * mixed:.0f} % of the groups are "
                  f"mixed, and a step takes only about {step:.1f} s: reinforce on fresh draws")


def _dpo(probed: Probed) -> tuple[bool, str]:
    mixed, length = 1 - probed.zero_variance.value, probed.machine.get("answer_tokens", 0.0)
    if mixed < 0.4:
        return False, f"only {100 * mixed:.0f} % of the groups hold both right and wrong answers"
    if length < LONG_ANSWER:
        return False, (f"answers are short ({length:.0f} tokens): the rejected one says little "
                       "that the accepted one does not")
    return True, (f"{100 * mixed:.0f} % of the groups hold both right and wrong answers, and they "
                  f"are long ({length:.0f} tokens): the contrast teaches what to avoid")


def _star(probed: Probed) -> tuple[bool, str]:
    rise = probed.pass_at_draws.value - probed.accuracy.value
    if rise < 0.03:
        return False, (f"pass@{probed.draws} ({probed.pass_at_draws}) is no higher than the "
                       f"greedy accuracy ({probed.accuracy})")
    return True, (f"answers can be verified, and {probed.draws} draws find a right one "
                  f"for {probed.pass_at_draws} of the questions where the greedy answer is right "
                  f"for {probed.accuracy}: imitate the verified ones")


def _rest(method: str, against: dict[str, str]) -> dict[str, str]:
    """What is left to say of the methods that no rule looked at."""
    known = {
        "star": "it would do as well, but fits less closely",
        "dpo": "possible, but needs long answers to shine",
        "agreement": "not needed: there are labels, and verified answers are surer than votes",
        "supervised": "the answers that a model draws itself carry the reasoning; labels do not",
    }
    return {m: why for m, why in known.items() if m != method and m not in against}
