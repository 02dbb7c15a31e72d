"""What each verb of the command line does: load what it needs, call one function, say the result.

One function per verb, named like it (`a b` is a_b), taking a Command. Heavy imports stay inside.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import platform
import sys
from importlib import metadata
from typing import Any

from srpo_jax.command.verb import Command
from srpo_jax.config.check import check_exploring
from srpo_jax.config.fields import Config
from srpo_jax.distributed.no_tpu import leave_libtpu_alone
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.files import check_plain_name

DEMO_METHODS = ("base", "sft", "sft_filtered", "taught", "orpo", "dpo", "dpo_ref", "srpo")
# Settings that a verb on files of data does without.
NOT_OF_FILES = ("model.path", "data.train_records", "data.test_records", "arbiter.kind")


def demo(command: Command) -> int:
    methods = tuple(name.strip() for name in command.options["methods"].split(","))
    seeds = command.options["seeds"]
    for name in methods:
        if name not in DEMO_METHODS:
            raise UserError(f"--methods: unknown method {name!r}; any of {','.join(DEMO_METHODS)}")
    if len(set(methods)) < len(methods):
        raise UserError("--methods: a method is named twice")
    if seeds < 1:
        raise UserError(f"--seeds={seeds}: at least 1 is needed")
    command.config("srpo")  # a bad override is told before the heavy imports
    workdir = _workdir(command)
    _settle()
    from srpo_jax.cli import demo as road

    # command.config(method): the validated config of that variant, with the command's overrides.
    return road.main(command.config, workdir=workdir, methods=methods, seeds=seeds)


def run(command: Command) -> None:
    rounds = command.options["rounds"]
    if rounds < 1:
        raise UserError(f"--rounds={rounds}: at least 1 is needed")
    config = command.config(unused=("arbiter.kind", "data.test_records"))
    workdir = pathlib.Path(_workdir(command))
    _settle()
    if config.arbiter.kind:
        _check_arbiter(config)
    from srpo_jax.cli.rounds.walk import run_rounds, show

    if run_rounds(config, workdir, rounds=rounds, allow_upload=command.options["allow_upload"]):
        print(show(workdir))


def explore(command: Command) -> None:
    config, workdir = command.config(), _workdir(command)
    check_exploring(config)
    _settle()
    _check_arbiter(config)
    from srpo_jax.explore.explore import explore as run
    from srpo_jax.explore.workers import exploring_session

    judge_roots = None
    if config.explore.reference != "dataset":
        from srpo_jax.arbiter.registry import find_arbiter
        from srpo_jax.judge.judge import judge as ask

        if getattr(find_arbiter(config.arbiter.kind), "in_process", False):
            judge_roots = functools.partial(ask, config, workdir)
    only = command.options["references"]
    with exploring_session(config):
        params = _params_of(config, command.options["from"])
        run(
            config,
            workdir,
            params=params,
            judge_roots=judge_roots,
            references_only=only,
            verify=command.options["verify"],
            more=command.options["more"],
        )


def pilot(command: Command) -> None:
    config, workdir = command.config(), _workdir(command)
    check_exploring(config)
    options = command.options
    if options["questions"] < 1:
        raise UserError(f"--questions={options['questions']}: at least 1 is needed")
    if options["labels"] and not pathlib.Path(options["labels"]).is_file():
        raise UserError(f"--labels={options['labels']}: no such file")
    _settle()
    from srpo_jax.cli.pilot import pilot as run
    from srpo_jax.distributed.process_info import detect_process

    if detect_process(config.processes, os.environ).index:
        print("pilot runs on process 0, so this one has nothing to do", flush=True)
        return
    run(
        config,
        workdir,
        questions=options["questions"],
        labels=options["labels"],
        run=options["from"],
        allow_upload=options["allow_upload"],
        typed=(f"--config={command.config_file}", *command.overrides),
    )


def judge(command: Command) -> None:
    workdir = _workdir(command, must_exist=not command.options["follow"])
    benchmark, unused = None, ["model.path", "data.train_records", "data.test_records"]
    if command.options["answers"]:
        from srpo_jax.evaluate.benchmarks.registry import benchmark_of

        benchmark = benchmark_of(workdir, command.options["answers"])
        if benchmark is not None and benchmark.arbiter() is not None:
            unused.append("arbiter.kind")
    config = command.config(unused=tuple(unused))
    _settle()
    from srpo_jax.judge.judge import judge as run

    run(config, workdir, **command.options, benchmark=benchmark)


def judge_check(command: Command) -> None:
    unused = ("model.path", "data.train_records", "data.test_records")
    config = command.config(unused=unused)
    _settle()
    from srpo_jax.arbiter.registry import make_arbiter
    from srpo_jax.judge import canaries

    arbiter = make_arbiter(config.arbiter.kind, config.judge, config=config)
    found = canaries.check(arbiter, timeout=config.arbiter.timeout_seconds)
    print(canaries.table(found))
    if not all(each.right for each in found):
        raise RunFailure(f"{arbiter.name} is not to be trusted as it is: see the table above")


def judge_sample(command: Command) -> None:
    workdir = _workdir(command, must_exist=True)
    _settle()
    from srpo_jax.cli import trust

    trust.sample(workdir, **command.options)


def judge_calibrate(command: Command) -> None:
    workdir = _workdir(command, must_exist=True)
    _settle()
    from srpo_jax.cli import trust

    trust.calibrate(workdir, **command.options)


def judge_compare(command: Command) -> None:
    workdir = _workdir(command, must_exist=True)
    _settle()
    from srpo_jax.cli import trust

    trust.compare(workdir, **command.options)


def train(command: Command) -> None:
    config, workdir = command.config(), _workdir(command)
    _settle()
    from srpo_jax.cli.validation.evaluators import make_evaluators
    from srpo_jax.distributed.lifecycle import distributed_session
    from srpo_jax.runs.ledger import process_start
    from srpo_jax.runs.profiling import parse_window
    from srpo_jax.train.dry_run import dry_run
    from srpo_jax.train.loop import train as run

    text = command.options["profile"]
    profile = parse_window(text) if text else None
    verify = command.options["verify"]
    with distributed_session(config.processes, config) as process:
        if command.options["dry_run"]:
            report = dry_run(config, workdir, verify=verify, make_evaluators=make_evaluators)
            if process.index == 0:
                print(report)
            return
        summary = run(
            config,
            workdir,
            profile=profile,
            born=process_start(),
            verify=verify,
            make_evaluators=make_evaluators,
        )
        if process.index == 0:
            print(f"step {summary['step']} is saved and verified: {summary['checkpoint']}")


def export(command: Command) -> int:
    if command.options["check"]:
        return _check_export(pathlib.Path(command.options["check"]))
    workdir = _workdir(command, must_exist=True)
    form = command.options["format"]
    name = "adapter" if form == "peft" else "export"
    out = command.options["out"] or str(pathlib.Path(workdir, name))
    _settle()
    from srpo_jax.export.export import export as run
    from srpo_jax.export.verify import Mismatch

    try:
        names = ("verify", "step", "bake_prompt", "allow_nonfinite")
        chosen = {name: command.options[name] for name in names}
        print(f"exported to {run(workdir, out, form=form, **chosen)}")
    except Mismatch as error:
        print(
            f"srpo export: error: not exported, it is not what was trained: {error}",
            file=sys.stderr,
        )
        return 1
    return 0


def _check_export(folder: pathlib.Path) -> int:
    from srpo_jax.export.digests import check_digests

    good, faults = check_digests(folder)
    for fault in faults:
        print(f"srpo export: error: {folder}: {fault}", file=sys.stderr)
    print(f"{folder}: {good} files are what was exported, {len(faults)} are not")
    return 1 if faults else 0


_ANSWERING = ("model", "served_model", "benchmark")  # options of eval that say who answers what


def eval(command: Command) -> None:  # noqa: A001  the verb's name
    options = command.options
    if options["name"]:
        check_plain_name(options["name"], "--name")
    for option in ("base_url", "api_key_env", "allow_upload"):
        if options[option] and not options["served_model"]:
            raise UserError(f"--{option} goes with --served_model=NAME")
    if options["data"] and not options["benchmark"]:
        raise UserError("--data goes with --benchmark=NAME; records of your own: data.test_records")
    if options["verdicts"] and not options["best_of"]:
        raise UserError("--verdicts goes with --best_of=NAME")
    if options["best_of"] and (other := [n for n in _ANSWERING if options[n]]):
        raise UserError(f"--best_of chooses among answers that are there: leave out --{other[0]}")
    unused = []
    # Questions of a benchmark, or of the pool; judges may be named later.
    if options["benchmark"] or options["best_of"]:
        unused += ["data.train_records", "data.test_records", "arbiter.kind"]
    if options["model"] or options["served_model"] or options["best_of"]:
        unused.append("model.path")
    config, workdir = command.config(unused=tuple(unused)), _workdir(command)
    if config.arbiter.kind:
        _check_arbiter(config)  # that its answers are for
    if options["model"] and not pathlib.Path(options["model"]).is_dir():
        raise UserError(f"--model={options['model']}: no such directory")
    _settle()
    from srpo_jax.cli.evaluating import choose_among, evaluate_all

    if options["best_of"]:
        choose_among(config, workdir, options)
        return
    evaluate_all(config, workdir, options)


def ask(command: Command) -> None:
    model = command.options["model"]
    if not pathlib.Path(model).is_dir() or not model:
        raise UserError(f"--model={model}: give a HF directory or the workdir of a run")
    unused = ("model.path", "data.train_records", "data.test_records", "arbiter.kind")
    config = command.config(unused=unused)
    _settle()
    from srpo_jax.cli import ask as asking

    record = asking.one_record(command.options["question"], command.options["image"])
    answers = asking.ask(config, model, record, command.options["max_new_tokens"])
    print(asking.show(answers))


def serve(command: Command) -> None:
    from srpo_jax.serve.server import check_address

    options = command.options
    check_address(options["host"], options["port"], options["allow_remote"])
    if not pathlib.Path(options["model"]).is_dir() or not options["model"]:
        raise UserError(f"--model={options['model']}: give a HF directory or the workdir of a run")
    config = command.config(unused=NOT_OF_FILES)
    _settle()
    from srpo_jax.cli import serve as serving

    serving.serve(config, options["model"], options["name"], options["host"], options["port"])


def report(command: Command) -> None:
    workdir = _workdir(command, must_exist=True)
    from srpo_jax.runs.goodput import goodput, line
    from srpo_jax.runs.report.page import write_report
    from srpo_jax.runs.workdir import shown_run

    found = goodput(shown_run(pathlib.Path(workdir)))
    if found:
        print(line(found))
    print(f"wrote {write_report(workdir, command.options['out'] or None)}")


def table(command: Command) -> None:
    from srpo_jax.files import check_folder, write_text
    from srpo_jax.runs.methods_table.collect import collect
    from srpo_jax.runs.methods_table.formats import FORMATS, render

    form, out = command.options["format"], command.options["out"]
    if form not in FORMATS:
        raise UserError(f"--format={form}: any of {', '.join(FORMATS)}")
    if out and pathlib.Path(out).is_dir():
        raise UserError(f"--out={out} is a folder; name a file")
    if out:
        check_folder(pathlib.Path(out).parent)
    text = render(collect(command.arguments), form)
    if not out:
        print(text, end="")
        return
    write_text(pathlib.Path(out), text)
    print(f"wrote {out}")


def plan(command: Command) -> None:
    options = dict(command.options)
    topologies = [name.strip() for name in options["topology"].split(",") if name.strip()]
    if not topologies:
        raise UserError("--topology=NAME is missing, as in --topology=v5e:8x8")
    if options["json"] and options["markdown"]:
        raise UserError("--json and --markdown exclude each other")
    if options["for"] not in ("train", "explore"):
        raise UserError(f"--for={options['for']}: it plans for train or explore")
    from srpo_jax.distributed.accelerators import parse_slice

    for name in topologies:
        parse_slice(name)
    config = command.config(unused=("arbiter.kind", "data.train_records", "data.test_records"))
    _settle()
    from srpo_jax.plan.plan import parse_options, progress

    if options["for"] == "explore":
        from srpo_jax.plan.sampling import plan as planning
        from srpo_jax.plan.sampling import table as plan_report
    else:
        from srpo_jax.plan import plan as planning
        from srpo_jax.plan import table as plan_report

    chosen, say = parse_options(options), progress()
    plans = [planning.plan(config, name, chosen, say) for name in topologies]
    if options["json"]:
        print(json.dumps(plans[0] if len(plans) == 1 else {"plans": plans}))
    elif options["markdown"]:
        print(plan_report.markdown(plans))
    else:
        print("\n\n".join(plan_report.text(each) for each in plans))


def launch(command: Command) -> int:
    from srpo_jax.launch.__main__ import main

    return main(list(command.arguments))


def checkpoints_check(command: Command) -> int:
    from srpo_jax.train.checkpoint.seal import tell_states

    return tell_states(pathlib.Path(command.workdir, "checkpoints"))


def data_import(command: Command) -> None:
    config = command.config(unused=NOT_OF_FILES)
    _settle()
    from srpo_jax.cli.data.importing import data_import as run

    run(config, command.options)


def data_card(command: Command) -> None:
    from srpo_jax.data_pipelines.exchange.card import write_card

    place, out = command.options["in"], command.options["out"]
    if not pathlib.Path(place).is_dir() or not place:
        raise UserError(f"IN={place}: name a folder, as in: srpo data card runs/mine")
    written = write_card(pathlib.Path(place), pathlib.Path(out) if out else None)
    print(f"wrote {written}")


def data_check(command: Command) -> None:
    config = command.config(unused=NOT_OF_FILES)
    _settle()
    from srpo_jax.cli.data.checking import data_check as run

    run(config, command.options)


def data_export(command: Command) -> None:
    _settle()
    from srpo_jax.cli.data.exporting import data_export as run

    run(command.options)


def data_construct(command: Command) -> None:
    config = command.config(unused=NOT_OF_FILES)
    _settle()
    from srpo_jax.cli.data.constructing import data_construct as run

    run(config, command.options)


def data_review(command: Command) -> None:
    from srpo_jax.cli.data.reviewing import data_review as run

    run(command.options)


def data_release(command: Command) -> None:
    from srpo_jax.cli.data.releasing import data_release as run

    run(command.options)


def env(command: Command) -> None:
    """Versions, platform and devices. Nothing of the environment's variables."""
    packages = (
        "srpo_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "array_record",
        "ml-collections",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "pillow",
        "libtpu",
    )
    print(f"{'python':<18}{platform.python_version()} ({sys.implementation.name})")
    print(f"{'platform':<18}{platform.platform()}")
    for name in packages:
        try:
            print(f"{name:<18}{metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name:<18}not installed")
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    counts = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds)))
    print(f"{'devices':<18}{counts} ({jax.default_backend()})")


def _params_of(config: Config, run: str) -> Any:
    """The newest parameters of the run in the folder `run`, None for "": those of model.path."""
    if not run:
        return None
    from srpo_jax.explore.workers import is_alone
    from srpo_jax.export.export import sampling_params

    step, params = sampling_params(config, run, alone=is_alone(config))
    print(f"policy: checkpoint {step} of {run}", flush=True)
    return params


def _check_arbiter(config: Config) -> None:
    """Errors: UserError for an arbiter that does not exist, before anything is sampled for it. A
    user's own module may lie where judging is done.
    """
    from srpo_jax.arbiter.registry import find_arbiter

    if ":" not in config.arbiter.kind:
        find_arbiter(config.arbiter.kind)


def _settle() -> None:
    """Marks absl's global flags as parsed (grain reads them and fails when nobody has), keeps
    orbax's notes to itself off the terminal (what goes wrong there is raised as well), and keeps
    jax from asking libtpu for a TPU that is not there.
    """
    from absl import flags, logging

    logging.set_verbosity(logging.FATAL)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    leave_libtpu_alone()


def _workdir(command: Command, *, must_exist: bool = False) -> str:
    path = pathlib.Path(command.workdir)
    if path.exists() and not path.is_dir():
        raise UserError(f"workdir {path} is a file")
    if must_exist and not path.is_dir():
        raise UserError(f"workdir {path} does not exist")
    return str(path)
