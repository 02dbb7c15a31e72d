"""What lies in a bucket, gs://BUCKET/PATH, and is only read: the policy, records with their
pictures, trees with their verdicts. It is fetched into this host's cache, and read from there.

A file is fetched once: afterwards every start asks for each of them whether the bucket has another
generation of it. Within a process nothing is asked twice, so a run sees one state of the bucket.
docs/places.md says what takes such addresses.
"""

from __future__ import annotations

import functools
import pathlib
import posixpath
import sys
from collections.abc import Iterator

from srpo_jax.buckets.copies import LARGE, Copies
from srpo_jax.buckets.objects import bucket_and_name, is_safe, is_url, names_under
from srpo_jax.console import say
from srpo_jax.errors import UserError
from srpo_jax.files import parse_json, user_cache
from srpo_jax.keepers import kept_at, look_again

# Weights in formats that are never read: not worth the way.
OTHER_WEIGHTS = tuple(".bin .pt .pth .gguf .msgpack .h5 .onnx .ckpt .tflite".split())
IMPORT = "import.json"  # beside imported data: whose it is


def mirror(url: str) -> pathlib.Path:
    """Where the cache has what the address names, whether or not it was fetched. Errors: UserError
    for one that is none.
    """
    if own := kept_at(url):
        return own
    return Copies(cache_of("buckets")).path(*bucket_and_name(url))


def local_folder(spec: str, *, weights: bool = True) -> str:
    """The folder that a setting names, as it is, or fetched: see fetch_folder."""
    return str(fetch_folder(spec, weights=weights)) if is_url(spec) else spec


def fetch_folder(url: str, *, weights: bool = True) -> pathlib.Path:
    """The folder of the cache with all objects behind gs://BUCKET/PATH/, or that of a workdir in a
    bucket which is open. weights: also those of a model. What the bucket has no more is removed
    from it.

    Errors: UserError when there is nothing, or it may not be read; RunFailure when it changes
    meanwhile, or the bucket does not answer.
    """
    if own := kept_at(url):
        if weights:
            look_again(own)  # a workdir is opened without, where the verb seldom needs them
        return own
    return _folder(url, weights)


@functools.cache
def _folder(url: str, weights: bool) -> pathlib.Path:
    bucket, name = bucket_and_name(url)
    copies = Copies(cache_of("buckets"))
    names = names_under(bucket, f"{name}/")
    _tell(url)
    if not names:
        raise UserError(f"{url}: there is no object below it, or it may not be listed from here")
    if not weights:
        names = [each for each in names if not each.endswith(LARGE)]
    copies.fetch(bucket, [each for each in names if not each.endswith(OTHER_WEIGHTS)])
    if weights:
        copies.keep_only(bucket, name, set(names))
    return mirror(url)


def fetch_records(url: str) -> pathlib.Path:
    """The JSONL of records in the cache, with the pictures that it names beside it. What is wrong
    with it whoever reads it will say. Errors: as fetch_folder.
    """
    return kept_at(url) or _records(url)


@functools.cache
def _records(url: str) -> pathlib.Path:
    bucket, name = bucket_and_name(url)
    copies = Copies(cache_of("buckets"))
    _tell(url)
    if not copies.fetch(bucket, [name]):
        raise UserError(f"{url}: there is no such object, or it may not be read from here")
    above = name[: name.rfind("/") + 1]
    copies.fetch(bucket, sorted({above + own for own in (IMPORT, *_pictures(mirror(url)))}))
    return mirror(url)


def fetch_trees(url: str) -> pathlib.Path:
    """The folder of trees in the cache, with the verdicts that lie beside it in the bucket. Errors:
    as fetch_folder.
    """
    return kept_at(url) or _trees(url)


@functools.cache
def _trees(url: str) -> pathlib.Path:
    folder = fetch_folder(url)
    bucket, name = bucket_and_name(url)
    copies = Copies(cache_of("buckets"))
    above = name[: name.rfind("/") + 1]
    verdicts = names_under(bucket, f"{above}verdicts/")
    copies.fetch(bucket, [*verdicts, f"{above}{IMPORT}"])
    copies.keep_only(bucket, f"{above}verdicts", set(verdicts))
    return folder


def forget() -> None:
    """Lets this process ask for everything again."""
    for each in (_folder, _records, _trees):
        each.cache_clear()


def cache_of(name: str) -> pathlib.Path:
    """A folder of the user's cache. Errors: UserError for a user without a home."""
    try:
        return user_cache(name)
    except RuntimeError:
        raise UserError(
            "what lies in a bucket is fetched into the user's cache, and this user has no home: "
            "name a folder in the environment variable XDG_CACHE_HOME"
        ) from None


def _tell(url: str) -> None:
    """What takes minutes is said."""
    if not mirror(url).exists():
        say(f"fetching {url} into {mirror(url)}", to=sys.stderr)


def _pictures(path: pathlib.Path) -> Iterator[str]:
    """The names of pictures in a JSONL of records, as far as they can be those of objects."""
    with open(path, "rb") as file:
        for line in file:
            try:
                row = parse_json(line)
            except ValueError:
                continue
            names = row.get("images") if isinstance(row, dict) else None
            for name in names if isinstance(names, list) else ():
                if isinstance(name, str) and is_safe(plain := posixpath.normpath(name)):
                    yield plain
