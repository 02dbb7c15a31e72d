"""The report of a pilot: measure, value, threshold, and what to type where it is not met.

The thresholds are rules of thumb, for a decision and not for a paper; docs/pilot.md says where each
comes from. Advised commands are whole: the words that the pilot was started with, and changes.
"""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.buckets.objects import is_url
from srpo_jax.config.fields import Config

READ_OK = 0.70
UNFINISHED = 0.10
WITH_PAIR = 0.25
PAIRS = 1.0
DISTINCT = 0.33
AGREE = 0.80
KAPPA = 0.60
EXP_SHARE = (0.05, 0.95)
AIMED_SHARE = (0.30, 0.70)  # where lambda_exp is moved to, from below and from above
ENOUGH = 20  # branches of a group before its shares are held against a threshold
WARMUP = {"lora.rank": 16, "train.learning_rate": 5e-5}
WARMUP_FOLDER = "warmup"  # in the workdir
FIELD = re.compile(r"--?(?:no)?config\.([\w.]+)")


class Typed(NamedTuple):
    """The command line of a pilot, to make others of.

    words: --config=FILE and overrides; run and labels: its --from and --labels, "" for none;
    upload: its --allow_upload.
    """

    words: tuple[str, ...]
    workdir: str
    run: str = ""
    labels: str = ""
    questions: int = 50
    upload: bool = False

    def line(self, verb: str, *options: str, workdir: str = "", **fields: Any) -> str:
        """`srpo VERB` with these words; fields: config fields that get another value, with __ for
        the dot. workdir: another one, "" for the pilot's.
        """
        changed = {name.replace("__", "."): value for name, value in fields.items()}
        kept = []
        for word in self.words:
            found = FIELD.match(word)
            if not (found and found[1] in changed):
                kept.append(word)
        kept += [f"--config.{name}={_value(value)}" for name, value in changed.items()]
        if verb != "judge check":
            kept.append(f"--workdir={workdir or self.workdir}")
        if self.upload and verb in ("pilot", "judge"):
            kept.append("--allow_upload")
        return shlex.join(["srpo", *verb.split(), *kept, *options])

    def pilot(self, *options: str, workdir: str = "", run: str | None = None, **fields: Any) -> str:
        """This pilot again, with changes."""
        run = self.run if run is None else run
        given = [f"--questions={self.questions}"] if self.questions != 50 else []
        given += [f"--from={run}"] if run else []
        return self.line("pilot", *given, *options, workdir=workdir, **fields)


class Row(NamedTuple):
    """One measure. ok: None where it is not held against a threshold. advice: commands to type."""

    name: str
    value: float | None
    shown: str
    threshold: str = ""
    ok: bool | None = None
    advice: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As pilot.json has it."""
        return {**self._asdict(), "advice": list(self.advice)}


def report_rows(cfg: Config, found: Mapping[str, Any], typed: Typed) -> list[Row]:
    """The rows for what was measured (see cli.pilot.pilot and judge.measures.measure)."""
    return [
        *_reading(cfg, found, typed),
        *_branching(cfg, found, typed),
        *_errors(cfg, found, typed),
        *_agreement(cfg, found, typed),
        *_gradient(cfg, found, typed),
        *_cost(found),
    ]


def _reading(cfg: Config, found: Mapping[str, Any], typed: Typed) -> list[Row]:
    """Whether the policy writes what the path format reads, and comes to an end."""
    advice: tuple[str, ...] = ()
    if needs_warmup(found):
        advice = warmup_commands(typed, found["warmup_steps"])
    rows = [_at_least("read as path and reply", _read_ok(found), READ_OK, advice)]
    longer = (
        typed.pilot(
            workdir=f"{typed.workdir}-longer",
            explore__max_new_tokens=2 * cfg.explore.max_new_tokens,
        ),
    )
    return rows + _by_group(found, "unfinished", "branches", UNFINISHED, longer)


def _read_ok(found: Mapping[str, Any]) -> float:
    return _share(found["statuses"].get("ok", 0), found["branches"])


def needs_warmup(found: Mapping[str, Any]) -> bool:
    """Whether the policy does not write the format, for other reasons than the token limit."""
    ended = found["branches"] - found["groups"]["all"]["unfinished"]
    return _read_ok(found) < READ_OK and _share(found["statuses"].get("ok", 0), ended) < READ_OK


def warmup_commands(typed: Typed, steps: int) -> tuple[str, ...]:
    """A warm-up with adapters on the reference paths alone, and how the road goes on from it."""
    place = f"{typed.workdir}/{WARMUP_FOLDER}"
    fields = {
        "objective__lambda_exp": 0,
        "objective__ref_coef": 1,
        "objective__reference": "dataset",
        "train__steps": steps,
        "train__warmup_steps": steps // 20,
        **{name.replace(".", "__"): value for name, value in WARMUP.items()},
    }
    return (
        typed.line("explore", "--references", workdir=place, explore__reference="dataset"),
        typed.line("train", workdir=place, **fields),
        typed.pilot(workdir=place, run=place),
        *full_run_commands(typed._replace(run=place)),
    )


def full_run_commands(typed: Typed) -> tuple[str, ...]:
    """The full run with the policy that the pilot had: that of model.path, or that of a run, whose
    export is then what training begins with. The run's own folder has no place for another's trees.
    """
    if not typed.run:
        return typed.line("explore"), typed.line("judge"), typed.line("train")
    place, run = typed.workdir.rstrip("/"), typed.run.rstrip("/")
    if pathlib.PurePath(place) == pathlib.PurePath(run):  # a text: they may be addresses
        above, _, name = place.rpartition("/")
        place = (above or ".") if name == WARMUP_FOLDER else f"{place}-full"
    return (
        typed.line("explore", f"--from={run}", workdir=place),
        typed.line("judge", workdir=place),
        shlex.join(["srpo", "export", f"--workdir={run}"]),
        typed.line("train", workdir=place, model__path=f"{run}/export"),
    )


def _branching(cfg: Config, found: Mapping[str, Any], typed: Typed) -> list[Row]:
    """Whether there is something to compare. Harmless questions seldom have a pair."""
    groups, explore = found["groups"], cfg.explore
    name = "risky" if "risky" in groups else "all"
    group = groups[name]
    more = (
        typed.pilot(workdir=f"{typed.workdir}-more", explore__branches=2 * explore.branches),
        typed.pilot(workdir=f"{typed.workdir}-hotter", explore__temperature=_hotter(explore)),
    )
    of = " (risky questions)" if name == "risky" else ""
    paired = _share(group["with_pair"], group["questions"])
    pairs = group["pairs"] / max(1, group["questions"])
    few = more if pairs < PAIRS and paired >= WITH_PAIR else ()
    rows = [
        _at_least(f"questions with a pair{of}", paired, WITH_PAIR, more),
        Row(
            f"pairs a question{of}",
            pairs,
            f"{pairs:.1f}",
            f"at least {PAIRS:g}",
            pairs >= PAIRS,
            few,
        ),
    ]
    distinct = 1 - _share(found["repeated"], found["branches"])
    return [*rows, _at_least("distinct branches of a point", distinct, DISTINCT, more[1:])]


def _hotter(explore: Any) -> float:
    return 1.0 if explore.temperature < 1 else round(explore.temperature + 0.2, 2)


def _errors(cfg: Config, found: Mapping[str, Any], typed: Typed) -> list[Row]:
    advice = (typed.line("judge check"), typed.pilot())
    return _by_group(found, "error", "asked", cfg.arbiter.max_error_fraction, advice)


def _by_group(
    found: Mapping[str, Any], what: str, of: str, most: float, advice: tuple[str, ...]
) -> list[Row]:
    """The share of `what` in all, in risky and harmless questions, and in the worst category."""
    groups = found["groups"]
    names = [name for name in ("all", "risky", "benign") if name in groups]
    enough = [n for n in groups if n.startswith("category ") and groups[n][of] >= ENOUGH]
    worst = max(enough, key=lambda n: _share(groups[n][what], groups[n][of]), default="")
    names += [worst] if worst and groups[worst][what] else []
    rows, title = [], {"error": "ERROR of what was judged"}.get(what, what)
    for name in names:
        share = _share(groups[name][what], groups[name][of])
        small = groups[name][of] < ENOUGH and name != "all"
        label = f"{title}, {name}" + (" (the worst)" if name.startswith("category") else "")
        ok = None if small else share <= most
        limit = "" if small else f"at most {100 * most:.0f} %"
        given = advice if ok is False else ()
        rows.append(Row(label, share, f"{100 * share:.1f} %", limit, ok, given))
    return rows


def _agreement(cfg: Config, found: Mapping[str, Any], typed: Typed) -> list[Row]:
    """How far the judge agrees with a person."""
    agreed = found["agreement"]
    if agreed is None:
        file, fetch = f"{typed.workdir}/pilot/to_label.jsonl", ()
        if is_url(file):
            fetch = (f"gcloud storage cp {shlex.quote(file)} .",)
            file = "to_label.jsonl"
        return [
            Row(
                "agreement with your labels",
                None,
                "no labels",
                f"at least {100 * AGREE:.0f} %",
                None,
                (
                    *fetch,
                    f"# fill in reply_verdict in {file}, then",
                    typed.pilot(f"--labels={file}"),
                ),
            )
        ]
    advice = [typed.line("judge check")]
    if cfg.arbiter.kind == "prompted":
        advice.append(typed.pilot(f"--labels={typed.labels}", judge__votes=cfg.judge.votes + 2))
    kappa = agreed["kappa"]
    ok = None if kappa is None else kappa >= KAPPA
    shown = "-" if kappa is None else f"{kappa:.2f}"
    first = _at_least(
        f"agreement with {agreed['labels']} labels", agreed["agree"], AGREE, tuple(advice)
    )
    given = tuple(advice) if ok is False and first.ok else ()
    return [
        first,
        Row("Cohen's kappa with them", kappa, shown, f"at least {KAPPA:.2f}", ok, given),
    ]


def _gradient(cfg: Config, found: Mapping[str, Any], typed: Typed) -> list[Row]:
    """Whether lambda_exp lets both terms of the loss be heard."""
    measured, name = found["gradient"], "L_exp's share of the gradient norm"
    share = measured["exp_share"]
    low, high = EXP_SHARE
    threshold = f"{100 * low:.0f} to {100 * high:.0f} %"
    if share is None:
        return [Row(name, None, measured["why_not"] or "no gradient", threshold)]
    advice: tuple[str, ...] = ()
    if 0 < share < low or high < share < 1:
        aim = AIMED_SHARE[0] if share < low else AIMED_SHARE[1]
        ratio = measured["ref"] / measured["exp"] * aim / (1 - aim)
        advice = (
            typed.pilot(objective__lambda_exp=float(f"{cfg.objective.lambda_exp * ratio:.2g}")),
        )
    return [Row(name, share, f"{100 * share:.1f} %", threshold, low <= share <= high, advice)]


def _cost(found: Mapping[str, Any]) -> list[Row]:
    """What the full run takes; nothing that could be right or wrong."""
    cost = found["full_run"]
    of = f"all {cost['questions']} questions"
    seconds, judging = cost["explore_seconds"], cost["judge_seconds"]
    shown = "-" if seconds is None else _duration(seconds)
    cases = f"{cost['judge_cases']} cases" + ("" if judging is None else f", {_duration(judging)}")
    rows = [
        Row(f"exploring {of}", seconds, shown),
        Row(f"judging {of}", cost["judge_cases"], cases),
    ]
    if cost["tokens_in"] is not None:
        money = "" if cost["dollars"] is None else f", ${cost['dollars']:.2f}"
        tokens = f"{cost['tokens_in']} in, {cost['tokens_out']} out{money}"
        rows.append(Row("the judge's tokens", cost["tokens_in"], tokens))
    return rows


def show(rows: Sequence[Row], found: Mapping[str, Any], typed: Typed) -> str:
    """The rows as a table for a terminal, then the commands of each that is not met; where all are
    met, those of the full run.
    """
    header = Row("measure", None, "value", "threshold")
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in (0, 2, 3)]
    said = {True: "ok", False: "not ok", None: ""}
    lines = [f"pilot: {found['branches']} branches of {found['questions']} questions", ""]
    for row in (header, *rows):
        cells = (row.name.ljust(widths[0]), row.shown.ljust(widths[1]), row.threshold)
        lines.append(
            f"{'  '.join((*cells[:2], cells[2].ljust(widths[2])))}  {said[row.ok]}".rstrip()
        )
    told: set[tuple[str, ...]] = set()
    for row in rows:
        if row.ok is not True and row.advice and row.advice not in told:
            told.add(row.advice)
            lines += ["", f"{row.name}, {row.shown}:", *(f"    {line}" for line in row.advice)]
    if all(row.ok is not False for row in rows):
        full = full_run_commands(typed)
        lines += ["", "the full run:", *(f"    {line}" for line in full)]
    return "\n".join(lines)


def _at_least(name: str, share: float, least: float, advice: tuple[str, ...]) -> Row:
    ok = share >= least
    shown, limit = f"{100 * share:.1f} %", f"at least {100 * least:.0f} %"
    return Row(name, share, shown, limit, ok, () if ok else advice)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
