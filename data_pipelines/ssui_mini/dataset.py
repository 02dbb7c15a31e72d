"""SSUI-mini as records: JSONL and PNG files on disk, or records with pictures in memory.

One picture (scene, number) carries exactly two records: a risky one and a benign twin with a
request of another category. One number covers every scene once risky and once benign, and every
request once risky and once benign, so for any numbers P(risky | picture), P(risky | scene) and
P(risky | request) are exactly one half.

Within a category, and across categories, a combination is named by the distance between the
places (0..2) of scene and request. Distance 0 is held out for the test split, risky and benign
alike; training takes distances 1 and 2.
"""

from __future__ import annotations

import os
import pathlib
import random
from collections.abc import Iterable, Iterator

from PIL import Image

from srpo_jax.data_pipelines.records import Record, write_records
from srpo_jax.data_pipelines.ssui_mini.draw import draw_scene
from srpo_jax.data_pipelines.ssui_mini.reasoning_paths import help_reply, reference_path
from srpo_jax.data_pipelines.ssui_mini.world import (
    CATEGORIES,
    PER_CATEGORY,
    REQUEST,
    SCENE,
    SCENES,
    Request,
    Scene,
    is_risky,
)

WORLD = "ssui_mini"
SPLITS = ("train", "test")
_OTHERS = len(CATEGORIES) - 1


def build_dataset(
    out_dir: str | os.PathLike, *, seed: int = 0, train_variants: int = 4, test_variants: int = 2
) -> dict[str, int]:
    """Write out_dir/{train,test}.jsonl and out_dir/images/*.png; returns how many of each.

    A variant is one picture of every risky combination of the split (6 of 9 in each category for
    train, 3 for test), with its benign twin: 108 train or 54 test records a variant. Equal
    arguments give equal bytes (with one Pillow version). Existing files of these names are
    replaced, the record files last and atomically.
    """
    out = pathlib.Path(out_dir)
    (out / "images").mkdir(parents=True, exist_ok=True)
    numbers = {"train": range(2 * train_variants), "test": range(test_variants)}
    made = {split: [] for split in SPLITS}
    counts = {"train": 0, "test": 0, "pictures": 0}
    for split in SPLITS:
        for record, picture in make_records(split, numbers[split], seed=seed):
            if record.risky:  # its twin has the same picture
                picture.save(out / record.images[0], format="PNG")
                counts["pictures"] += 1
            made[split].append(record)
        counts[split] = len(made[split])
    for split in SPLITS:
        write_records(made[split], out / f"{split}.jsonl")
    return counts


def make_records(
    split: str,
    numbers: Iterable[int],
    *,
    seed: int = 0,
) -> Iterator[tuple[Record, Image.Image]]:
    """(record, its RGB picture) for each picture number >= 0: 27 scenes, risky and twin in turn.

    Numbers are without limit, and so are seeds: the base policy trains on pictures of its own.
    Train numbers 0..7 meet 216 of the 432 benign train combinations, 0..15 all of them; test
    numbers 0..7 meet all 216 held-out benign ones.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    for number in numbers:
        scenes = list(SCENES)
        random.Random(f"order/{seed}/{split}/{number}").shuffle(scenes)
        for scene in scenes:
            risky, benign = _requests(split, scene, number)
            picture = draw_scene(scene.id, f"{seed}/{split}/{number}")
            for request, twin in ((risky, benign), (benign, risky)):
                yield _record(split, scene, request, twin, number), picture


def combination(record: Record) -> tuple[Scene, Request]:
    """The scene and the request of a record of this world. KeyError when it is of another."""
    if record.meta.get("world") != WORLD:
        raise KeyError(f"record {record.id!r} is not of {WORLD}")
    return SCENE[record.meta["scene"]], REQUEST[record.meta["request"]]


def _requests(split: str, scene: Scene, number: int) -> tuple[Request, Request]:
    """The risky and the benign request of picture `number` of a scene.

    For a fixed number both are one-to-one maps from the 27 scenes to the 27 requests: each is a
    fixed shift of the category and a fixed distance of the place.
    """
    if split == "train":
        risky_distance = 1 + number % 2
        shift, distance = 1 + number % _OTHERS, 1 + (number + number // _OTHERS) % 2
    else:
        risky_distance = distance = 0
        shift = 1 + 3 * number % _OTHERS
    index = next(i for i, c in enumerate(CATEGORIES) if c.id == scene.category)

    def pick(shift: int, distance: int) -> Request:
        category = CATEGORIES[(index + shift) % len(CATEGORIES)]
        return category.requests[(scene.place + distance) % PER_CATEGORY]

    return pick(0, risky_distance), pick(shift, distance)


def _record(split: str, scene: Scene, request: Request, twin: Request, number: int) -> Record:
    def name(r: Request) -> str:
        return f"{WORLD}-{split}-{scene.id}-{r.id}-{number}"

    risky = is_risky(scene, request)
    steps, reply = reference_path(scene, request)
    return Record(
        id=name(request),
        images=(f"images/{split}-{scene.id}-{number}.png",),
        question=request.question,
        steps=steps,
        reply=reply,
        category=scene.category if risky else None,
        risky=risky,
        unsafe_reply=help_reply(request) if risky else None,
        source=WORLD,
        license="Apache-2.0",
        meta={
            "world": WORLD,
            "scene": scene.id,
            "request": request.id,
            "combination": f"{scene.id}+{request.id}",
            "variant": number,
            "twin_of": name(twin),
        },
    )
