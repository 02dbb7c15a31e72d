"""The objects of a bucket, gs://BUCKET/PATH, as tensorstore gives them, which comes with orbax. It
speaks with the credentials that are Google's default on the machine.
"""

from __future__ import annotations

import re
from typing import Any

from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.keepers import GONE

# Alone, or one of several: "a,gs://b/c", "NAME=gs://b/c". What has white space is a text.
ADDRESS = re.compile(r"(?:\S*[,=])?([A-Za-z][A-Za-z0-9+.-]*://[^\s,]*)\S*")
URL = re.compile(r"gs://([a-z0-9][-_.a-z0-9]{1,220}[a-z0-9])/([^\x00-\x1f\x7f?#*\[\]]+)")
RETRIES = 8  # of a request, each after twice the time


def is_url(spec: str) -> bool:
    """Whether it is meant for the address of something in a bucket."""
    return spec.startswith("gs://")


def address_in(value: str) -> str:
    """What in a setting is no file or folder but an address (gs://, https://); "" for none."""
    found = ADDRESS.fullmatch(value)
    return found[1] if found else ""


def bucket_and_name(url: str) -> tuple[str, str]:
    """The two parts of an address. Errors: UserError for one that is none."""
    found = URL.fullmatch(url)
    name = found[2].rstrip("/") if found else ""
    if not found or not is_safe(name):
        raise UserError(f"{one_line(url, 200)}: no address of a bucket; write gs://BUCKET/PATH")
    return found[1], name


def is_safe(name: str) -> bool:
    """Whether an object's name is one that a file may have, below the cache's folder."""
    parts = name.split("/")
    plain = all(part and part not in (".", "..") and len(part) <= 255 for part in parts)
    return plain and name.isprintable() and "\\" not in name


def open_bucket(bucket: str) -> Any:
    """tensorstore's store of the bucket."""
    import tensorstore as ts  # slow to import, and needed for buckets alone

    context = ts.Context({"gcs_request_retries": {"max_retries": RETRIES}})
    return ts.KvStore.open({"driver": "gcs", "bucket": bucket}, context=context).result()


def told(bucket: str, name: str, error: Exception, doing: str = "read") -> Exception:
    """A failure of tensorstore in one line. A bucket that is forbidden, or not there, is the user's
    to mend; a quota that is used up may have room when the command is started again.
    """
    text = one_line(str(error).partition("[")[0] or type(error).__name__, 160)
    mend = any(word in text for word in ("PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND"))
    kind = UserError if mend and "quota" not in text.lower() else RunFailure
    return kind(f"gs://{bucket}/{name} cannot be {doing}: {text}")


def names_under(bucket: str, prefix: str) -> list[str]:
    """Names of objects, sorted, without those that stand for a folder. Errors: UserError for a name
    that no file can have.

    tensorstore (0.1.86) gives what it has by then when a page of the list is refused. So it is
    asked for what is behind the last one, until that is nothing twice; and all that is listed is
    read afterwards, which a refusal that lasts fails.
    """
    import tensorstore as ts

    store, found, rest = open_bucket(bucket), [], prefix.encode()
    behind, nothing = prefix[:-1].encode() + b"0", 0  # "0" follows "/"
    try:
        while nothing < 2:
            more = sorted(store.list(ts.KvStore.KeyRange(rest, behind)).result())
            nothing = 0 if more else nothing + 1
            found += more
            rest = more[-1] + b"\0" if more else rest
        names = [name for name in map(bytes.decode, found) if not name.endswith("/")]
    except ValueError as error:
        raise told(bucket, prefix, error) from None
    for name in names:
        if not is_safe(name):
            raise UserError(f"gs://{bucket}/{one_line(name, 120)}: no file can have this name")
    return names


def read(store: Any, bucket: str, name: str) -> tuple[bytes | None, bytes]:
    """(contents, generation) of an object; (None, GONE) without one. Errors: UserError,
    RunFailure."""
    try:
        found = store.read(name).result()
    except ValueError as error:
        raise told(bucket, name, error) from None
    return (found.value if found.state == "value" else None), found.stamp.generation


def write(
    store: Any, bucket: str, name: str, data: bytes | None, *, only_if: bytes | None = None
) -> bytes:
    """Writes an object (None: removes it) and returns its generation; b"" when `only_if`, a
    generation, is not the one that is there. Errors: UserError, RunFailure; then it is what it was.
    """
    # To tensorstore b"" means "whatever is there".
    of = {} if only_if is None else {"if_equal": only_if}
    try:
        return store.write(name, data, **of).result().generation
    except ValueError as error:
        doing = "removed" if data is None else "written"
        raise told(bucket, name, error, doing) from None


def create(store: Any, bucket: str, name: str, data: bytes) -> bytes:
    """Writes an object that is not there and returns its generation; b"" when it is. Errors: as
    write."""
    return write(store, bucket, name, data, only_if=GONE)
