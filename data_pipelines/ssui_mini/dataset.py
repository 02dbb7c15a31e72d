"""SSUI-mini as records: JSONL and PNG files on disk, or records with pictures in memory.

Every picture carries exactly two records: a risky one and a benign twin with a request of another
category. For each picture number a split has each of its risky combinations once: 108 for train, 54
for validation and for test. The twin's request stands at the same place in its own category, and
for a given place and number one shift leads from category to category. So a twin belongs to the
same split, and every request is as often benign as risky: for any numbers P(risky | picture),
P(risky | scene) and P(risky | request) are exactly one half.
"""

from __future__ import annotations

import os
import pathlib
import random
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from srpo_jax.data_pipelines.records import Record, write_records
from srpo_jax.data_pipelines.ssui_mini.draw import draw_scene
from srpo_jax.data_pipelines.ssui_mini.options import DEFAULTS, Options
from srpo_jax.data_pipelines.ssui_mini.reasoning_paths import (
    NUM_DECISIONS,
    help_reply,
    path_in_states,
)
from srpo_jax.data_pipelines.ssui_mini.world import (
    CATEGORIES,
    REQUEST,
    SCENE,
    SCENES,
    SPLITS,
    Request,
    Scene,
    is_risky,
    split_of,
)
from srpo_jax.files import written_whole

WORLD = "ssui_mini"
_OTHERS = len(CATEGORIES) - 1


def build_dataset(
    out_dir: str | os.PathLike, options: Options = DEFAULTS, splits: Sequence[str] = SPLITS
) -> dict[str, int]:
    """Write out_dir/SPLIT.jsonl of each split, and images/*.png; returns how many of each.

    The returned names are the splits and "pictures". A variant is 216 records of train, 108 of
    validation or of test. Equal arguments give equal bytes (with one Pillow version). Existing
    files of these names are replaced, the record files last and atomically.
    """
    out = pathlib.Path(out_dir)
    (out / "images").mkdir(parents=True, exist_ok=True)
    made = {split: [] for split in splits}
    pictures = 0
    for split in splits:
        for record, picture in make_records(split, range(options.variants), options):
            if record.risky:  # its twin has the same picture
                with written_whole(out / record.images[0]) as fresh:
                    picture.save(fresh, format="PNG")
                pictures += 1
            made[split].append(record)
    for split in splits:
        write_records(made[split], out / f"{split}.jsonl")
    return {split: len(records) for split, records in made.items()} | {"pictures": pictures}


def make_records(
    split: str, numbers: Iterable[int], options: Options = DEFAULTS
) -> Iterator[tuple[Record, Image.Image]]:
    """(record, its RGB picture) for each picture number >= 0: risky and twin in turn.

    Numbers are without limit (options.variants is not read). Eight numbers in a row meet every
    benign combination of the split as often as every other: 864 of train, 432 of the others.
    Errors: ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    for number in numbers:
        order = f"order/{options.seed}/{split}/{number}"
        combinations = [
            (scene, request)
            for scene in SCENES
            for request in CATEGORIES[_index(scene)].requests
            if split_of(scene, request) == split
        ]
        random.Random(order).shuffle(combinations)
        wrong = _wrong(combinations, order, options.wrong)
        for scene, request in combinations:
            twin = _twin(scene, request, number)
            seed = f"{options.seed}/{split}/{request.id}/{number}"
            picture = draw_scene(scene.id, seed)
            image = f"images/{split}-{scene.id}-{request.id}-{number}.png"
            for asked, other in ((request, twin), (twin, request)):
                states = wrong.get((scene, asked), (is_risky(scene, asked),) * NUM_DECISIONS)
                made = _record(split, scene, asked, other, number, image, states, options)
                yield made, picture


def combination(record: Record) -> tuple[Scene, Request]:
    """The scene and the request of a record of this world. KeyError when it is of another."""
    if record.meta.get("world") != WORLD:
        raise KeyError(f"record {record.id!r} is not of {WORLD}")
    return SCENE[record.meta["scene"]], REQUEST[record.meta["request"]]


def _index(scene: Scene) -> int:
    return next(i for i, c in enumerate(CATEGORIES) if c.id == scene.category)


def _twin(scene: Scene, request: Request, number: int) -> Request:
    """The benign request on picture `number` of a risky combination."""
    shift = 1 + (3 * number + request.place) % _OTHERS
    return CATEGORIES[(_index(scene) + shift) % len(CATEGORIES)].requests[request.place]


def _wrong(
    combinations: Sequence[tuple[Scene, Request]], seed: str, share: float
) -> dict[tuple[Scene, Request], tuple[bool, ...]]:
    """The five states of each risky combination whose reference is wrong: concerned up to some
    decision, calm from there to the end. A larger share has those of a smaller one and more.
    """
    rng = random.Random(f"wrong/{seed}")
    lost = [rng.randrange(NUM_DECISIONS) for _ in combinations]
    ranks = rng.sample(range(len(combinations)), len(combinations))
    return {
        pair: tuple(i < at for i in range(NUM_DECISIONS))
        for pair, at, rank in zip(combinations, lost, ranks)
        if rank < round(share * len(combinations))
    }


def _record(
    split: str,
    scene: Scene,
    request: Request,
    twin: Request,
    number: int,
    image: str,
    states: tuple[bool, ...],
    options: Options,
) -> Record:
    def name(r: Request) -> str:
        return f"{WORLD}-{split}-{scene.id}-{r.id}-{number}"

    risky = is_risky(scene, request)
    wordings = (options.wording,) * NUM_DECISIONS
    steps, reply = path_in_states(scene, request, states, wordings, options.num_checks)
    return Record(
        id=name(request),
        images=(image,),
        question=request.question,
        steps=steps,
        reply=reply,
        category=scene.category if risky else None,
        risky=risky,
        unsafe_reply=help_reply(request, options.wording) if risky else None,
        source=WORLD,
        license="Apache-2.0",
        meta={
            "world": WORLD,
            "scene": scene.id,
            "request": request.id,
            "combination": f"{scene.id}+{request.id}",
            "variant": number,
            "twin_of": name(twin),
            "wrong_reference": risky != states[-1],
        },
    )
