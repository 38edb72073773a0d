"""The Hugging Face engine: what it may sample, that draws repeat, that files load elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf

from hf_models import FAMILIES, asked, open_picture, picture
from selfloop.collect.unsayable import Unsayable
from selfloop.engines.chat import Chat
from selfloop.engines.hf import HFEngine, LoRA
from selfloop.engines.hf_answers import Answers
from selfloop.engines.hf_jobs import Job
from selfloop.engines.picking import filtered, pick
from selfloop.engines.tokens import controls
from selfloop.roles import Request, Sampling, SelfloopError
from selfloop.types import Branch, Context, Media, Message, Part

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {name: write(place / name) for name, write in FAMILIES.items()}


def engine_of(folder: Path, **options: object) -> HFEngine:
    engine = HFEngine(folder, device="cpu", **options)  # type: ignore[arg-type]
    engine.bind(open_picture)
    return engine


@pytest.fixture(scope="module")
def engines(folders: dict[str, Path]) -> dict[str, HFEngine]:
    return {name: engine_of(folder) for name, folder in folders.items()}


@pytest.fixture(params=sorted(FAMILIES))
def engine(request: pytest.FixtureRequest, engines: dict[str, HFEngine]) -> HFEngine:
    return engines[request.param]


def drawn(engine: HFEngine, context: Context, n: int = 3, key: str = "k", **sampling: object):
    return engine.generate([Request(context=context, key=key, n=n, sampling=Sampling(
        **{"max_new_tokens": 8, **sampling}))], engine.version)[0]


def token(engine: HFEngine, text: str) -> int:
    return int(engine.processor.tokenizer.convert_tokens_to_ids(text))


# -- what may be sampled ----------------------------------------------------------------------


def test_image_pad_and_bos_are_never_sampled_however_likely(engine: HFEngine) -> None:
    head = engine.model.get_output_embeddings()
    bad = [t for t, why in engine.never.items()]
    hook = head.register_forward_hook(
        lambda m, i, out: out.index_fill(-1, torch.tensor(bad), 1e4))
    try:
        for temperature in (0.0, 1.0, 5.0):
            turns = drawn(engine, asked(1), n=8, temperature=temperature)
            assert not {t for turn in turns for t in turn.token_ids} & set(bad)
    finally:
        hook.remove()


def test_what_is_suppressed_and_what_stays_allowed(engines: dict[str, HFEngine]) -> None:
    llava, gemma, idefics = (engines[n] for n in ("llava", "gemma3", "idefics3"))
    assert {token(llava, t) for t in ("<image>", "<pad>", "<bos>")} <= set(llava.never)
    assert token(llava, "<eos>") not in llava.never
    for name in ("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<bos>"):
        assert token(gemma, name) in gemma.never
    for name in ("<image>", "<fake_token_around_image>", "<global-img>", "<row_2_col_2>"):
        assert token(idefics, name) in idefics.never
    for engine in (gemma, idefics):  # pad is eos here: still allowed, as thinking is
        assert engine.processor.tokenizer.pad_token_id == token(engine, "<|im_end|>")
        assert token(engine, "<|im_end|>") not in engine.never
        assert token(engine, "<think>") not in engine.never
        length = len(engine.processor.tokenizer)
        assert set(range(length, length + 5)) <= set(engine.never)  # rows without a token


def test_an_answer_text_may_not_hold_a_placeholder(engine: HFEngine) -> None:
    with pytest.raises(SelfloopError, match="<image"):
        engine.encode("one <image_soft_token> <image> two")


def test_an_answer_cannot_begin_with_its_own_end(engine: HFEngine) -> None:
    """A path through a tree may have spelled it; what is drawn behind it belongs to no answer."""
    end = engine.processor.tokenizer.convert_ids_to_tokens(min(engine.prompts.chat.ends))
    with pytest.raises(Unsayable, match="it ends the turn"):
        engine.forced(f"one {end} two")


# -- drawing ----------------------------------------------------------------------------------


def test_draws_do_not_depend_on_the_batch(engine: HFEngine) -> None:
    requests = [Request(context=asked(i, "how many?" * (1 + i % 3), pictures=1 + i % 2),
                        key=f"k{i}", n=3, sampling=Sampling(max_new_tokens=8)) for i in range(6)]
    together = engine.generate(requests, 0)
    for request, turns in zip(requests, together, strict=True):
        alone = engine.generate([request], 0)[0]
        assert [t.token_ids for t in alone] == [t.token_ids for t in turns]
        first = engine.generate([request.__class__(
            context=request.context, key=request.key, n=1, sampling=request.sampling)], 0)[0]
        assert first[0].token_ids == turns[0].token_ids
    assert len({t.token_ids for turns in together for t in turns}) > 12


def test_sampler_and_learner_agree(engine: HFEngine) -> None:
    for temperature in (1.0, 0.7):
        context = asked(3, pictures=2)
        turns = drawn(engine, context, n=4, temperature=temperature)
        scored = engine.logprobs([Branch(context=context, turns=(t,)) for t in turns])
        for turn, now in zip(turns, scored, strict=True):
            assert turn.temperature == temperature
            assert now == pytest.approx(list(turn.logprobs or ()), abs=1e-4)


def test_greedy_equals_model_generate(engine: HFEngine) -> None:
    context = asked(5)
    ours = drawn(engine, context, n=1, temperature=0, max_new_tokens=12)[0]
    inputs = engine.prompts.inputs([engine.render(context)])
    out = engine.model.generate(
        **inputs, do_sample=False, max_new_tokens=12, suppress_tokens=sorted(engine.never),
        eos_token_id=sorted(engine.sampler.ends))
    assert ours.token_ids == tuple(out[0, inputs["input_ids"].shape[1]:].tolist())
    assert ours.logprobs is None


def test_finished_rows_leave_and_the_others_go_on(engines: dict[str, HFEngine]) -> None:
    engine = engines["llava"]
    turns = drawn(engine, asked(7), n=64, max_new_tokens=40)
    assert {t.finish_reason for t in turns} == {"stop", "length"}
    end = token(engine, "<eos>")
    for turn in turns:
        assert (turn.token_ids[-1] == end) == (turn.finish_reason == "stop")
        assert end not in turn.token_ids[:-1]
        assert len(turn.token_ids) == 40 or turn.finish_reason == "stop"


def test_a_cache_that_cannot_be_forked(folders: dict[str, Path],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(folders["llava"])
    usual = drawn(engine, asked(7), n=6)

    def cannot(*_: object) -> None:
        raise NotImplementedError("unheard-of state")

    monkeypatch.setattr("selfloop.engines.hf_cache.Decoding.__init__", cannot)
    engine = engine_of(folders["llava"])
    with pytest.warns(UserWarning, match="unheard-of state.*each draw runs its own prompt"):
        copies = drawn(engine, asked(7), n=6)
    assert [t.token_ids for t in copies] == [t.token_ids for t in usual]
    assert drawn(engine, asked(7), n=6) == copies


def test_a_small_budget_splits_a_request(folders: dict[str, Path]) -> None:
    small = engine_of(folders["llava"], max_batch_tokens=100)
    usual = engine_of(folders["llava"])
    assert [t.token_ids for t in drawn(small, asked(7), n=9)] == [
        t.token_ids for t in drawn(usual, asked(7), n=9)]


def test_forced_prefix_and_stop_strings(engines: dict[str, HFEngine]) -> None:
    engine = engines["llava"]
    for turn in drawn(engine, asked(2), n=4, prefix="the sum is", max_new_tokens=6):
        assert engine.decode(turn.token_ids).startswith("the sum is")
        forced = len(engine.prompts.chat.encode("the sum is", closed=False))
        assert turn.mask[:forced] == (0,) * forced and set(turn.mask[forced:]) == {1}
        row = engine.rows(Branch(context=asked(2), turns=(turn,)))[0]
        assert row.count == len(turn.token_ids) - forced
    free = drawn(engine, asked(2), n=16, max_new_tokens=30)
    word = engine.decode(free[0].token_ids[2:3]).strip()
    for turn in drawn(engine, asked(2), n=16, max_new_tokens=30, stop=(word,)):
        text = engine.decode(turn.token_ids)
        if word in text:
            assert turn.finish_reason == "stop"
            assert word not in engine.decode(turn.token_ids[:-1])


@pytest.mark.parametrize(("forced", "drawn_", "stop", "stops"), [
    ("", "a\u7d42\u4e86 b", "\u7d42\u4e86", True),      # three tokens a character
    ("", "ab\U0001f51a", "\U0001f51a", True),
    ("Answer:\n", "a b", "\n", False),                  # what was forced does not stop it
    ("Answer:\n", "a\nb", "\n", True),
    ("<ans", "wer>", "<ans", False), ("<ans", "wer>", "<answer>", True),
    ("1.\n", "2.\n", ".\n", True), ("", "plain", "x", False)])
def test_stop_strings_end_in_drawn_text_whatever_a_token_is(forced, drawn_, stop, stops) -> None:
    def decode(ids):
        return bytes(ids).decode("utf-8", errors="replace")

    tokens, given = list(drawn_.encode()), tuple(forced.encode())
    job = Job((1,), (), given, "k", 1, Sampling(max_new_tokens=len(tokens), stop=(stop,)), 99)
    batch, rows = Answers(decode, frozenset({-1}), 2, job, torch.zeros(2, 1)), torch.arange(2)
    still = [batch.write(step, rows, torch.tensor([token, 0]), torch.zeros(2), step == 0)
             for step, token in enumerate(tokens)]
    assert any(not bool(open_N[0]) for open_N in still) == stops
    assert all(bool(open_N[1]) for open_N in still), "the other answer says nothing of it"


def test_a_temperature_that_divides_by_nothing_is_refused() -> None:
    with pytest.raises(SelfloopError, match="0 is greedy"):
        Sampling(temperature=1e-38)


def test_top_k_top_p_min_p_keep_the_right_tokens() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    assert (filtered(p, Sampling(top_k=2)) > 0).tolist() == [[True, True, False, False]]
    assert (filtered(p, Sampling(top_p=0.5)) > 0).tolist() == [[True, False, False, False]]
    assert (filtered(p, Sampling(top_p=0.81)) > 0).tolist() == [[True, True, True, False]]
    assert (filtered(p, Sampling(min_p=0.2)) > 0).tolist() == [[True, True, True, False]]


def test_inverse_cdf_at_its_edges_and_in_frequency() -> None:
    logits = torch.log(torch.tensor([[0.0, 0.25, 0.5, 0.25, 0.0]])).repeat(4001, 1)
    banned = torch.tensor([0, 4])
    uniform = torch.linspace(0, 1, 4001, dtype=torch.float64)  # both edges included
    tokens, logp = pick(logits, uniform, Sampling(), banned)
    counts = torch.bincount(tokens, minlength=5).tolist()
    assert counts[0] == counts[4] == 0
    assert counts[1:4] == pytest.approx([1000, 2000, 1001], abs=2)
    assert logp is not None and logp[0].exp().item() == pytest.approx(0.25)


# -- prompts ----------------------------------------------------------------------------------


def test_one_processor_call_per_context(folders: dict[str, Path]) -> None:
    engine = engine_of(folders["llava"])
    for _ in range(3):
        turns = drawn(engine, asked(1))
        engine.logprobs([Branch(context=asked(1), turns=(t,)) for t in turns])
    assert engine.prompts.calls == 1
    engine.render(asked(2))
    assert engine.prompts.calls == 2


def test_pixels_are_made_again_when_they_were_dropped(folders: dict[str, Path]) -> None:
    engine = engine_of(folders["llava"])
    turns = drawn(engine, asked(1))
    branches = [Branch(context=asked(1), turns=(t,)) for t in turns]
    before = engine.logprobs(branches)
    engine.prompts._cache_bytes = 1
    engine.render(asked(2))
    assert engine.logprobs(branches) == before


def test_history_keeps_the_drawn_tokens(engine: HFEngine) -> None:
    first = asked(1)
    # Cut short and not even decodable: exactly what re-tokenising would lose.
    turn = drawn(engine, first, n=1, max_new_tokens=5)[0]
    talk = first.said("assistant", engine.decode(turn.token_ids)).said(
        "user", picture(9), "and here?")
    request = Request(context=talk, key="h", history=(turn,), sampling=Sampling(max_new_tokens=5))
    second = engine.generate([request], 0)[0][0]
    kept = (*turn.prompt_token_ids, *turn.token_ids)
    assert second.prompt_token_ids[:len(kept)] == kept
    assert second.media == (picture(1), picture(9))
    rows = engine.rows(Branch(context=first, turns=(turn, second)))
    assert len(rows) == 1 and rows[0].count == len(turn.token_ids) + len(second.token_ids)
    with torch.no_grad():
        found = engine.logps(rows)[0][0].tolist()
    assert found == pytest.approx([*turn.logprobs, *second.logprobs], abs=1e-4)


def test_history_delta_is_what_the_template_writes(engine: HFEngine) -> None:
    first = asked(1)
    answer = engine.encode("one")
    turn = drawn(engine, first, n=1)[0].model_copy(
        update={"token_ids": answer, "logprobs": None, "finish_reason": "stop"})
    talk = first.said("assistant", "one").said("user", "why?")
    assert engine.prompts.extend(talk, (turn,))[0] == engine.render(talk)[0]


def test_a_template_that_strips_what_was_said_renders_anew(folders: dict[str, Path],
                                                           tmp_path: Path) -> None:
    folder = shutil.copytree(folders["gemma3"], tmp_path / "strips")
    template = (folder / "chat_template.jinja").read_text()
    strips = template.replace(
        "{{ part['text'] }}",
        "{%- if message['role'] != 'assistant' or loop.index0 and 0 or message is sameas "
        "messages[-1] -%}{{ part['text'] }}{%- endif -%}")
    (folder / "chat_template.jinja").write_text(strips)
    engine = engine_of(folder)
    turn = drawn(engine, asked(1), n=1)[0]
    talk = asked(1).said("assistant", "two").said("user", "why?")
    assert engine.prompts.extend(talk, (turn,)) == engine.render(talk)


def test_over_long_prompts_are_refused_not_cut(engine: HFEngine) -> None:
    with pytest.raises(SelfloopError, match=rf"{engine.limit} positions"):
        engine.render(asked(1, "how many? " * 400))
    room = engine.limit - len(engine.render(asked(1))[0])
    turns = drawn(engine, asked(1), n=4, max_new_tokens=room + 50)
    assert max(len(t.token_ids) for t in turns) <= room


def test_a_tokenizer_that_truncates_does_not(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llava"], tmp_path / "cuts")
    path = folder / "tokenizer.json"
    setting = json.loads(path.read_text())
    setting["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0,
                             "direction": "Right"}
    path.write_text(json.dumps(setting))
    whole = engine_of(folders["llava"]).render(asked(1))[0]
    assert engine_of(folder).render(asked(1))[0] == whole and len(whole) > 8


def test_control_tokens_that_a_text_spells_are_words(engines: dict[str, HFEngine]) -> None:
    """Only the template writes them: a quoted answer neither asks for a picture nor ends a turn."""
    for name in ("gemma3", "llava"):
        chat, tokenizer = engines[name].prompts.chat, engines[name].processor.tokenizer
        for token in sorted(controls(tokenizer)):
            with pytest.warns(UserWarning, match="spells the control token"):
                chat._told = False
                said = asked(1).said("assistant", f"7{token}{token}").said("user", "sure?")
                ids = engines[name].render(said)[0]
            plain = engines[name].render(
                asked(1).said("assistant", "7").said("user", "sure?"))[0]
            special = set(tokenizer.convert_tokens_to_ids(list(controls(tokenizer))))
            special.discard(tokenizer.unk_token_id)
            assert [t for t in ids if t in special] == [t for t in plain if t in special], token
    (turn,) = drawn(engines["gemma3"], asked(1, "what is <start_of_image>?"), n=1)
    assert turn.media == asked(1).media


def test_tokens_that_questions_are_asked_with_stay_tokens(folders: dict[str, Path]) -> None:
    """SmolDocling is asked about "<loc_155>...", DeepSeek-OCR begins with "<|grounding|>"."""
    processor = tf.AutoProcessor.from_pretrained(folders["llava"])
    meant = ["<loc_155>", "<loc0001>", "<|grounding|>", "<|det|>"]
    processor.tokenizer.add_special_tokens(
        {"additional_special_tokens": [*meant, "<|located_end|>"]})
    assert controls(processor.tokenizer) >= {"<|located_end|>", "<eos>"}
    chat = Chat(processor, frozenset({processor.tokenizer.eos_token_id}))
    ids = chat.tokens(chat.render(asked(1, f"what is at {''.join(meant)}?").prompt, generate=True))
    assert set(processor.tokenizer.convert_tokens_to_ids(meant)) <= set(ids)


def test_prompts_without_pictures_in_one_call_with_others(engine: HFEngine) -> None:
    contexts = [asked(1), asked(1).without_media(), asked(2).without_media(), asked(2)]
    turns = [t for row in engine.generate([
        Request(context=c, key=f"b{i}", n=2, sampling=Sampling(max_new_tokens=6))
        for i, c in enumerate(contexts)], 0) for t in row]
    branches = [Branch(context=contexts[i // 2], turns=(t,)) for i, t in enumerate(turns)]
    for turn, now in zip(turns, engine.logprobs(branches), strict=True):
        assert now == pytest.approx(list(turn.logprobs or ()), abs=1e-4)
    answer = (turns[0].detached(),)
    blind = engine.logprobs([Branch(context=contexts[1], turns=answer)])
    seen = engine.logprobs([Branch(context=contexts[0], turns=answer)])
    assert blind[0] != pytest.approx(seen[0], abs=1e-6)


def test_bfloat16_runs_on_both_paths(folders: dict[str, Path]) -> None:
    engine = engine_of(folders["llava"], dtype="bfloat16")
    turns = drawn(engine, asked(1), n=4)
    scored = engine.logprobs([Branch(context=asked(1), turns=(t,)) for t in turns])
    assert engine.training_path == "shared prefix"
    for turn, now in zip(turns, scored, strict=True):
        assert now == pytest.approx(list(turn.logprobs or ()), abs=0.1)


def test_videos_are_refused(engines: dict[str, HFEngine]) -> None:
    clip = Media(kind="video", sha256="0" * 64)
    context = Context(prompt=(Message(role="user", content=(Part(type="video"),)),), media=(clip,))
    with pytest.raises(SelfloopError, match="as its frames"):
        engines["llava"].render(context)


# -- versions, files, LoRA --------------------------------------------------------------------


def test_other_versions_are_refused(engines: dict[str, HFEngine]) -> None:
    with pytest.raises(SelfloopError, match="version 7"):
        engines["llava"].generate([Request(context=asked(1), key="k")], 7)


def logits_of(model: object, engine: HFEngine) -> torch.Tensor:
    with torch.no_grad():
        return model(**engine.prompts.inputs([engine.render(asked(4))])).logits  # type: ignore


def test_saved_folder_loads_with_plain_transformers(engine: HFEngine, tmp_path: Path) -> None:
    engine.save(tmp_path / "saved")
    again = tf.AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    processor = tf.AutoProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(again, engine), logits_of(engine.model, engine))
    assert processor.chat_template == engine.processor.chat_template
    other = engine_of(tmp_path / "saved")
    assert other.render(asked(1)) == engine.render(asked(1))


def learn(engine: HFEngine) -> None:
    optimizer = torch.optim.SGD(engine.trainable().values(), lr=0.5)
    turns = drawn(engine, asked(1), n=4)
    rows = [engine.rows(Branch(context=asked(1), turns=(t,)))[0] for t in turns]
    for _ in range(2):
        optimizer.zero_grad()
        (-torch.cat(engine.logps(rows)[0]).mean()).backward()
        optimizer.step()


def test_lora_trains_adapters_only_and_merges(folders: dict[str, Path], tmp_path: Path) -> None:
    engine = engine_of(folders["llava"], lora=LoRA(rank=4, alpha=8))
    names = list(engine.trainable())
    assert names and all("lora_" in n and "vision" not in n for n in names)
    before = {n: p.clone() for n, p in engine.model.named_parameters()}
    seed_logits = logits_of(engine.model, engine)
    learn(engine)
    changed = {n for n, p in engine.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and changed <= set(names)
    now = logits_of(engine.model, engine)
    assert not torch.allclose(now, seed_logits, atol=1e-4)
    engine.save_merged(tmp_path / "merged")
    merged = tf.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits_of(merged, engine), now, atol=1e-5)
    assert torch.equal(logits_of(engine.model, engine), now)  # merging left it alone
    engine.save(tmp_path / "adapter")
    from peft import PeftModel

    base = tf.AutoModelForImageTextToText.from_pretrained(folders["llava"])
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(logits_of(loaded, engine), now, atol=1e-6)
    assert (tmp_path / "adapter" / "chat_template.jinja").is_file()
    engine.restart()
    assert torch.equal(logits_of(engine.model, engine), seed_logits)


def test_state_goes_round_bit_for_bit(folders: dict[str, Path], tmp_path: Path) -> None:
    engine = engine_of(folders["llava"])
    engine.publish(0, 2)
    learn(engine)
    engine.publish(1, 2)
    old = engine.generate([Request(context=asked(1), key="k", n=4)], 0)
    assert old != engine.generate([Request(context=asked(1), key="k", n=4)], 1)
    engine.save_state(tmp_path / "state")
    other = engine_of(folders["llava"])
    other.load_state(tmp_path / "state")
    assert other.version == 1
    assert other.generate([Request(context=asked(1), key="k", n=4)], 0) == old
    assert torch.equal(logits_of(other.model, engine), logits_of(engine.model, engine))


def test_unknown_lora_target_and_frozen_parts(folders: dict[str, Path]) -> None:
    with pytest.raises(SelfloopError, match=r"'q_prj'.*q_proj"):
        engine_of(folders["llava"], lora=LoRA(targets=("q_prj",)))
    with pytest.raises(SelfloopError, match="nothing is left"):
        engine_of(folders["llava"], freeze=("vision", "projector", "language"))
    with pytest.raises(SelfloopError, match="'eyes'"):
        engine_of(folders["llava"], freeze=("eyes",))
    for family in FAMILIES:
        kept = engine_of(folders[family], freeze=("vision", "language")).trainable()
        assert kept and all("projector" in n or "connector" in n for n in kept), family


def test_fingerprints_tell_weights_and_settings_apart(folders: dict[str, Path]) -> None:
    one, two = engine_of(folders["llava"]), engine_of(folders["llava"])
    assert one.fingerprint() == two.fingerprint()
    others = [engine_of(folders["gemma3"]), engine_of(folders["llava"], lora=LoRA(rank=2)),
              engine_of(folders["llava"], freeze=("vision",))]
    assert len({one.fingerprint(), *(e.fingerprint() for e in others)}) == 4


@pytest.mark.parametrize(("remove", "message"), [
    ("config.json", "no config.json"), ("model.safetensors", "no .*safetensors"),
    ("processor_config.json", "no processor"), ("chat_template.jinja", "no chat template"),
])
def test_broken_folders_fail_in_one_line(folders: dict[str, Path], tmp_path: Path, remove: str,
                                         message: str) -> None:
    folder = shutil.copytree(folders["llava"], tmp_path / "broken")
    (folder / remove).unlink()
    with pytest.raises(SelfloopError, match=message) as raised:
        HFEngine(folder)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_and_a_text_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(SelfloopError, match="no model folder"):
        HFEngine(tmp_path / "nowhere")
    config = tf.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16,
                            num_hidden_layers=1, num_attention_heads=2)
    folder = shutil.copytree(folders["llava"], tmp_path / "text")
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(SelfloopError, match=r"does not load|no pictures"):
        HFEngine(folder)
