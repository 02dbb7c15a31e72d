"""SSUI-mini: no side gives the label away, splits are disjoint, everything is deterministic."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.records import CATEGORIES as RECORD_CATEGORIES
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.ssui_mini import dataset, world
from srpo_jax.data_pipelines.ssui_mini import reasoning_paths as paths
from srpo_jax.data_pipelines.ssui_mini.canvas import SIZES
from srpo_jax.data_pipelines.ssui_mini.dataset import build_dataset, combination, make_records
from srpo_jax.data_pipelines.ssui_mini.draw import draw_scene


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("ssui_mini")
    counts = build_dataset(out)
    return out, counts, {s: read_records(out / f"{s}.jsonl") for s in ("train", "test")}


def _texts():
    for scene in world.SCENES:
        for request in world.REQUESTS:
            for concerned in (False, True):
                steps, reply = paths.path_in_states(scene, request, [concerned] * 5)
                yield request.question, steps, reply


def test_world_has_ssui_structure():
    """Nine SSUI categories, 3 scenes and 3 requests each; 81 of 729 combinations are risky."""
    assert tuple(c.id for c in world.CATEGORIES) == RECORD_CATEGORIES
    assert len(world.SCENE) == len(world.REQUEST) == 27
    pairs = [(s, r) for s in world.SCENES for r in world.REQUESTS]
    assert sum(world.is_risky(*p) for p in pairs) == 81
    assert sum(world.is_risky(*p) and world.is_held_out(*p) for p in pairs) == 27
    for c in world.CATEGORIES:
        assert {r.careful for r in c.requests} == {True, False}
    assert sum(r.careful for r in world.REQUESTS) == 14
    assert len({r.question for r in world.REQUESTS}) == len({r.help for r in world.REQUESTS}) == 27
    assert len({r.instead for r in world.REQUESTS}) == 27


def test_texts_are_short_and_words_few():
    """A tiny model can learn the world: few words, short steps, nothing that breaks a line."""
    words = set()
    for question, steps, reply in _texts():
        for text, most in ((question, 12), *((s, 10) for s in steps), (reply, 20)):
            found = re.findall(r"[A-Za-z]+", text)
            assert len(found) <= most, text
            words.update(w.lower() for w in found)
        assert len(steps) == len(paths.HEADINGS)
        assert all(s.startswith(h + " ") for s, h in zip(steps, paths.HEADINGS))
        for strict in (True, False):
            make_format("lines", strict=strict).check(steps, reply)
    assert len(words) < 350


def test_label_not_readable_from_one_side(built):
    """P(risky | x) is exactly 1/2 for x the picture, its size, the scene, the request."""
    out, _, splits = built
    for records in splits.values():
        sides = defaultdict(list)
        for r in records:
            for side in (
                r.images[0],
                "scene " + r.meta["scene"],
                "request " + r.meta["request"],
                "question " + r.question,
                Image.open(out / r.images[0]).size,
            ):
                sides[side].append(r.risky)
        assert sum(isinstance(s, str) and s.startswith(("scene", "request")) for s in sides) == 54
        assert all(2 * sum(labels) == len(labels) for labels in sides.values())


def test_records_are_what_the_world_says(built):
    """Counts, reference paths, unsafe replies, categories and twins are those of the world."""
    out, counts, splits = built
    assert counts == {"train": 432, "test": 108, "pictures": 270}
    assert len(list((out / "images").iterdir())) == 270
    for split, records in splits.items():
        assert len(records) == counts[split]
        by_id = {r.id: r for r in records}
        for r in records:
            scene, request = combination(r)
            assert r.risky == world.is_risky(scene, request)
            assert r.question == request.question
            assert (r.steps, r.reply) == paths.reference_path(scene, request)
            assert r.category == (scene.category if r.risky else None)
            assert r.unsafe_reply == (paths.help_reply(request) if r.risky else None)
            twin = by_id[r.meta["twin_of"]]
            assert twin.risky != r.risky and twin.images == r.images
            assert twin.meta["twin_of"] == r.id


def test_splits_share_no_combination(built):
    """Test combinations, risky and benign, never occur in train; each side of them does."""
    _, _, splits = built
    seen = {s: {combination(r) for r in records} for s, records in splits.items()}
    assert not seen["train"] & seen["test"]
    assert sum(world.is_risky(*c) for c in seen["test"]) == 27
    assert sum(world.is_risky(*c) for c in seen["train"]) == 54
    for side in (0, 1):
        for risky in (False, True):
            assert len({c[side] for c in seen["train"] if world.is_risky(*c) == risky}) == 27


def test_all_benign_combinations_can_be_met():
    """With enough picture numbers every benign combination of a split occurs, none of the other."""
    for split, numbers, expected in (("train", 16, 432), ("test", 8, 216)):
        met = {(s, dataset._requests(split, s, n)[1]) for s in world.SCENES for n in range(numbers)}
        assert len(met) == expected
        assert all(world.is_held_out(*c) == (split == "test") for c in met)


def test_same_arguments_same_bytes(built, tmp_path):
    """build_dataset is deterministic byte for byte; another seed gives other pictures."""
    out, _, _ = built

    def digests(folder):
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }

    again, other = tmp_path / "a", tmp_path / "b"
    build_dataset(again)
    build_dataset(other, seed=1, train_variants=1, test_variants=1)
    first = digests(out)
    assert digests(again) == first
    pictures = {n: d for n, d in digests(other).items() if n.endswith(".png")}
    assert pictures and not set(pictures.values()) & set(first.values())


def test_make_records_matches_the_files(built):
    """The in-memory records and pictures are those on disk, for any choice of numbers."""
    out, _, splits = built
    on_disk = {r.id: r for r in splits["train"]}
    for record, picture in make_records("train", [3]):
        saved = on_disk[record.id]
        assert (record.steps, record.question, record.meta) == (
            saved.steps,
            saved.question,
            saved.meta,
        )
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(out / saved.images[0])))
    with pytest.raises(ValueError, match="split"):
        next(make_records("dev", [0]))


def test_mixture_rates():
    """The mixture is that of reasoning_paths.py: half unsafe, late failures and corrections too."""
    rng = random.Random(0)
    notice, final, n = Counter(), Counter(), 40
    pairs = [(s, r) for s in world.SCENES for r in world.REQUESTS if world.is_risky(s, r)]
    total = Counter(r.careful for _, r in pairs)
    late = early = 0
    for scene, request in pairs * n:
        states = paths.sample_states(scene, request, rng)
        notice[request.careful] += states[0]
        final[request.careful] += states[-1]
        late += states[0] and not states[-1]
        early += states[-1] and not states[0]
    assert notice[True] / (n * total[True]) == pytest.approx(paths.NOTICE_CAREFUL, abs=0.04)
    assert notice[False] / (n * total[False]) == pytest.approx(paths.NOTICE_OTHER, abs=0.04)
    assert 0.4 < sum(final.values()) / (n * 81) < 0.55
    assert late > n and early > n
    benign = [(s, r) for s in world.SCENES for r in world.REQUESTS if not world.is_risky(s, r)]
    refused = sum(paths.sample_states(s, r, rng)[-1] for s, r in benign * 5)
    assert 0.03 < refused / (5 * len(benign)) < 0.11


def test_unaware_reads_like_benign():
    """From the step where the risk is lost, the words are those of a benign path."""
    scene, request = world.SCENE["railway_track"], world.REQUEST["pose"]
    steps, reply = paths.path_in_states(scene, request, [True, True, False, False, False])
    other = world.SCENE["ballot_box"]
    calm, help_reply = paths.reference_path(other, request)
    assert steps[4:] == calm[4:] and reply == help_reply
    assert steps[:4] == paths.reference_path(scene, request)[0][:4]
    with pytest.raises(ValueError, match="5 states"):
        paths.path_in_states(scene, request, [True])


def test_sample_path_takes_either_generator():
    """random.Random and numpy's Generator both drive the mixture, reproducibly."""
    scene, request = world.SCENE["church"], world.REQUEST["loud_song"]
    for make in (random.Random, np.random.default_rng):
        one, two = (
            [paths.sample_path(scene, request, rng) for _ in range(40)]
            for rng in (make(4), make(4))
        )
        assert one == two and len(set(one)) > 1


def _features(picture: Image.Image) -> np.ndarray:
    small = np.asarray(picture.resize((14, 14), Image.Resampling.BOX), np.float32) / 255
    return np.stack([small, small[:, ::-1]]).reshape(2, -1)  # as it is, and mirrored


def test_scenes_can_be_told_apart():
    """Nearest centroid on 14 x 14 pixels tells the 27 scenes apart, across all variations."""
    ids = [s.id for s in world.SCENES]
    centroids = np.stack(
        [
            np.mean([_features(draw_scene(i, f"fit/{n}")) for n in range(12)], axis=(0, 1))
            for i in ids
        ]
    )
    right = 0
    for k, i in enumerate(ids):
        for n in range(6):
            own = _features(draw_scene(i, f"try/{n}"))
            right += np.square(own.mean(0) - centroids).sum(-1).argmin() == k
    assert right / (6 * len(ids)) > 0.9


def test_pictures_vary_and_repeat():
    """Equal seeds give equal pixels; other seeds give other pictures, in all three sizes."""
    for scene in ("flag", "shop_shelf"):
        many = [draw_scene(scene, str(n)) for n in range(16)]
        assert len({p.tobytes() for p in many}) == 16
        assert {p.size for p in many} == set(SIZES)
        assert all(p.mode == "RGB" for p in many)
        assert many[5].tobytes() == draw_scene(scene, "5").tobytes()
