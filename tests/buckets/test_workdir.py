"""srpo_jax/buckets/workdir.py: a workdir in a bucket promises what one on a disk does."""

from __future__ import annotations

import contextlib
import json
import pathlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.buckets import objects, workdir
from srpo_jax.buckets.fetch import fetch_folder
from srpo_jax.buckets.workdir import open_workdir
from srpo_jax.cli.main import main
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.explore import shard_leases
from srpo_jax.explore.shard_leases import ShardLeases
from srpo_jax.files import write_json, write_text, written_whole
from srpo_jax.keepers import look_again, remove, remove_folder
from srpo_jax.owners import Owner, Watch, identity, read_holder
from srpo_jax.places import clear_moving, is_moving, move_folder
from srpo_jax.runs import ledger
from srpo_jax.runs.appended import Appended
from srpo_jax.runs.metrics import cut_after
from srpo_jax.runs.workdir import next_round
from tests.support.bucket_server import Change, Lost, serving

URL = "gs://bucket-a/runs/one"


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """hosts(n): from now on this is host n, which has a cache of its own."""

    def host(number):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host-{number}"))

    host(0)
    return host


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if ".parts/" not in name}


def as_seen(hosts, number: int) -> dict[str, bytes]:
    """By a host that never was there."""
    hosts(number)
    with open_workdir(URL) as folder:
        return contents(folder)


def a_folder(above: pathlib.Path, text: str) -> pathlib.Path:
    """One that is not kept as long as it has this name."""
    source = above / ".made.partial"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a").write_text(text)
    (source / "config.json").write_text(text * 2)
    return source


def moved(folder: pathlib.Path, text: str) -> None:
    target = folder / "export"
    if target.exists():
        remove_folder(target)
    move_folder(a_folder(folder, text), target, last=("config.json",))


def appended(folder: pathlib.Path, text: str) -> None:
    file = Appended(folder / "events.jsonl")
    file.write(text.encode() + b"\n")
    file.close()


def cut(folder: pathlib.Path, text: str) -> None:
    path = folder / "events.jsonl"
    if path.exists():
        write_text(path, path.read_text()[: len(text)])


OPERATIONS = {
    "write": lambda folder, text: write_text(folder / "a" / f"{len(text)}.json", text),
    "write again": lambda folder, text: write_text(folder / "b.json", text),
    "remove": lambda folder, text: remove(folder / "b.json"),
    "append": appended,
    "cut": cut,
    "move": moved,
}


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.text("xyz\n", max_size=9))))
def test_another_host_finds_what_a_disk_would_have(tmp_path_factory, operations):
    """Whatever was written, written again, appended, cut, moved and removed, in whatever order."""
    place = tmp_path_factory.mktemp("places")
    disk = place / "disk"
    disk.mkdir()
    with pytest.MonkeyPatch.context() as patch, serving({}) as bucket:
        patch.setenv("XDG_CACHE_HOME", str(place / "one"))
        with open_workdir(URL) as folder:
            for name, text in [("write", "of a run"), *operations]:
                for each in (folder, disk):
                    OPERATIONS[name](each, text)
            assert contents(folder) == contents(disk)
        patch.setenv("XDG_CACHE_HOME", str(place / "two"))
        with open_workdir(URL) as folder:
            assert contents(folder) == contents(disk)
        assert not [name for name in bucket.all() if ".claims/" in name or ".partial" in name]


def test_answers_that_are_lost_change_nothing(hosts, tmp_path):
    """Every change is made, and the first answer to it never comes: the client asks again, and
    finds its own work there. That goes for claims and replies that were paid for, too.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    with serving({}) as bucket, pytest.MonkeyPatch.context() as patch:
        change, made = bucket.change, set()

        def lost(*asked):
            answer = change(*asked)
            if asked not in made:
                made.add(asked)
                raise Lost
            return answer

        patch.setattr(bucket, "change", lost)
        with open_workdir(URL) as folder:
            for name in ("write", "write again", "append", "cut", "append", "move", "remove"):
                for each in (folder, disk):
                    OPERATIONS[name](each, name[:2])
            with Owner(folder / "train.owner", "w", "trained into", "wait") as owner:
                owner.check()
            with ShardLeases(folder / "trees.claims", lease_seconds=60) as leases:
                assert leases.take(["x"]) == "x"
            cache = ReplyCache(folder / "replies")
            cache.put("ab" * 16, ChatReply(text="paid"))
            cache.flush()
        assert not [name for name in bucket.all() if "claims" in name]
    with serving(bucket.all()):
        found = as_seen(hosts, 1)
        parts = [name for name in found if name.startswith("replies/")]
        assert len(parts) == 2 and {n: d for n, d in found.items() if n not in parts} == contents(
            disk
        )


@pytest.mark.slow
def test_a_host_that_is_lost_leaves_what_it_had_said_so_far(hosts):
    """Cut off before any one change, in an order that other hosts rely on: of a folder that is
    moved the last file comes last and the mark is there until then, of a pair the manifest comes
    last, and what describes another file goes first.
    """

    def work(folder):
        write_text(folder / "shard", "one")
        write_json(folder / "shard.manifest.json", {"of": "one"})
        moved(folder, "first")
        remove(folder / "shard.manifest.json")
        write_text(folder / "shard", "two")
        write_json(folder / "shard.manifest.json", {"of": "two"})
        moved(folder, "second")

    with serving({}) as bucket:
        with open_workdir(URL) as folder:
            before = len(bucket.changes)
            work(folder)
            count = len(bucket.changes) - before
    seen = set()
    for last in range(count + 1):
        hosts(0)
        with serving({}) as bucket, pytest.MonkeyPatch.context() as patch:
            patch.setattr(objects, "RETRIES", 0)
            left = [last]

            def refuse(change: Change, bucket=bucket, left=left):
                left[0] -= 1
                if left[0] < 0:
                    bucket.refuse = 503
                    raise Lost

            with pytest.raises(RunFailure) if last < count else contextlib.nullcontext():
                with open_workdir(URL) as folder:
                    bucket.before = refuse
                    work(folder)
            bucket.refuse, bucket.before = 0, lambda _: None
            found = as_seen(hosts, 1 + last)
            manifest = json.loads(found.get("shard.manifest.json", b'{"of": null}'))["of"]
            assert manifest in (None, found.get("shard", b"").decode())
            texts = {"first": b"first" * 2, "second": b"second" * 2}
            if "export/config.json" in found and ".export.moving" not in found:
                inner = found["export/inner/a"].decode()
                assert found["export/config.json"] == texts[inner]
            hosts(1 + last)
            with open_workdir(URL) as folder:  # as the next start does
                halfway = is_moving(folder / "export")
                clear_moving(folder)
                assert not halfway or not (folder / "export").exists()
            seen.add((manifest, halfway))
    assert seen >= {(None, False), ("one", True), ("two", True), ("two", False)}


def test_a_ledger_is_kept_in_parts(hosts, monkeypatch):
    """No part is ever written again; a line is kept when the file is closed; lines that are cut
    off are gone for all; the parts of one session are put together when they are many.
    """
    monkeypatch.setattr(workdir, "MOST_PARTS", 5)
    line = {"step": 1}
    with serving({}) as bucket:
        written: list[str] = []
        bucket.before = lambda change: written.append(f"{change.kind} {change.name}")
        for session in range(4):
            hosts(session)
            with open_workdir(URL) as folder:
                path = folder / "metrics.jsonl"
                cut_after(path, 3 * session + 2)
                file = Appended(path, clock=lambda: 0.0)
                for step in range(3):
                    line = {"step": 3 * session + step}
                    file.write(json.dumps(line).encode() + b"\n")
                    file.close()
                rows = [json.loads(text)["step"] for text in path.read_text().splitlines()]
                assert rows == list(range(3 * session + 3))
        hosts(9)
        with open_workdir(URL) as folder:
            cut_after(folder / "metrics.jsonl", 6)
        assert as_seen(hosts, 10)["metrics.jsonl"].count(b"\n") == 7
        parts = [each for each in written if "put" in each and "metrics.jsonl.parts/" in each]
        assert len(parts) == len(set(parts)) > 12
        there = [name for name in bucket.all() if ".parts/" in name]
        assert len({name.split("/")[-1][:6] for name in there}) == 1, "sessions before are gone"


def test_two_write_into_one_ledger(hosts, monkeypatch):
    """As two judges do: no line is lost, also when the file is there already, or has many parts."""
    monkeypatch.setattr(workdir, "MOST_PARTS", 5)
    lines = []
    with serving({}):
        for begin in range(2):
            with open_workdir(URL) as one, open_workdir(URL) as two:
                assert one != two
                for turn in range(3):
                    for name, folder in (("one", one), ("two", two)):
                        lines.append(f"{name} {begin} {turn}")
                        appended(folder, lines[-1])
        found = as_seen(hosts, 1)["events.jsonl"].decode().splitlines()
        assert sorted(found) == sorted(lines)


def test_of_sixteen_that_claim_one_wins(hosts):
    """Leases of shards, and owners of folders; afterwards nothing is left of them."""
    with serving({}) as bucket, open_workdir(URL) as folder:
        start, over, won, told = threading.Barrier(16), threading.Barrier(16), [], []

        def claim():
            with ShardLeases(folder / "trees.claims", lease_seconds=60) as leases:
                start.wait()
                name = leases.take(["x"])
                won.append(name)
                over.wait()
            try:
                with Owner(folder / "train.owner", "w", "trained into", "wait"):
                    told.append("")
                    over.wait()
            except UserError as error:
                told.append(str(error))
                over.wait()

        threads = [threading.Thread(target=claim) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won.count("x") == 1 and won.count(None) == 15
        assert told.count("") == 1
        assert sum("is being trained into by process" in text for text in told) == 15
        assert not [name for name in bucket.all() if "claims" in name or "owner" in name]


def test_a_round_has_one_owner(hosts):
    """Whether its own address was opened, or that of the run that it belongs to."""
    with serving({}), open_workdir(URL) as run, open_workdir(f"{URL}/round-1") as own:
        with Owner(run / "round-1" / "train.owner", "w", "trained into", "wait"):
            with pytest.raises(UserError, match="is being trained into by process"):
                with Owner(own / "train.owner", "w", "trained into", "wait"):
                    pass


def test_a_dead_workers_claim_is_taken_over(hosts, monkeypatch):
    """By the clock of who looks on alone: when its generation stood still for the whole lease. One
    that is renewed is not, whatever the clock says.
    """
    now = [0.0]
    monkeypatch.setattr(shard_leases, "Watch", lambda: Watch(lambda: now[0]))
    with serving({}) as bucket, open_workdir(URL) as folder:
        claims = folder / "trees.claims"
        with ShardLeases(claims, lease_seconds=30) as mine:
            assert mine.take(["x"]) == "x"
            name = "bucket-a/runs/one/trees.claims/.claims/x.claim"
            other = {**identity(), "host": "pod-7", "pid": 9}
            bucket.put(name, json.dumps(other).encode())
            with ShardLeases(claims, lease_seconds=30) as second:
                for later, taken in ((0, None), (29, None), (29, None), (29, None), (31, "x")):
                    now[0] += later
                    if later == 29:
                        bucket.put(name, json.dumps(other).encode())  # it renews it
                    assert second.take(["x"]) == taken
                assert read_holder(claims / "x.claim")["host"] != "pod-7"
                mine.release("x")  # which it holds no more
                assert read_holder(claims / "x.claim"), "another one's is not given back"


def test_what_others_make_is_seen(hosts):
    """When somebody looks: a shard of another worker, manifest and all; and what is gone."""
    with serving({}), open_workdir(URL) as one, open_workdir(URL) as two:
        (one / "trees").mkdir()
        write_text(two / "trees" / "shard-0", "0")
        write_text(two / "trees" / "shard-0.manifest.json", "m")
        write_text(two / "elsewhere.json", "x")
        look_again(one / "trees")
        assert contents(one) == {"trees/shard-0": b"0", "trees/shard-0.manifest.json": b"m"}
        remove_folder(two / "trees")
        look_again(one / "trees")
        assert contents(one) == {}


def test_what_a_killed_process_left_on_this_host_is_no_part_of_the_run(hosts):
    """A file that never came to the bucket, and one that the bucket has another generation of."""
    with serving({}) as bucket:
        with open_workdir(URL) as folder:
            write_text(folder / "kept", "1")
        (folder / "never kept").write_text("x")
        (folder / "kept").write_text("half")
        with open_workdir(URL) as again:
            assert again == folder and contents(folder) == {"kept": b"1"}
            (folder / "stacks").mkdir()
            (folder / "stacks" / "0.txt").write_text("written past our own files")
        assert bucket.get("bucket-a/runs/one/stacks/0.txt")
        with open_workdir(URL) as again:
            (again / "stacks" / "0.txt").write_text("again")
        assert as_seen(hosts, 1)["stacks/0.txt"] == b"again"


def test_weights_are_fetched_for_who_loads_them(hosts):
    """They are large; and they go with the folder of the export, whoever fetched them."""
    with serving({}) as bucket:
        with open_workdir(URL) as folder:
            write_text(folder / "export" / "model.safetensors", "large")
            write_text(folder / "export" / "config.json", "{}")
        bucket.read.clear()
        hosts(1)
        with open_workdir(URL, weights=False) as folder:
            assert list(contents(folder)) == ["export/config.json"]
            assert not [name for name in bucket.read if name.endswith("tensors")]
            assert fetch_folder(f"{URL}/export", weights=False) == folder / "export"
            assert list(contents(folder)) == ["export/config.json"]
            fetch_folder(f"{URL}/export")
            assert (folder / "export" / "model.safetensors").read_text() == "large"
            remove_folder(folder / "export")
        assert not [name for name in bucket.all() if "export" in name]
        hosts(2)
        with open_workdir(f"{URL}/elsewhere"), pytest.raises(UserError, match="no object below"):
            fetch_folder(f"{URL}/export")  # not of a workdir that is closed


def test_a_full_quota_is_one_line(hosts, capsys):
    """Nothing is half-written, and what was there stays; exit code 1, as for a full disk."""
    with serving({}) as bucket:
        with open_workdir(URL) as folder:
            write_text(folder / "metrics.jsonl", '{"step": 1, "loss": 1.0}\n')
            used = sum(map(len, bucket.all().values()))
            bucket.quota = used + 100
            with pytest.raises(RunFailure, match="one/large cannot be written: .*quota") as told:
                with written_whole(folder / "large") as fresh:
                    fresh.write_bytes(b"x" * 200)
            assert one_line(told.value) == str(told.value)
            assert list(contents(folder)) == ["metrics.jsonl"]
        assert main(["report", URL]) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("srpo report: error: gs://bucket-a/runs/one/report.html cannot be ")


def test_a_bucket_that_refuses_is_told_before_anything_is_done(hosts, monkeypatch, capsys):
    """Forbidden: exit code 2. One that ignores preconditions: named, exit code 1."""
    monkeypatch.setattr(objects, "RETRIES", 0)
    with serving({}) as bucket:
        bucket.refuse = 403
        assert main(["report", URL]) == 2
        assert "cannot be" in capsys.readouterr().err.strip().splitlines()[-1]
        bucket.refuse = 0
        assert main(["report", URL]) == 2
        assert "error: gs://bucket-a/runs/one holds nothing of a run" in capsys.readouterr().err
        change = bucket.change
        monkeypatch.setattr(bucket, "change", lambda name, data, only_if: change(name, data, None))
        assert main(["report", URL]) == 1
        said = capsys.readouterr().err
        assert "of two that make an object only the first one does" in said
        assert "docs/places.md" in said


def test_a_torn_line_is_dropped_for_all(hosts):
    """As the ledger does at its start."""
    with serving({}):
        with open_workdir(URL) as folder:
            appended(folder, '{"t": 1, "event": "start"}')
            file = Appended(folder / "events.jsonl")
            file.write(b'{"t": 2, "ev')
            file.close()
        hosts(1)
        with open_workdir(URL) as folder, ledger.Ledger(folder / "events.jsonl") as book:
            book.open(0)
        text = as_seen(hosts, 2)["events.jsonl"]
        assert all(json.loads(line) for line in text.splitlines()) and text.count(b"\n") == 3


def test_a_list_that_is_refused_removes_nothing(hosts):
    """What is not listed is asked for before it is taken for gone; where that is refused, too, it
    is said, and nowhere is nothing taken for a run.
    """
    with serving({}) as bucket:
        with open_workdir(URL) as folder:
            write_text(folder / "trees" / "shard-0", "0")
            write_text(folder / "trees" / "shard-1", "1")
            bucket.unlisted = set(range(bucket.lists + 1, bucket.lists + 9))
            bucket.remove("bucket-a/runs/one/trees/shard-1")
            look_again(folder / "trees")
            assert contents(folder) == {"trees/shard-0": b"0"}
            bucket.refuse = 403
            with pytest.raises(UserError, match="trees/shard-0 cannot be read: PERMISSION_DENIED"):
                look_again(folder / "trees")
            assert contents(folder) == {"trees/shard-0": b"0"}
        hosts(1)
        with pytest.raises(UserError, match="runs/one: there is no object below it, or it may not"):
            with open_workdir(URL, write=False):
                pass


def test_a_report_of_a_round_sees_the_one_after(hosts, capsys, monkeypatch):
    """And what only reads needs no bucket that may be written."""
    seen = []

    def report(workdir, out):
        seen.append((next_round(pathlib.Path(workdir)), out))

    monkeypatch.setattr("srpo_jax.runs.report.page.write_report", report)
    with serving({}) as bucket:
        with open_workdir(URL) as run:
            for name in ("rounds.json", "round-1/config.json", "round-2/config.json"):
                write_json(run / name, {})
        hosts(1)
        monkeypatch.setattr(bucket, "change", lambda *_: (403, 0))
        assert main(["report", f"{URL}/round-1", "--out=x.html"]) == 0, capsys.readouterr().err
        assert main(["report", f"{URL}/round-2/", "--out=x.html"]) == 0
        (after, _), (last, _) = seen
        assert after.name == "round-2" and last is None
        assert main(["checkpoints", "check", f"{URL}/round-1"]) == 1  # there are none
        assert (
            "gs://bucket-a/runs/one/round-1/checkpoints: no checkpoints" in capsys.readouterr().out
        )
        assert main(["report", f"{URL}/round-1"]) != 0
