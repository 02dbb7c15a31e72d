"""Every foreign format: read, told by its first row, written back, and ten mistakes named."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from srpo_jax.data_pipelines.exchange.exporting import export_items
from srpo_jax.data_pipelines.exchange.importing import Found, Settings, import_file, read_items
from srpo_jax.data_pipelines.exchange.item import Answer, Item, pairs_of
from srpo_jax.data_pipelines.formats.registry import FORMATS, detect
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.errors import UserError
from tests.support.foreign import BAD, CASES, GOOD, PAIR, data_uri, draw, says, write_rows

LINES = make_format("lines")
WRITTEN = [name for name in CASES if FORMATS[name].writes]


def read(tmp_path, path, name="", **settings):
    """(items, counts) of an import of this file into tmp_path/out."""
    form, opened = detect(path)
    assert not name or form.name == name
    found, _ = import_file(form, opened, tmp_path / "out", Settings(**settings), LINES)
    if settings.get("dry_run"):
        return [], found
    return list(read_items(tmp_path / "out" / "trees.jsonl")), found


def test_every_format_has_a_case():
    """A format without rows here would be under no test. Ours, and the second layouts that are only
    written, are in tests of their own.
    """
    written = {"llama_factory_alpaca", "trl_step_values"}
    assert set(CASES) == set(FORMATS) - {"srpo", "records"} - written


def test_our_own_records_and_trees_stay_what_they_are(tmp_path):
    """Records come back field by field, and the trees of an import are read into the same items
    again, ids and meta included.
    """
    draw(tmp_path)
    records = [
        Record("r", ("pics/0.png",), "Q <image>?", ("Look.", "Think."), "No.", "violence", True),
        Record("s", (), "R", (), "", unsafe_reply="Yes", license="MIT", meta={"a": [1]}),
    ]
    write_records(records, tmp_path / "mine.jsonl")
    items, _ = read(tmp_path, tmp_path / "mine.jsonl", "records")
    again = read_records(tmp_path / "out/records.jsonl")
    for one, other in zip(records, again, strict=True):
        same = {"images": one.images, "root": one.root, "source": one.source}
        assert dataclasses.replace(other, **same) == one
    (tmp_path / "second").mkdir()
    assert read(tmp_path / "second", tmp_path / "out/trees.jsonl", "srpo")[0] == items


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_told_by_its_first_row_and_read(tmp_path, name):
    """Without --from the format is the file's own; questions, answers and pictures come as they
    are, records can be read back, and every id says where it comes from and is there once.
    """
    draw(tmp_path)
    case = CASES[name]()
    items, found = read(tmp_path, write_rows(tmp_path / case.file, case.rows), name)
    assert tuple(item.question for item in items) == case.questions
    assert found.pairs == case.pairs and found.bad_rows == 0
    assert len({item.id for item in items}) == len(items)
    assert all(item.id.startswith(name) and item.source == name for item in items)
    assert all(item.license == FORMATS[name].license for item in items)
    for chosen, rejected in (each for item in items for each in pairs_of(item)):
        if GOOD in (chosen.text, rejected.text):
            assert (chosen.text, rejected.text) == (GOOD, BAD)
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert [record.question for record in records] == [item.question for item in items]
    assert all(record.image_paths() is not None for record in records)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_reads_as_the_same(tmp_path, name):
    """Import, export and import again: questions, pictures, paths, answers, labels and the fields
    that nothing reads are what they were.
    """
    draw(tmp_path)
    case = CASES[name]()
    first, _ = read(tmp_path, write_rows(tmp_path / case.file, case.rows))
    container = "json" if case.file.endswith("json") else "jsonl"
    form = FORMATS[name]()
    written = export_items(form, first, tmp_path / "out", tmp_path / "back", container=container)
    path = tmp_path / "back" / written.file
    (tmp_path / "again").mkdir()
    again, found = read(tmp_path / "again", path, name)
    assert found.bad_rows == 0
    kept = [item for item in first if list(form.rows(item))]
    assert len(kept) >= len(first) - 1 and (len(again) == len(kept) or name == "rpo")
    for one, other in zip(kept, again):
        told = [each.meta.get("source_fields", {}) for each in (one, other)]
        told[0].pop("later_turns", None)  # of another question
        assert told[0] == told[1]
        same = dataclasses.replace(other, id=one.id, meta=one.meta)
        if name == "rpo":  # its rows of a question come by their prefix
            same = dataclasses.replace(same, answers=one.answers, reference=one.reference)
        assert same == one


def mistakes(case):
    """(what, row) of rows that are the first one with a mistake."""
    good = case.rows[0]

    def but(**changes):
        row = copy.deepcopy(good)
        row.update(changes)
        return row

    for name in case.needed:
        yield f"without {name}", {k: v for k, v in good.items() if k != name}
        yield f"{name}: number", but(**{name: 17})
        yield f"{name}: null", but(**{name: None})
        yield f"{name}: object", but(**{name: {"a": 1}})
    for name in case.texts:
        yield f"{name}: empty", but(**{name: " \n"})
        yield f"{name}: half a pair", but(**{name: "\ud800"})
    if case.image:
        many = isinstance(good[case.image], list)
        for what in ("pics/none.png", "https://x.org/a.png", "/etc/hostname", "../a.png", "a.txt"):
            yield f"picture {what}", but(**{case.image: [what] if many else what})
        yield (
            "picture: damaged base64",
            but(
                **{case.image: ["data:image/png;base64,%%"] if many else "data:image/png;base64,%%"}
            ),
        )
        yield "picture: of a number", but(**{case.image: [3] if many else 3})
    for number, changes in enumerate(case.wrong):
        yield f"wrong {number}", but(**changes)
    yield "no object", ["a", "list"]
    yield "a text", "text"


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_with_its_place(tmp_path, name):
    """Of a good row and one with a mistake the second is named by file and line (or number), on
    one line, and counted, and the first is read; without leave the import ends with that line.
    At least ten mistakes of every format.
    """
    draw(tmp_path)
    (tmp_path / "a.txt").write_text("no picture")
    case = CASES[name]()
    count = 0
    for what, row in mistakes(case):
        path = write_rows(tmp_path / case.file, [case.rows[0], row])
        form = FORMATS[name]()
        found, _ = import_file(
            form, form.open(path), tmp_path / "dry", Settings(dry_run=True), LINES
        )
        if what in TOLERATED.get(name, ()):
            assert found.bad_rows == 0, what
            continue
        assert (found.rows, found.bad_rows) == (2, 1), (what, found)
        place = f"{path}: chat[1]: " if name == "mssbench" else f"{path}:{LINE[path.suffix]}: "
        assert found.bad[0].startswith(place) and "\n" not in found.bad[0], what
        assert len(found.bad[0]) < len(place) + 320
        with pytest.raises(UserError, match=r"1 of 2 rows cannot be used; --dry_run names them"):
            import_file(form, form.open(path), tmp_path / "no", Settings(), LINES)
        assert not list(tmp_path.glob("no/*.jsonl"))
        count += 1
    assert count >= 10


LINE = {".jsonl": 2, ".json": 3}
# What is no mistake there.
TOLERATED = {"ms_swift": ("without rejected_response", "rejected_response: null")}


TALK = [says(role, "hm") for role in ("user", "assistant") * 25]
DIALOGUES = {
    "trl": {"prompt": TALK, **PAIR},
    "ms_swift": {"messages": TALK, "rejected_response": BAD},
    "llama_factory": {
        "messages": TALK,
        "chosen": says("assistant", GOOD),
        "rejected": says("assistant", BAD),
        "conversations": [{"from": name, "value": "hm"} for name in ("human", "gpt") * 25],
    },
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_of_a_dialogue_it_is_said_what_to_do(tmp_path, name):
    """However long it is: whole, on one line, with a way out that is a flag of the command."""
    form = FORMATS[name]()
    path = write_rows(tmp_path / "a.jsonl", [DIALOGUES[name]])
    opened = form.open(path)
    found, _ = import_file(form, opened, tmp_path / "o", Settings(dry_run=True), LINES)
    (said,) = found.bad
    assert said.endswith("of the last question, or leave the row out (--allow_bad=N)")
    assert "no dialogue: write the earlier turns into" in said


def test_pairs_that_say_the_same_are_refused(tmp_path):
    """Also where only white space or the form of a sign differs: such a pair teaches nothing."""
    rows = [{"prompt": "Q", "chosen": "ﬁne  now", "rejected": " fine now\n"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    found = read(tmp_path, path, dry_run=True)[1]
    assert found.bad == [f"{path}:1: the chosen and the rejected answer say the same"]


def test_marks_of_pictures_are_counted(tmp_path):
    """As many marks as pictures or none; those at the head are taken away, those between words
    stay.
    """
    draw(tmp_path)
    two = {"image": ["pics/0.png", "pics/1.png"], "chosen": "a", "rejected": "b"}
    rows = [{**two, "question": q} for q in ("<image>\n<image> Same?", "Is <image> a <image>?")]
    items, _ = read(tmp_path, write_rows(tmp_path / "a.jsonl", rows), "mmpr")
    assert [item.question for item in items] == ["Same?", "Is <image> a <image>?"]
    path = write_rows(tmp_path / "b.jsonl", [{**two, "question": "<image> Same?"}])
    assert "1 <image> marks for 2 pictures" in read(tmp_path, path, dry_run=True)[1].bad[0]


def test_pictures_are_kept_once_by_their_contents(tmp_path):
    """From a file, from base64 or named twice: the same picture is one file, its name is the sum
    of its contents, and no name of the source is in what is written.
    """
    draw(tmp_path)
    (tmp_path / "pics/copy.png").write_bytes((tmp_path / "pics/0.png").read_bytes())
    cells = ["pics/0.png", "pics/copy.png", data_uri(tmp_path, "pics/0.png"), "pics/1.png"]
    rows = [
        {"images": [c], "prompt": f"{i}?", "chosen": "a", "rejected": "b"}
        for i, c in enumerate(cells)
    ]
    items, found = read(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    assert (found.pictures, found.pictures_again) == (2, 2)
    assert len(list((tmp_path / "out/images").iterdir())) == 2
    assert items[0].images == items[1].images == items[2].images != items[3].images
    assert "pics" not in (tmp_path / "out/trees.jsonl").read_text()


def test_step_dpo_is_kept_letter_by_letter(tmp_path):
    """The steps before the branch point are pieces of their own that joined are the file's text; a
    heading without a text begins both answers; no turn ends behind a step; the licence is there.
    """
    case = CASES["step_dpo"]()
    items, _ = read(tmp_path, write_rows(tmp_path / case.file, case.rows))
    first = items[0]
    assert first.reference == (
        "Let us see.\n",
        "Step 1: 2*3 is 6.\n",
        "Step 2: so 7-6.\n",
        "Step 3: It is 1.",
    )
    assert [(a.at, a.text, a.safe, a.ended) for a in first.answers] == [
        (3, "Step 3: It is 1.", True, False),
        (3, "Step 3: It is 15.", False, False),
    ]
    assert first.license == "CC-BY-NC-4.0" and items[1].answers[0].at == 0
    assert first.meta["source_fields"] == {"dataset": "d", "full_chosen": " It is 1. Done."}


def test_rows_of_one_question_become_one_tree(tmp_path):
    """RPO's rows by the lines that both outputs begin with, TRL's labelled steps by the steps that
    a right path and a wrong one share.
    """
    case = CASES["rpo"]()
    items, _ = read(tmp_path, write_rows(tmp_path / case.file, case.rows))
    assert items[0].reference == ("Look.\n", "Think.\n", "Yes.")
    assert [(a.at, a.text, a.safe) for a in items[0].answers] == [
        (2, "Yes.", True),
        (2, "No.", False),
        (1, "Hm.\nYes.", True),
        (1, "Bah.\nNo.", False),
    ]
    case = CASES["trl_stepwise"]()
    (tmp_path / "steps").mkdir()
    items, found = read(tmp_path / "steps", write_rows(tmp_path / case.file, case.rows))
    assert items[0].reference == ("2*3 is 6.\n", "It is 8.")
    assert [(a.at, a.text, a.steps_safe) for a in items[0].answers] == [
        (1, "It is 8.", (True,)),
        (1, "It is 9.", (False,)),
    ]
    assert (found.items, found.trees) == (2, 1)  # of 1+1 no right path is known


def test_steps_are_labelled_by_what_comes_of_their_branches(tmp_path):
    """A step by the safe share of the judged, finished branches behind it, up to the first that has
    none; what stands behind no step, or was not judged, says nothing. The other layout reads it.
    """
    judged = {0: [False], 1: [True, False, False], 2: [True, None, False], 4: [True]}
    item = Item(
        "q",
        "What now?",
        reference=("Look.\n", "Think.\n", "Plan.\n", "Check.\n", "No."),
        answers=tuple(
            Answer(at, (f"{at} {number}",), safe)
            for at, labels in judged.items()
            for number, safe in enumerate(labels)
        )
        + (Answer(1, ("Cut off",), True, ended=False),),
    )
    unjudged = dataclasses.replace(item, id="r", answers=item.answers[:1])
    form = FORMATS["trl_step_values"]()
    written = export_items(form, [item, unjudged], tmp_path, tmp_path / "out")
    assert (written.rows, written.empty) == (1, 1)
    path = tmp_path / "out" / written.file
    row = json.loads(path.read_text())
    assert row["prompt"] == "What now?" and row["completions"] == ["Look.", "Think."]
    assert row["labels"] == [False, True]
    assert row["values"] == [1 / 3, 1 / 2] and row["branches"] == [3, 2]
    form, opened = detect(path)
    again = form.item(next(iter(opened.rows)).data)
    assert form.name == "trl_stepwise" and again.answers[0].steps_safe == (False, True)
    assert again.meta["source_fields"]["values"] == [1 / 3, 1 / 2]


def test_the_safer_answer_is_chosen_and_the_more_helpful_one_is_noted(tmp_path):
    """BeaverTails-V says two things about a pair; its own cost model calls the safer one worse."""
    draw(tmp_path)
    case = CASES["beavertails_v"]()
    (item,), _ = read(tmp_path, write_rows(tmp_path / case.file, case.rows))
    assert item.answers[0].text == GOOD and item.answers[0].safe is True
    assert (item.meta["safer"], item.meta["more_helpful"]) == (2, 1)
    assert item.meta["source_fields"] == {"response_1_harmless_rate": -1.5}


def test_dataset_info_names_files_and_columns(tmp_path):
    """LLaMA-Factory's own rule: where columns are named, the others count as not there; a set is
    chosen by --part; what lies elsewhere is refused, and a file outside the folder too.
    """
    draw(tmp_path)
    row = {"talk": [{"role": "me", "content": "<image>Q"}], "good": {"role": "it", "content": "A"}}
    row |= {"bad": {"role": "it", "content": "B"}, "pics": ["pics/0.png"], "images": ["x"]}
    write_rows(tmp_path / "a.json", [row])
    columns = {"messages": "talk", "chosen": "good", "rejected": "bad", "images": "pics"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "me", "assistant_tag": "it"}
    entry = {"file_name": "a.json", "formatting": "sharegpt", "ranking": True}
    info = {"mine": {**entry, "columns": columns, "tags": tags}, "hub": {"hf_hub_url": "x/y"}}
    info["out"] = {"file_name": "../a.json"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    form, opened = detect(tmp_path, "mine")
    found, _ = import_file(form, opened, tmp_path / "out", Settings(), LINES)
    (item,) = read_items(tmp_path / "out/trees.jsonl")
    assert (item.question, item.answers[0].text, item.answers[1].text) == ("Q", "A", "B")
    assert len(item.images) == 1 and found.unread == {"images": 1}
    for part, said in (
        ("", "names 3 data sets; give --part=NAME, one of mine, hub, out"),
        ("no", "has no 'no'; give --part=NAME"),
        ("hub", "lies elsewhere"),
        ("out", "is outside"),
    ):
        with pytest.raises(UserError, match=said):
            detect(tmp_path, part)


def test_meta_json_of_internvl(tmp_path):
    """Root and annotation are seen from its folder; a broken file says so instead of guessing."""
    draw(tmp_path)
    write_rows(
        tmp_path / "a.jsonl",
        [{"image": "0.png", "question": "Q", **{"chosen": "a", "rejected": "b"}}],
    )
    meta = {"one": {"root": "pics", "annotation": "a.jsonl", "repeat_time": 1, "length": 1}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    form, opened = detect(tmp_path / "meta.json")
    import_file(form, opened, tmp_path / "out", Settings(), LINES)
    assert next(read_items(tmp_path / "out/trees.jsonl")).question == "Q"
    (tmp_path / "meta.json").write_text('{"one": {"root": "", "annotation": "a.jsonl",}}')
    with pytest.raises(UserError, match="is not JSON"):
        detect(tmp_path / "meta.json")


def test_an_import_that_was_killed_is_started_again(tmp_path):
    """Between any two files that it writes; and into the folder of another import it never goes."""
    case = CASES["step_dpo"]()
    path = write_rows(tmp_path / case.file, case.rows)
    whole = [item for item in read(tmp_path, path)[0]]
    (tmp_path / "out/import.json").write_text(
        json.dumps({**json.loads((tmp_path / "out/import.json").read_text()), "counts": {}})
    )
    (tmp_path / "out/records.jsonl").unlink()
    assert read(tmp_path, path)[0] == whole and (tmp_path / "out/records.jsonl").is_file()
    other = write_rows(tmp_path / "b.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(UserError, match="holds another import"):
        read(tmp_path, other)
    assert list(read_items(tmp_path / "out/trees.jsonl")) == whole


def test_a_format_of_ones_own(tmp_path):
    """What is not known is refused with the names of the fields; no format is guessed."""
    path = write_rows(tmp_path / "a.jsonl", [{"frage": "Q", "gut": "a"}])
    with pytest.raises(UserError, match="no known format has rows of the fields frage, gut"):
        detect(path)
    assert Found().as_dict()["rows"] == 0
