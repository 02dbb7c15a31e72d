"""srpo_jax/buckets/fetch.py: what is read from gs://, against a server on the loopback address."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from srpo_jax.buckets import copies, fetch, objects
from srpo_jax.buckets.fetch import fetch_folder, fetch_records, mirror
from srpo_jax.buckets.objects import address_in
from srpo_jax.command.parse import parse
from srpo_jax.command.table import VERBS
from srpo_jax.config.check import flatten, validate
from srpo_jax.config.convert import stored_config
from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.places import check_place
from tests.support import ROOT
from tests.support.bucket_server import serving


@pytest.fixture(autouse=True)
def another_start(tmp_path, monkeypatch):
    """A cache of this test's own, and functions that have seen nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def start():
        fetch.forget()

    start()
    yield start
    start()


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


LARGE = bytes(range(256)) * 10
MODEL = {
    "bucket-a/m/config.json": b"{}",
    "bucket-a/m/model.safetensors": LARGE,
    "bucket-a/m/empty.safetensors": b"",
    "bucket-a/m/sub/template.txt": b"x",
    "bucket-a/m/": b"",  # what stands for a folder in other tools
    "bucket-a/m/pytorch_model.bin": b"never read",
    "bucket-a/m2/config.json": b"of another one",
}
WANTED = {"config.json": b"{}", "model.safetensors": LARGE, "empty.safetensors": b""}


@pytest.mark.parametrize("piece", [2**26, 1000, 2560, 1280])
def test_a_folder_is_fetched_once_and_every_start_asks_what_is_new(
    another_start, monkeypatch, piece
):
    """Whatever pieces large files are read in. What the bucket has no more goes."""
    monkeypatch.setattr(copies, "PIECE", piece)
    with serving(MODEL) as bucket:
        folder = fetch_folder("gs://bucket-a/m")
        assert contents(folder) == {**WANTED, "sub/template.txt": b"x"}
        assert fetch_folder("gs://bucket-a/m") == folder
        bucket.read.clear()
        another_start()
        fetch_folder("gs://bucket-a/m/")
        assert not bucket.read, "nothing has changed"
        bucket.put("bucket-a/m/config.json", b"[]")
        bucket.remove("bucket-a/m/sub/template.txt")
        (folder / "model.safetensors").write_bytes(b"cut")
        (folder / "mine").touch()
        another_start()
        assert contents(fetch_folder("gs://bucket-a/m")) == {
            **WANTED,
            "config.json": b"[]",
            "mine": b"",
        }
        assert set(bucket.read) == {"bucket-a/m/config.json", "bucket-a/m/model.safetensors"}


def test_a_plan_reads_no_weights(another_start):
    """Of a model it needs the small files; they stay when the rest comes."""
    with serving(MODEL) as bucket:
        fetch_folder("gs://bucket-a/m", weights=False)
        assert not [name for name in bucket.read if name.endswith("tensors")]
        assert len(contents(fetch_folder("gs://bucket-a/m"))) == 4


def test_more_files_than_one_listing_gives(another_start):
    """A thousand of the real one, a hundred here."""
    names = {f"bucket-a/many/{i}": str(i).encode() for i in range(250)}
    with serving(names):
        assert len(contents(fetch_folder("gs://bucket-a/many"))) == 250


@pytest.mark.parametrize("refused", [1, 2, 3, 4])
def test_a_list_of_which_a_page_is_refused_is_not_taken_for_whole(another_start, refused):
    """tensorstore gives the pages before without a word: shards of trees would be missing."""
    names = {f"bucket-a/many/{i}": b"x" for i in range(250)}
    with serving(names) as bucket:
        bucket.unlisted = {refused}
        assert len(contents(fetch_folder("gs://bucket-a/many"))) == 250


def test_several_processes_fetch_once(another_start):
    """Those of one host wait for the first one, and find what it fetched."""
    with serving(MODEL) as bucket:
        work = (
            "import sys; from srpo_jax.buckets.fetch import fetch_folder; "
            "print(fetch_folder(sys.argv[1]))"
        )
        command = [sys.executable, "-c", work, "gs://bucket-a/m"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        children = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for _ in range(3)]
        said = [child.communicate(timeout=120)[1] for child in children]
        assert [child.returncode for child in children] == [0, 0, 0], said
        assert bucket.read.count("bucket-a/m/config.json") == 1
        assert any(b"fetching gs://bucket-a/m into " in text for text in said)


def test_an_object_that_changes_while_it_is_read_is_read_again(another_start, monkeypatch):
    """Half of one generation and half of another are no file. One that never rests is told."""
    monkeypatch.setattr(copies, "PIECE", 1000)
    with serving(MODEL) as bucket:
        real, left = bucket.get, [3]

        def get(name):
            if name.endswith("model.safetensors") and left[0]:
                left[0] -= 1
                bucket.put(name, LARGE[::-1] + bytes(left[0] % 9))
            return real(name)

        monkeypatch.setattr(bucket, "get", get)
        assert contents(fetch_folder("gs://bucket-a/m"))["model.safetensors"] == LARGE[::-1]
        another_start()
        left[0] = 10**9
        with pytest.raises(RunFailure, match="m/model.safetensors was written again while"):
            fetch_folder("gs://bucket-a/m")
        assert contents(mirror("gs://bucket-a/m"))["model.safetensors"] == LARGE[::-1]


def test_what_cannot_be_read_is_one_line(another_start, monkeypatch):
    """Nothing there, forbidden, an address that is none, a name that leads out of the cache."""
    monkeypatch.setattr(objects, "RETRIES", 1)
    with serving({**MODEL, "bucket-a/evil/../../x": b"x", "bucket-a/r.jsonl": b"{}"}) as bucket:
        for url, why in (
            ("gs://bucket-a/nothing", "there is no object below it"),
            ("gs://bucket-a/evil", "no file can have this name"),
            ("gs://bucket-a", "write gs://BUCKET/PATH"),
            ("gs://bucket-a/../x", "write gs://BUCKET/PATH"),
            ("gs://BUCKET/x", "write gs://BUCKET/PATH"),
        ):
            with pytest.raises(UserError, match=why) as told:
                fetch_folder(url)
            assert one_line(told.value) == str(told.value)
        with pytest.raises(UserError, match="there is no such object"):
            fetch_records("gs://bucket-a/no.jsonl")
        for status, kind in ((403, UserError), (401, UserError), (503, RunFailure)):
            bucket.refuse = status
            with pytest.raises(kind, match=r"gs://bucket-a/r.jsonl cannot be read: [A-Z]") as told:
                fetch_records("gs://bucket-a/r.jsonl")
            assert one_line(told.value) == str(told.value)
    assert not contents(mirror("gs://bucket-a/x").parent)


def test_records_come_with_their_pictures(another_start):
    """Those that they name, by whatever way; a line that is none is told by who reads records."""
    row = {"id": "a", "images": ["p/1.png", "./p/../2.png"], "question": "q"}
    wicked = {"id": "b", "images": ["../../up.png", 3, "/abs.png", "none.png"], "question": "q"}
    text = json.dumps({**row, "reference": {"steps": ["s"], "reply": "r"}}) + "\n"
    objects = {
        "bucket-a/d/train.jsonl": text.encode(),
        "bucket-a/d/bad.jsonl": (json.dumps(wicked) + "\n{not json\n[]\n").encode(),
        "bucket-a/d/p/1.png": b"one",
        "bucket-a/d/2.png": b"two",
        "bucket-a/d/other.png": b"",
        "bucket-a/d/import.json": b"{}",
        "bucket-a/up.png": b"",
    }
    with serving(objects):
        path = records_path("gs://bucket-a/d/train.jsonl", "w", field="data.train_records")
        names = {"train.jsonl", "p/1.png", "2.png", "import.json"}
        assert contents(path.parent).keys() == names
        [record] = read_records(path)
        assert [file.read_bytes() for file in record.image_paths()] == [b"one", b"two"]
        bad = records_path("gs://bucket-a/d/bad.jsonl", "w", field="data.train_records")
        with pytest.raises(UserError, match="bad.jsonl"):
            read_records(bad)
        assert contents(path.parent).keys() == names | {"bad.jsonl"}


def test_every_setting_takes_a_bucket_or_says_that_it_does_not():
    """No setting takes gs:// for the name of a folder: it reads it, or refuses it by name and says
    what reads it. What a server knows, or a text with white space, is no place.
    """
    config = {**flatten(Config().to_dict()), "model.path": "m", "arbiter.kind": "rules"}
    config |= {"data.train_records": "a", "data.test_records": "b", "eval.every": 1}
    reads = set()
    for name, field in FIELDS.items():
        if field.rule.kind is not str or field.rule.words or field.rule.names or field.rule.shape:
            continue
        for value in ("gs://bucket-a/x", "s3://bucket-a/x", "a.yaml,gs://bucket-a/x", "N=gs://b/x"):
            try:
                validate(stored_config({**config, name: value}))
            except UserError as error:
                assert f"config.{name} is {value!r}" in str(error) and "model.path" in str(error)
                assert "docs/places.md" in str(error) and one_line(error) == str(error)
            else:
                reads.add((name, value.partition(":")[0]))
        if name != "eval.benchmark_data":  # which needs eval.benchmarks
            validate(stored_config({**config, name: "see http://a.b/c, or gs://d/e"}))
    servers = {
        (name, scheme) for name, scheme in reads if name in ("judge.model", "judge.base_url")
    }
    data = [f"data.{field.name}" for field in dataclasses.fields(Config().data)]
    read = {name for name in [*data, "model.path"] if name != "data.max_pixels"}
    assert reads - servers == {(name, "gs") for name in read} and len(servers) == 8


def test_every_option_opens_a_workdir_or_refuses_an_address():
    """None takes gs:// for the name of a folder; other schemes are refused by all."""
    texts = {"base_url", "served_model", "question", "source", "license"}

    def walk(verbs, above=""):
        for name, verb in verbs.items():
            yield from walk(verb.verbs, f"{above}{name} ")
            if not verb.passed_on and (verb.alone or not verb.verbs):
                yield f"{above}{name}", verb

    tried, opened = 0, set()
    for name, verb in walk(VERBS):
        options = [o for o, (default, _) in verb.options.items() if isinstance(default, str)]
        given = ["--config=c.py"] * bool(verb.config) + ["--workdir=w"] * bool(verb.workdir)
        for option in [*options, *(["workdir"] * bool(verb.workdir))]:
            args = [each for each in given if not each.startswith(f"--{option}=")]
            args += ["word"] * bool(verb.several)
            first, *words = name.split()
            if option in texts:
                parse(first, [*words, *args, f"--{option}=gs://bucket-a/x"])
                continue
            runs = option == "workdir" or option in verb.runs
            for url in ("s3://bucket-a/x", *(["gs://bucket-a/x"] * (not runs))):
                with pytest.raises(UserError, match=rf"--{option}={url}: .*://.*places.md"):
                    parse(first, [*words, *args, f"--{option}={url}"])
                tried += 1
            if runs:
                parse(first, [*words, *args, f"--{option}=gs://bucket-a/x"])
                opened.add(f"{name} {option}")
                with pytest.raises(UserError, match="write gs://BUCKET/PATH"):
                    parse(first, [*words, *args, f"--{option}=gs://bucket-a/../x"])
    assert tried > 60 and {"train workdir", "explore from", "ask model"} <= opened
    assert parse("table", ["gs://bucket-a/x", "w"]).arguments == ("gs://bucket-a/x", "w")
    with pytest.raises(UserError, match="s3://bucket-a/x is no file or folder"):
        parse("table", ["s3://bucket-a/x"])


def test_functions_write_to_no_address(tmp_path, monkeypatch):
    """Called without the command they would make a folder `gs:` where they stand."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs:/bucket-a/run is the address of no folder"):
        check_place(pathlib.Path("gs://bucket-a/run"))
    assert not os.listdir(tmp_path)


def test_what_is_an_address():
    """Of a place; not what only looks like one."""
    for text in ("gs://a/b", "s3://a", "x,hdfs://a/b", "N=gs://a/b,M=c", "file:///a"):
        assert address_in(text), text
    for text in ("a/b", "ssui_mini:train", "module:Class", "C:/a", "see gs://a/b", "", "a:b/c"):
        assert not address_in(text), text
