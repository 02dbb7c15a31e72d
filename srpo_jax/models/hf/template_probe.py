"""A chat template is run once in a process of its own, before it is run in this one.

It is a stranger's program, and transformers' sandbox bounds what it may touch but not how long it
runs or how much memory it takes: two loops of 1e5 inside each other last for hours, a text that is
doubled 40 times fills any machine. The child process may have neither.
"""

from __future__ import annotations

import functools
import json
import os
import selectors
import subprocess
import sys
from typing import Any

from srpo_jax.errors import UserError

SECONDS = 5.0  # of a CPU for all conversations; a sound template takes a thousandth
PATIENCE = 12  # times as long by the clock, on a machine that is busy
START = 300.0  # for the child to import transformers, on a machine that is busy
MEMORY = 512 << 20  # bytes that the child may have more when it renders than before
LARGEST_TEXT = 4 << 20  # characters of one rendered prompt

# It writes a line when it is ready, so that importing transformers does not count as rendering.
# What lies in the folder where the command was started is never imported: a json module, say.
_CHILD = """
import sys
sys.path = [place for place in sys.path if place]
import json
job = json.load(sys.stdin)
from transformers.utils.chat_template_utils import render_jinja_template
try:
    import resource
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + job["memory"],) * 2)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    seconds = int(used + job["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
except (ImportError, OSError, ValueError):
    pass  # no such limits on this system; the parent's clock remains
print("ready", flush=True)
for messages in job["conversations"]:
    for prompt in (True, False):
        try:
            render_jinja_template([messages], chat_template=job["source"],
                                  add_generation_prompt=prompt, **job["tokens"])
        except MemoryError:
            print("memory", flush=True)
        except Exception:
            pass  # told in the parent, where it fails in the same way
print("done", flush=True)
"""


@functools.cache
def check_bounded(source: str, tokens: str, conversations: str) -> None:
    """UserError if the template takes more than SECONDS or MEMORY for the conversations, each with
    and without the beginning of an answer.

    source: the template's text. tokens: the tokenizer's special tokens by name, and conversations:
    lists of messages in transformers' form, both as JSON. A template that fails in another way
    passes.
    """
    job = {"source": source, "tokens": json.loads(tokens)}
    job |= {"conversations": json.loads(conversations)}
    job |= {"memory": MEMORY, "seconds": SECONDS}
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
    )
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(job).encode())
        child.stdin.close()
        if _line(child.stdout, START) != "ready":
            raise UserError("the chat template could not be tried: transformers cannot be imported")
        if _line(child.stdout, PATIENCE * SECONDS) != "done":  # "memory", or killed by a limit
            raise UserError(
                f"the chat template takes more than {SECONDS:g} s or {MEMORY >> 20} MiB for one "
                "question; put another one in its place"
            )
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _line(stream: Any, seconds: float) -> str | None:
    """The next line of a pipe, "" at its end, None if neither comes in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(seconds):
            return None
    return stream.raw.readline().decode(errors="replace").strip()
