"""Data: every row shape means the same Sample, and every bad row is named."""

import base64
import csv
import json
import re
import shutil

import pytest
from PIL import Image

from selfloop.data import Samples, load, save, to_messages
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.types import Message, Sample

QUESTION = "How many cats?"


@pytest.fixture
def folder(tmp_path):
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (16, 12), colour).save(tmp_path / f"{i}.png")
    return tmp_path


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(folder, row, **options):
    (sample,) = load(written(folder / "rows.jsonl", [row]), **options)
    return sample


def raw(folder, i=0):
    return (folder / f"{i}.png").read_bytes()


# -- every shape --------------------------------------------------------------------------------

ASKED = [{"role": "user", "content": QUESTION}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
SHAPES = {
    "prompt": {"prompt": QUESTION, "image": "0.png", "answer": "2"},
    "question, label": {"question": QUESTION, "images": ["0.png"], "label": "2"},
    "query, solution": {"query": QUESTION, "images": "0.png", "solution": "2"},
    "path in a dict": {"prompt": QUESTION, "answer": "2",
                       "image": {"bytes": None, "path": "0.png"}},
    "TRL parts": {"prompt": PARTS, "images": ["0.png"], "answer": "2"},
    "TRL plain": {"prompt": ASKED, "image": "0.png", "answer": "2"},
    "TRL inline": {"prompt": [{"role": "user", "content": [
        {"type": "image", "image": "0.png", "text": None},
        {"type": "text", "text": QUESTION, "image": None}]}], "answer": "2"},
    "ShareGPT": {"conversations": [{"from": "human", "value": f"<image>\n{QUESTION}"},
                                   {"from": "gpt", "value": "2"}], "images": ["0.png"]},
    "LLaVA": {"id": "x", "image": "0.png", "conversations": [
        {"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "2"}]},
    "ms-swift": {"messages": [{"role": "user", "content": f"<image>{QUESTION}"},
                              {"role": "assistant", "content": "2"}], "images": ["0.png"]},
    "ms-swift RL": {"messages": ASKED, "images": ["0.png"], "solution": "2"},
    "verl": {"data_source": "cats", "prompt": [{"role": "user", "content": f"<image>{QUESTION}"}],
             "images": [{"path": "0.png"}], "ability": "counting",
             "reward_model": {"style": "rule", "ground_truth": "2"},
             "extra_info": {"index": 7, "answer": "Two cats: 2"}},
    "EasyR1": {"problem": f"<image>{QUESTION}", "answer": "2", "images": ["0.png"]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_same_sample(folder, shape):
    plain = one(folder, SHAPES["prompt"])
    sample = one(folder, SHAPES[shape])
    assert sample.id == plain.id
    assert [p.type for p in sample.prompt[0].content] == ["image", "text"]
    assert sample.context.text == QUESTION and sample.answer == "2"
    assert Library().open(sample.media[0]).getpixel((3, 3)) == (255, 0, 0)


def test_pictures_as_bytes_base64_and_pil(folder):
    plain = one(folder, SHAPES["prompt"])
    text = base64.b64encode(raw(folder)).decode()
    for picture in (raw(folder), {"bytes": raw(folder), "path": None}, text,
                    f"data:image/png;base64,{text}"):
        (sample,) = load([{"prompt": QUESTION, "image": picture, "answer": "2"}],
                         images=folder / "kept")
        assert sample.id == plain.id
        assert str(sample.media[0].meta["uri"]).startswith(str(folder / "kept"))
    (sample,) = load([{"prompt": QUESTION, "image": Image.open(folder / "0.png")}],
                     images=folder / "kept")
    assert Library().open(sample.media[0]).getpixel((0, 0)) == (255, 0, 0)


def test_a_vlmevalkit_table(folder):
    with open(folder / "set.tsv", "w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", "hint", "A", "B", "C", "answer", "category"])
        table.writerow(["5", base64.b64encode(raw(folder)).decode(), "Which colour?", "Look.",
                        "red", "blue", "", "A", "colour"])
    (sample,) = load(folder / "set.tsv")
    assert sample.context.text == "Hint: Look.\nWhich colour?\nA. red\nB. blue"
    assert sample.answer == "A" and sample.meta == {"index": "5", "category": "colour"}


def test_system_turns_and_history_are_kept(folder):
    sample = one(folder, {"system": "Be brief.", "image": "0.png", "conversations": [
        {"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"},
        {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "yes"}]})
    assert [m.role for m in sample.prompt] == ["system", "user", "assistant", "user"]
    assert sample.answer == "yes"


def test_markers_place_pictures_and_pages_in_order(folder):
    frames = [Image.new("RGB", (8, 8), c) for c in ("white", "black")]
    frames[0].save(folder / "two.tif", save_all=True, append_images=frames[1:])
    sample = one(folder, {"prompt": "Is <image> in <image>?", "images": ["0.png", "two.tif"]})
    kinds = [p.text or p.type for p in sample.prompt[0].content]
    assert kinds == ["Is ", "image", " in ", "image", "image", "?"]
    colours = [Library().open(m).getpixel((1, 1)) for m in sample.media]
    assert colours == [(255, 0, 0), (255, 255, 255), (0, 0, 0)]


def test_rationale_and_other_columns(folder):
    sample = one(folder, {"prompt": QUESTION, "answer": 2, "chain": "one, two: 2", "task": "count",
                          "cluster": "w1", "related": ["Any dogs?"], "digits": [1, 2], "x": None})
    assert sample.rationale == "one, two: 2" and sample.answer == 2 and sample.cluster == "w1"
    assert sample.meta == {"task": "count", "cluster": "w1", "related": ["Any dogs?"],
                           "digits": [1, 2]}
    other = one(folder, {"problem": QUESTION, "answer": "2", "solution": "Two cats, so 2."})
    assert other.rationale == "Two cats, so 2." and other.meta == {}


def test_gold_values_never_reach_meta(folder):
    verl = one(folder, SHAPES["verl"])
    assert verl.rationale == "Two cats: 2"
    assert verl.meta["extra_info"] == {"index": 7} and "reward_model" not in verl.meta
    samples = load([{"prompt": QUESTION, "answer": "2", "label": "two", "chosen": "2"}])
    assert samples[0].meta == {}
    assert any("'label' is not used" in note for note in samples.notes)
    assert any("'chosen' is not read" in note for note in samples.notes)


# -- every source -------------------------------------------------------------------------------


def test_json_parquet_csv_and_datasets_agree(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": f"Colour {i}?", "image": f"{i}.png", "answer": c}
            for i, c in enumerate(("red", "green", "blue"))]
    expected = load(written(folder / "a.jsonl", rows))
    assert len(expected) == 3
    (folder / "a.json").write_text(json.dumps({"data": rows}))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    with open(folder / "a.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    for name in ("a.json", "a.parquet", "a.csv"):
        assert load(folder / name).fingerprint() == expected.fingerprint(), name


def test_datasets_with_the_image_feature(folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "question": datasets.Value("string"), "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["red", "green"]),
    })
    data = datasets.Dataset.from_list(
        [{"question": "Colour?", "image": {"bytes": raw(folder, i), "path": None}, "label": i}
         for i in range(2)], features=features)
    direct = load(data, images=folder / "kept")
    assert [s.answer for s in direct] == ["red", "green"]
    assert load(data.select([1]), images=folder / "kept")[0].id == direct[1].id
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(
        str(folder / "saved"))
    assert load(folder / "saved", split="train").fingerprint() == direct.fingerprint()
    with pytest.raises(SelfloopError, match="has the splits train, test"):
        load(folder / "saved", split="dev")
    data.to_parquet(str(folder / "hub.parquet"))
    assert load(folder / "hub.parquet").fingerprint() == direct.fingerprint()


def test_a_folder_of_pictures_with_and_without_labels(folder):
    samples = load(folder, task="Which colour?")
    assert len(samples) == 3 and {s.context.text for s in samples} == {"Which colour?"}
    with pytest.raises(SelfloopError, match=r"no question.*give task="):
        load(folder)
    written(folder / "labels.jsonl", [{"file_name": "1.png", "label": "green"}])
    (sample,) = load(folder, task="Which colour?")
    assert sample.answer == "green" and sample.id not in [s.id for s in samples]


def test_splits_by_file_name_and_by_column(folder, tmp_path_factory):
    sets = tmp_path_factory.mktemp("sets")
    written(sets / "train.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    written(sets / "test.jsonl", [{"prompt": "c"}])
    assert len(load(sets, split="train")) == 2 and len(load(sets, split="test")) == 1
    with pytest.raises(SelfloopError, match=r"holds test\.jsonl, train\.jsonl"):
        load(sets)
    with pytest.raises(SelfloopError, match="has no `split` field"):
        load(sets / "train.jsonl", split="dev")
    rows = [{"prompt": "a", "split": "x"}, {"prompt": "b", "split": "y"}]
    assert [s.context.text for s in load(rows, split="y")] == ["b"]


# -- bad rows -----------------------------------------------------------------------------------

BAD = {
    "fewer markers": ({"prompt": "<image> a?", "images": ["0.png", "1.png"]},
                      "1 <image> markers in the text but 2 pictures"),
    "no pictures": ({"prompt": "<image> a?"}, "1 <image> markers in the text but 0 pictures"),
    "no such picture": ({"prompt": "a?", "image": "gone.png"}, "gone.png: no such picture"),
    "an address": ({"prompt": "a?", "image": "https://x.org/a.png"},
                   "https://x.org/a.png: download it first; selfloop never fetches pictures"),
    "an address of a video": ({"prompt": "a?", "video": "https://x.org/a.mp4"}, "https://x.org/"),
    "an empty name": ({"prompt": "a?", "image": ""}, "field 'image': an empty name; name its file"),
    "a folder": ({"prompt": "a?", "image": "."}, "a folder where a file should be"),
    "another picture beside": ({"prompt": "a?", "images": ["0.png"], "image": "1.png"},
                               "field 'image': it holds what 'images' does not, and only 'images' "
                               "is shown; put everything into 'images'"),
    "another video beside": ({"prompt": "a?", "videos": ["a.mp4"], "video": "b.mp4"},
                             "field 'video': it holds what 'videos' does not"),
    "not a picture": ({"prompt": "a?", "image": "rows.jsonl"}, "not a picture"),
    "no question": ({"qestion": "a?", "answer": "b"}, "did you mean 'question' by 'qestion'"),
    "a misspelt label": ({"prompt": "a?", "lable": "b"}, "no label column among the columns"),
    "an empty question": ({"prompt": ""}, "field 'prompt': it is empty; give the row"),
    "a video": ({"prompt": "a?", "videos": ["a.mp4"]}, "a.mp4: no such"),
    "a strange role": ({"messages": [{"role": "boss", "content": "a"}]}, "the role 'boss'"),
    "a KTO row": ({"prompt": "a?", "completion": "b", "label": True}, "(KTO)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_named(folder, kind):
    row, said = BAD[kind]
    path = written(folder / "rows.jsonl", [{"prompt": "fine?"}, row, row])
    with pytest.raises(SelfloopError) as error:
        load(path)
    text = str(error.value)
    assert said in text and "row 2" in text and "rows.jsonl" in text and "\n" not in text
    assert "1 more bad rows" in text
    samples = load(path, on_bad="report")
    assert len(samples) == 1 and [p.row for p in samples.problems] == [2, 3]


def test_the_same_picture_in_two_columns_is_one(folder):
    twice = {"prompt": "a?", "images": ["0.png"], "image": "0.png"}
    assert len(one(folder, twice).media) == 1
    assert len(one(folder, {**twice, "image": ["0.png"]}).media) == 1
    assert len(one(folder, {**twice, "images": [], "image": "1.png"}).media) == 1
    picture = Image.open(folder / "0.png")
    row = {"prompt": "a?", "images": [picture], "image": picture}
    assert len(load([row], images=folder / "kept")[0].media) == 1
    with pytest.raises(SelfloopError, match="field 'image'"):
        load([{**row, "image": Image.new("RGB", (4, 4))}], images=folder / "kept")


def test_pictures_that_are_missing_in_some_rows_are_told(folder):
    rows = [{"prompt": f"{i}?", "answer": "b", "image": "0.png" if i else None} for i in range(3)]
    assert "1 of 3 samples have no picture or sound, the others do" in \
        load(written(folder / "rows.jsonl", rows)).notes
    assert not load(written(folder / "rows.jsonl", rows[1:])).notes
    assert not load(written(folder / "rows.jsonl", rows[:1])).notes


def test_a_text_too_long_for_a_files_name_is_no_file(folder):
    told = "a note of some length, " * 30 + "and one.jpg"
    assert one(folder, {"prompt": "a?", "answer": "b", "note": told}).meta["note"] == told


def test_a_named_label_column_must_exist(folder):
    path = written(folder / "rows.jsonl", [{"prompt": "a?", "diagnosis": "b"}])
    with pytest.raises(SelfloopError, match=r"columns diagnosis, prompt; did you mean 'diagnosis'"):
        load(path, answer="diagnoses")
    assert load(path, answer="diagnosis")[0].answer == "b"
    both = load([{"prompt": "a?", "diagnosis": "b", "label": "c"}], answer="diagnosis")
    assert both[0].answer == "b" and both[0].meta == {}
    assert both.notes == ("column 'label' is not used: 'diagnosis' is the answer (1 rows)",)


def test_broken_lines_and_files_are_named(folder):
    path = folder / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n[1]\n')
    problems = load(path, on_bad="report").problems
    assert [p.row for p in problems] == [2, 3] and "not JSON" in str(problems[0])
    (folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SelfloopError, match=r"cut\.parquet: not readable as parquet"):
        load(folder / "cut.parquet")
    (folder / "t.csv").write_text("prompt,answer\na,b,c\n")
    with pytest.raises(SelfloopError, match="row 1: more cells than the header"):
        load(folder / "t.csv")
    (folder / "s.csv").write_text("prompt;answer\nhow much?;1,5\n")  # where , is the decimal sign
    assert load(folder / "s.csv")[0].answer == "1,5"
    (folder / "s.csv").write_text("prompt;answer\na?;b\n", encoding="utf-8-sig")  # as Excel does
    assert load(folder / "s.csv")[0].answer == "b"
    (folder / "empty.jsonl").write_text("\n")
    with pytest.raises(SelfloopError, match="no rows"):
        load(folder / "empty.jsonl")
    for source in ("gone.jsonl", "https://x.org/a.jsonl", 7):
        with pytest.raises(SelfloopError, match=r"no such file|download it first|cannot load"):
            load(source)


def test_files_that_are_not_utf_8_are_named_with_the_mend(folder):
    row = '{"prompt": "wie groß?", "answer": "b"}\n'
    path = folder / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a?", "answer": "b"}\n' + row.encode("latin-1"))
    said = str(load(path, on_bad="report").problems[0])
    assert "row 2: not UTF-8 (invalid " in said and "at byte 19); save it as UTF-8" in said
    for name, text in (("a.jsonl", row), ("b.jsonl", "")):
        (folder / name).write_text(row + text, encoding="utf-16")
        with pytest.raises(SelfloopError, match=rf"{name}: it is in UTF-16: save it as UTF-8"):
            load(folder / name)
    (folder / "t.csv").write_bytes("prompt,answer\nwie groß?,b\n".encode("latin-1"))
    with pytest.raises(SelfloopError, match=r"t\.csv: not UTF-8 .* at byte \d+\): save it as"):
        load(folder / "t.csv")


# -- the view -----------------------------------------------------------------------------------


def test_duplicates_are_merged_and_contradictions_counted(folder):
    shutil.copy(folder / "0.png", folder / "copy.png")
    rows = [{"prompt": QUESTION, "image": name, "answer": a}
            for name, a in (("0.png", "1"), ("copy.png", "1"), ("0.png", "1"), ("0.png", "2"))]
    samples = load(written(folder / "rows.jsonl", rows))
    assert len(samples) == 2 and samples.merged == 2
    assert "1 questions come with more than one answer; all are kept" in samples.notes


def test_a_view_is_a_sequence(folder):
    samples = load([{"prompt": f"{i}?", "answer": i} for i in range(10)])
    assert samples[3].answer == 3 and samples[-1].answer == 9 and len(samples[2:5]) == 3
    assert [s.answer for s in samples.take(2)] == [0, 1]
    even = samples.filter(lambda s: s.answer % 2 == 0)
    assert len(even) == 5 and even.fingerprint() != samples.fingerprint()
    assert even.fingerprint() == Samples.of(list(even)).fingerprint()
    assert len(load([{"prompt": f"{i}"} for i in range(10)], limit=4)) == 4


def test_hashes_are_kept_beside_the_data_and_renewed(folder, monkeypatch):
    path = written(folder / "rows.jsonl", [SHAPES["prompt"]])
    first = load(path)[0]
    assert (folder / ".selfloop" / "media.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("selfloop.media_index.read", lambda *a, **k: pytest.fail("hashed again"))
        assert load(path)[0].id == first.id
    Image.new("RGB", (9, 9), "white").save(folder / "0.png")
    assert load(path)[0].id != first.id
    with pytest.raises(SelfloopError, match="has changed since it was indexed"):
        Library().open(first.media[0])


# -- and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_what_is_saved_is_loaded_even_after_moving(folder, tmp_path_factory, name):
    rows = [{"prompt": f"<image>{i}?", "images": f"{i}.png", "answer": i, "chain": "c",
             "related": ["r"]} for i in range(3)]
    samples = load(written(folder / "rows.jsonl", [*rows, {"prompt": "no picture?"}]))
    save(samples, folder / name)
    assert load(folder / name).fingerprint() == samples.fingerprint()
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    shutil.move(folder, moved)
    again = load(moved / name)
    assert again.fingerprint() == samples.fingerprint()
    assert Library().open(again[1].media[0]).getpixel((0, 0)) == (0, 128, 0)
    assert Library().open(again[1].context.media[0]).size == (16, 12)
    (moved / "1.png").unlink()
    with pytest.raises(SelfloopError, match=r"row 2.*1\.png: no such picture"):
        load(moved / name)
    with pytest.raises(SelfloopError, match="cannot write"):
        save(again, moved / "out.xlsx")


def test_to_messages_is_read_back_as_the_same_sample(folder):
    sample = one(folder, SHAPES["LLaVA"])
    row = to_messages(sample)
    assert row["prompt"] == PARTS and row["answer"] == "2"
    assert row["images"] == [str(folder / "0.png")]
    assert load([row])[0].id == sample.id
    noisy = Sample(prompt=sample.prompt, media=(sample.media[0].with_op("noise"),))
    with pytest.raises(SelfloopError, match="no file that shows it as it is"):
        to_messages(noisy)
    assert to_messages(Sample(prompt=(Message(content="a"),)))["images"] == []


@pytest.mark.parametrize(("row", "field"), [
    ({"question": "what \ud83d ?", "answer": "a cat"}, "question"),
    ({"question": "what ?", "answer": "\ud83d"}, "answer"),
    ({"question": "what ?", "answer": "a cat", "note": ["\ud83d"]}, "note"),
])
def test_half_a_surrogate_pair_is_a_bad_row(tmp_path, row, field):
    """JSON can say it; UTF-8, and with it hashes and files, cannot."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (
        {"question": "fine ?", "answer": "yes \U0001f600"}, row)))
    found = load(path, on_bad="report")
    assert [s.answer for s in found] == ["yes \U0001f600"]
    assert [(p.row, p.field) for p in found.problems] == [(2, field)]
    with pytest.raises(SelfloopError, match=f"row 2, field '{field}': half of a surrogate pair"):
        load(path)


# -- a picture in a column that nobody reads ------------------------------------------------------


@pytest.mark.parametrize(("column", "value", "told"), [
    ("picture", "a.png", None), ("img", ["a.png"], None), ("clip", "v.mp4", None),
    ("photo", {"bytes": b"\x89PNG", "path": None}, None),
    ("shot", "gone.png", "column 'shot'.*it names a picture.*call it 'image'"),
    ("link", "https://example.org/a.png", "column 'link'.*call it 'image'"),
    ("source", "a.png.txt", ""), ("note", "seen in a.png today", ""),
])
def test_a_row_is_not_asked_blind_because_of_a_columns_name(tmp_path, column, value, told):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "v.mp4").write_bytes(b"any")
    row = {column: value, "question": "Which colour is a.png?", "answer": "red"}
    if told is None:
        kind = "video" if column == "clip" else "image"
        said = f"row 1, field '{column}'.*call the column '{kind}'"
        with pytest.raises(SelfloopError, match=said):
            load([row], root=tmp_path)
        seen = load([{**row, "image": "a.png"}], root=tmp_path)  # what is shown is enough
        assert len(seen[0].media) == 1
        return
    notes = load([row], root=tmp_path).notes
    assert re.search(told, " ".join(notes)) if told else not notes
