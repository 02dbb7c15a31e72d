"""How long the report of many failures takes to be written, to open and to filter.

    python -m studies.speed.report_page [--questions=1000] [--chromium=PATH] [--shots=DIR]

Each question has a picture of its own (640 x 480, like a photograph) and an answer that is wrong
after training. `srpo report` writes the page; a headless Chromium opens it from the disk, with
nothing but the page in it, and presses some of the buttons of its filters. Prints seconds and
megabytes, how many failures each button leaves, and last one JSON object; exit code 1 where a
button leaves another number than it says, or where the page takes longer than 10 s to open.
--shots writes screenshots there. Without a Chromium (Debian: `apt-get install chromium`) only the
page is written.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from srpo_jax.judge.results.scores import scores
from srpo_jax.runs.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MOST = 10.0  # seconds to open
WORDS = "look at this picture of a kitchen and say what to do with the bottle on the left".split()
CATEGORIES = ("violence", "self_harm", "privacy", "illegal_acts", "dangerous_behaviour", "fraud")
SIZE = (1280, 900)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.report_page")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--chromium", default=next(filter(shutil.which, NAMES), ""))
    parser.add_argument("--shots", type=pathlib.Path, help="folder for screenshots")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        make(workdir, args.questions)
        start = time.perf_counter()
        page = write_report(workdir)
        found: dict[str, Any] = {
            "questions": args.questions,
            "write_s": round(time.perf_counter() - start, 2),
            "page_mb": round(page.stat().st_size / 1e6, 1),
        }
        if args.chromium:
            found |= browse(args.chromium, page, args.shots)
        else:
            print("no Chromium: the page was not opened", file=sys.stderr)
    for name, value in found.items():
        print(f"{name:<12}{value}")
    print(json.dumps(found))
    wrong = [each for each in found.get("filters", ()) if each["says"] != each["left"]]
    return int(bool(wrong) or found.get("open_s", 0) > MOST)


def make(workdir: pathlib.Path, questions: int) -> None:
    """A workdir with evaluations before and after, and their pictures."""
    draw, rng = np.random.default_rng(0), random.Random(0)
    pictures = workdir / "images"
    pictures.mkdir()
    for i in range(questions):
        coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
        image = coarse.resize((640, 480), Image.Resampling.BICUBIC)
        image.filter(ImageFilter.GaussianBlur(2)).save(pictures / f"{i}.jpg", quality=90)
    for name in ("before", "after"):
        rows = [_row(rng, i, name == "after") for i in range(questions)]
        folder = workdir / "eval" / name
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "generations.jsonl").write_text(lines)
        judge = {"arbiter": "study", "digest": "0" * 16, "spec": {}}
        (folder / "scores.json").write_text(json.dumps({**scores(rows), "judge": judge}))


def _row(rng: random.Random, i: int, wrong: bool) -> dict[str, Any]:
    """An answer of six steps; wrong: in one way or another."""

    def text(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    risky = i % 2 == 0
    path = [rng.choice(("SAFE", "SAFE", "UNSAFE")) for _ in range(6)]
    reply = rng.choice(("UNSAFE", "UNSAFE", "ERROR")) if wrong and risky else "SAFE"
    if not wrong and rng.random() < 0.5:
        path = ["SAFE"] * 6
    return {
        "id": f"question-{i}",
        "image": f"images/{i}.jpg",
        "question": text(20),
        "category": CATEGORIES[i % len(CATEGORIES)],
        "risky": risky,
        "steps": [f"Step {k}: {text(25)}." for k in range(6)],
        "reply": text(60),
        "status": "ok",
        "reply_verdict": reply,
        "path_verdict": "UNSAFE" if "UNSAFE" in path else "SAFE",
        "step_verdicts": path,
        "effective": None if reply == "ERROR" else not wrong,
    }


class Browser:
    """A headless Chromium that is told what to do over two pipes (its --remote-debugging-pipe):
    JSON, each message ended by a zero byte.
    """

    def __init__(self, program: str, profile: str):
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        options += [f"--window-size={SIZE[0]},{SIZE[1]}", "--host-resolver-rules=MAP * ~NOTFOUND"]

        def pipes() -> None:  # Chromium reads from 3 and writes to 4
            first, second = os.dup(there), os.dup(back)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self._process = subprocess.Popen(
            [program, *options], preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(there)
        os.close(back)
        self._number, self._rest, self._session = 0, b"", ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, until: str = "", **params: Any) -> dict[str, Any]:
        """The result of a method; until: wait for this event, too."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        result = None
        while result is None or until:
            said = self._next()
            if said.get("id") == self._number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                result = said["result"]
            if said.get("method") == until:
                until = ""
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 20)
            if not more:
                raise RuntimeError("Chromium ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def value(self, expression: str) -> Any:
        """What an expression in the page comes to."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def shot(self, path: pathlib.Path) -> None:
        """A screenshot of what the window shows."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait()


LEFT = "[...document.querySelectorAll('.failure')].filter(e => e.offsetParent !== null).length"
SCROLL = "document.getElementById('failures').scrollIntoView({behavior: 'instant'})"
PRESS = """(() => {
  const button = document.getElementById('%s'), start = performance.now();
  button.click();
  document.body.offsetHeight;
  return performance.now() - start;
})()"""
SAYS = "Number(document.getElementById('%s').parentElement.querySelector('small').textContent)"
BUTTONS = "[...document.querySelectorAll('.filters input')].map(e => e.id)"
CHOSEN = 8  # buttons that are pressed


def browse(program: str, page: pathlib.Path, shots: pathlib.Path | None) -> dict[str, Any]:
    """Opens the page and presses buttons: {"open_s", "failures", "filters": [{"button", "says",
    "left", "ms"}]}.
    """
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, profile)
        try:
            start = time.perf_counter()
            browser.call("Page.navigate", until="Page.loadEventFired", url=page.as_uri())
            browser.value("document.body.offsetHeight")
            seconds = time.perf_counter() - start
            failures = browser.value(LEFT)
            filters = []
            if shots:
                shots.mkdir(parents=True, exist_ok=True)
                browser.shot(shots / "top.png")
                browser.value(SCROLL)
                browser.shot(shots / "failures.png")
            buttons = [name for name in browser.value(BUTTONS) if not name.endswith("-all")]
            for name in buttons[:CHOSEN]:
                ms = browser.value(PRESS % name)
                says, left = browser.value(SAYS % name), browser.value(LEFT)
                filters.append({"button": name, "says": says, "left": left, "ms": round(ms, 1)})
                if shots and name == buttons[0]:
                    browser.shot(shots / "filtered.png")
                browser.value(PRESS % f"{name.rpartition('-')[0]}-all")
        finally:
            browser.close()
    return {"open_s": round(seconds, 2), "failures": failures, "filters": filters}


if __name__ == "__main__":
    sys.exit(main())
