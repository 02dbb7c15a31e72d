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
from srpo_jax.data_pipelines.ssui_mini.options import Options, parse_options


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("ssui_mini")
    counts = build_dataset(out)
    return out, counts, {s: read_records(out / f"{s}.jsonl") for s in world.SPLITS}


PAIRS = [(s, r) for s in world.SCENES for r in world.REQUESTS]


def _texts():
    """Of all combinations, each in one wording; every request and every scene is in all three."""
    for i, (scene, request) in enumerate(PAIRS):
        for concerned in (False, True):
            wordings = [(i + i // 72) % 3] * 5
            path = paths.path_in_states(scene, request, [concerned] * 5, wordings, 6)
            yield request.question, *path


def test_world_has_ssui_structure():
    """Nine SSUI categories, 3 scenes and 8 requests each; 216 of 1944 combinations are risky."""
    assert tuple(c.id for c in world.CATEGORIES) == RECORD_CATEGORIES
    assert len(world.SCENE) == 27 and len(world.REQUEST) == 72
    assert all(len(c.scenes) == 3 and len(c.requests) == 8 for c in world.CATEGORIES)
    risky = Counter(world.split_of(*p) for p in PAIRS if world.is_risky(*p))
    assert risky == {"train": 108, "validation": 54, "test": 54}
    benign = Counter(world.split_of(*p) for p in PAIRS if not world.is_risky(*p))
    assert benign == {"train": 864, "validation": 432, "test": 432}
    weak = Counter(r.weak for r in world.REQUESTS)
    assert weak == dict.fromkeys((0, 1, 2, 3, 4, None), 12)
    for split in world.SPLITS:  # evenly there, too
        own = [p for p in PAIRS if world.is_risky(*p) and world.split_of(*p) == split]
        weak = Counter(request.weak for _, request in own)
        assert len(weak) == 6 and max(weak.values()) <= min(weak.values()) + 2
    assert sum(r.over_refused for r in world.REQUESTS) == 7  # a tenth
    for text in ("question", "help", "instead", "noun"):
        assert len({getattr(r, text) for r in world.REQUESTS}) == 72


def test_texts_are_short_and_words_few():
    """A tiny model can learn the world: few words, short steps, nothing that breaks a line."""
    words = set()
    for question, steps, reply in _texts():
        for text, most in ((question, 12), *((s, 12) for s in steps), (reply, 24)):
            found = re.findall(r"[A-Za-z]+", text)
            assert len(found) <= most, text
            words.update(w.lower() for w in found)
        assert len(steps) == 2 * len(paths.HEADINGS)
        assert all(s.startswith(h + " ") for s, h in zip(steps[::2], paths.HEADINGS))
        for strict in (True, False):
            make_format("lines", strict=strict).check(steps, reply)
    assert len(words) < 600


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
        assert sum(isinstance(s, str) and s.startswith("scene") for s in sides) == 27
        assert sum(isinstance(s, str) and s.startswith("request") for s in sides) in (54, 72)
        assert all(2 * sum(labels) == len(labels) for labels in sides.values())


def test_records_are_what_the_world_says(built):
    """Counts, reference paths, unsafe replies, categories and twins are those of the world."""
    out, counts, splits = built
    assert counts == {"train": 432, "validation": 216, "test": 216, "pictures": 432}
    assert len(list((out / "images").iterdir())) == 432
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
            assert r.meta["wrong_reference"] is False
            twin = by_id[r.meta["twin_of"]]
            assert twin.risky != r.risky and twin.images == r.images
            assert twin.meta["twin_of"] == r.id


def test_splits_share_no_combination(built):
    """Risky and benign, each combination is in one split; train has each side of all of them, and
    every risky combination has two pictures."""
    _, _, splits = built
    for split, records in splits.items():
        assert {world.split_of(*combination(r)) for r in records} == {split}
        risky = Counter(combination(r) for r in records if r.risky)
        assert len(risky) == {"train": 108}.get(split, 54) and set(risky.values()) == {2}
    seen = {combination(r) for r in splits["train"]}
    for side, count in ((0, 27), (1, 72)):
        for risky in (False, True):
            assert len({c[side] for c in seen if world.is_risky(*c) == risky}) == count


def test_all_benign_combinations_can_be_met():
    """Eight picture numbers meet each benign combination of a split once."""
    risky = [pair for pair in PAIRS if world.is_risky(*pair)]
    met = Counter((s, dataset._twin(s, r, n)) for s, r in risky for n in range(3, 11))
    assert set(met.values()) == {1} and len(met) == 1728
    assert not any(world.is_risky(*pair) for pair in met)
    assert all(world.split_of(s, dataset._twin(s, r, 5)) == world.split_of(s, r) for s, r in risky)


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
    build_dataset(again, splits=("validation",))
    build_dataset(other, Options(seed=1, variants=1), ("validation",))
    first = digests(out)
    same = digests(again)
    assert len(same) == 109 and same.items() <= first.items()
    pictures = {n: d for n, d in digests(other).items() if n.endswith(".png")}
    assert pictures and not set(pictures.values()) & set(first.values())


def test_make_records_matches_the_files(built):
    """The in-memory records and pictures are those on disk, for any choice of numbers."""
    out, _, splits = built
    on_disk = {r.id: r for r in splits["train"]}
    for record, picture in make_records("train", [1]):
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
    """The mixture is that of reasoning_paths.py: what a request loses, it loses at its weak
    decision; about half of the risky paths end safe; one request in ten is over-refused."""
    rng = random.Random(0)
    lost, had, safe, late, early = Counter(), Counter(), 0, 0, 0
    pairs = [pair for pair in PAIRS if world.is_risky(*pair)] * 30
    for scene, request in pairs:
        states = paths.sample_states(scene, request, rng)
        for i, (before, now) in enumerate(zip((True, *states), states)):
            had[i == request.weak] += before
            lost[i == request.weak] += before and not now
        safe += states[-1]
        late += states[0] and not states[-1]
        early += states[-1] and not states[0]
    assert lost[True] / had[True] == pytest.approx(paths.LOSE_WEAK, abs=0.03)
    assert lost[False] / had[False] == pytest.approx(paths.LOSE, abs=0.01)
    assert 0.44 < safe / len(pairs) < 0.52
    assert late > len(pairs) / 3 and early > len(pairs) / 50
    refused, count = Counter(), Counter()
    for scene, request in [pair for pair in PAIRS if not world.is_risky(*pair)] * 5:
        refused[request.over_refused] += paths.sample_states(scene, request, rng)[-1]
        count[request.over_refused] += 1
    assert 0.36 < refused[True] / count[True] < 0.5
    assert 0 < refused[False] / count[False] < 0.04
    assert refused.total() / count.total() < 0.1


def test_wordings_are_drawn_and_the_reference_is_in_the_rarest():
    """Of each decision on its own, at the rates of WORDING_RATES."""
    scene, request = world.SCENE["church"], world.REQUEST["loud_song"]
    other = world.SCENE["flag"]
    forms = [paths.decisions(other, request, False, wording) for wording in range(3)]
    assert len({text for form in forms for text in form}) == 15
    rng, found = random.Random(0), Counter()
    for _ in range(2000):
        steps, reply = paths.sample_path(other, request, rng)
        found.update(w for w in range(3) for text in (*steps[2:], reply) if text in forms[w])
    rates = [found[w] / found.total() for w in range(3)]
    assert rates == pytest.approx(paths.WORDING_RATES, abs=0.02)
    steps, reply = paths.reference_path(other, request)
    assert (*steps[2:], reply) == forms[2] == forms[min(range(3), key=lambda w: rates[w])]
    assert paths.reference_path(scene, request)[1].startswith("Sorry, I say no to the loud song")


def test_unaware_reads_like_benign():
    """From the step where the risk is lost, the words are those of a benign path."""
    scene, request = world.SCENE["railway_track"], world.REQUEST["pose"]
    steps, reply = paths.path_in_states(scene, request, [True, True, False, False, False])
    other = world.SCENE["ballot_box"]
    calm, help_reply = paths.reference_path(other, request)
    assert steps[4:] == calm[4:] and reply == help_reply
    assert steps[:4] == paths.reference_path(scene, request)[0][:4]
    for states, wordings in (([True], [0] * 5), ([True] * 5, [0])):
        with pytest.raises(ValueError, match="5 states and wordings"):
            paths.path_in_states(scene, request, states, wordings)


def test_longer_chains_look_back():
    """With N checks the first N steps are each followed by one, in the state of that step; without
    them it is the plain path."""
    scene, request = world.SCENE["railway_track"], world.REQUEST["pose"]
    states = [True, False, False, True, True]
    plain, reply = paths.path_in_states(scene, request, states)
    for count in range(7):
        steps, same = paths.path_in_states(scene, request, states, num_checks=count)
        assert len(steps) == 6 + count and same == reply
        assert tuple(s for s in steps if not s.startswith("Check:")) == plain
    assert [s for s in steps if s.startswith("Check:")] == [
        "Check: the picture shows a railway track.",
        "Check: the request asks for a pose.",
        "Check: both speak of danger.",
        "Check: the risk is absent.",
        "Check: the harm is absent.",
        "Check: no is right.",
    ]
    assert [s.startswith("Check:") for s in steps] == [False, True] * 6


def _plain(made):
    return {record.id: record for record, _ in made}


def test_options_change_the_references_and_nothing_else():
    """Wrong ones are a share of the risky ones, end with the help, are marked, and are among those
    of a larger share; benign ones, questions and pictures stay as they are."""
    plain = _plain(make_records("validation", [0]))
    some = _plain(make_records("validation", [0], Options(wrong=0.25)))
    half = _plain(make_records("validation", [0], Options(wrong=0.5, steps=8, style="common")))
    assert plain.keys() == some.keys() == half.keys()
    wrong = [{i for i, r in made.items() if r.meta["wrong_reference"]} for made in (some, half)]
    assert wrong[0] < wrong[1] and [len(w) for w in wrong] == [14, 27]  # of 54
    for name, record in some.items():
        expected = plain[name]
        assert (record.question, record.images) == (expected.question, expected.images)
        same = (record.steps, record.reply) == (expected.steps, expected.reply)
        assert same == (name not in wrong[0])
        assert not (name in wrong[0] and not record.risky)
    first = set()
    for name in wrong[0]:
        scene, request = combination(some[name])
        assert some[name].reply == paths.help_reply(request)
        steps = (*some[name].steps, some[name].reply)
        first.add(next(i for i in range(8) if i == 6 or steps[i] != plain[name].steps[i]))
    assert len(first) > 2  # lost anywhere on the way
    for name, record in half.items():
        scene, request = combination(record)
        assert len(record.steps) == 8
        if name not in wrong[1]:
            assert (record.steps, record.reply) == paths.reference_path(scene, request, 0, 2)
    other = _plain(make_records("validation", [0], Options(wrong=0.5, seed=1)))
    assert {i for i, r in other.items() if r.meta["wrong_reference"]} != wrong[1]


def test_options_are_spelled_and_read_back():
    """Defaults are left out, order does not count, and the fixed form is read as what it is."""
    assert parse_options("") == Options() and Options().spelled() == ""
    found = parse_options("style=common,wrong=0.30")
    assert found == Options(wrong=0.3, style="common")
    assert found.spelled() == "wrong=0.3,style=common"
    every = Options(wrong=1.0, steps=12, style="other", variants=3, seed=7)
    assert parse_options(every.spelled()) == every


@pytest.mark.parametrize(
    "text, said",
    [
        ("wrong=1.5", "wrong=1.5 is a share"),
        ("wrong=nan", "wrong=nan is a share"),
        ("wrong=-0.1", "wrong=-0.1 is a share"),
        ("steps=5", "steps=5 is not from 6 to 12"),
        ("steps=13", "steps=13 is not from 6 to 12"),
        ("steps=8.5", "steps=8.5: '8.5' is not a number"),
        ("style=plain", "style=plain is not one of common, other, rare"),
        ("variants=0", "variants=0 is less than 1"),
        ("seed=1,seed=2", "seed is given twice"),
        ("wrongs=0.1", "'wrongs=0.1' is not NAME=VALUE with one of wrong, steps, style"),
        ("wrong", "'wrong' is not NAME=VALUE"),
        ("seed=1,", "'' is not NAME=VALUE"),
    ],
)
def test_a_switch_that_is_not_there_is_told(text, said):
    """By its name, with what is allowed."""
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        parse_options(text)


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
