"""`srpo plan`: candidates, refusals, the cache, processes that end, and one real compilation."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from srpo_jax.cli import main as cli
from srpo_jax.command.table import VERBS
from srpo_jax.config.load import load_config
from srpo_jax.distributed.accelerators import CHIPS, parse_slice
from srpo_jax.distributed.sharding import param_shardings
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.plan import candidates as plan_candidates
from srpo_jax.plan import compiler_pool as plan_run
from srpo_jax.plan import table as plan_report
from srpo_jax.plan.compile_job import describe_state, out_of_memory
from srpo_jax.plan.estimate import Model, estimate, hbm_bytes, kernel_flops, product_flops
from srpo_jax.plan.plan import parse_options, plan
from studies.speed import plan_table
from tests.support import RELEASED, ROOT, tiny

OPTIONS = {name: default for name, (default, _) in VERBS["plan"].options.items()}
POD = f"{ROOT}/configs/pod.py"
UNUSED = ("arbiter.kind", "data.train_records", "data.test_records")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def options(**changes):
    return parse_options({**OPTIONS, **changes})


@pytest.fixture
def seven(tmp_path):
    """configs/pod.py with the released 7B's config.json."""
    folder = tmp_path / "7b"
    folder.mkdir()
    released = RELEASED / "qwen2_5_vl_7b.json"
    (folder / "config.json").write_text(released.read_text())
    return load_config(POD, [f"--config.model.path={folder}"], UNUSED)


@pytest.fixture
def small(tmp_path):
    """A tiny model: 2 layers, 4 heads, 2 kv heads; only its config.json."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.config(tied=False, dtype="bfloat16")))
    return load_config(POD, [f"--config.model.path={folder}"], UNUSED)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Jobs are answered by plan_fake_worker.py; gives the process ids that were started."""
    starts = tmp_path / "starts"
    starts.touch()
    monkeypatch.setattr(plan_run, "WORKER", "tests.support.plan_fake_worker")
    monkeypatch.setattr(plan_run, "source_digest", lambda worker: "same")
    monkeypatch.setitem(plan_run.ENVIRONMENT, "PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STARTS", str(starts))
    return lambda: [int(line) for line in starts.read_text().split()]


# -- candidates ------------------------------------------------------------------------------------


def test_only_legal_candidates(seven):
    """Tensor divides 28 heads and 4 kv heads, rows divide over data x fsdp; others say why not."""
    params = abstract_params(load_model_config(seven.model.path))
    found, refused = plan_candidates.candidates(seven, params, parse_slice("v5e:8x8"))
    assert {c.mesh for c in found} == {(1, 64, 1), (1, 32, 2), (1, 16, 4)}
    assert all(c.rows % (c.data * c.fsdp) == 0 and c.rows in (64, 128) for c in found)
    assert {c.remat for c in found} >= {"none", "full"}
    assert len(refused) == 2 and all("tensor=" in why and "\n" not in why for why in refused)


def test_replicas_where_a_parameter_does_not_divide(seven):
    """The vision tower's 1280 does not divide by 512: two replicas over 256 parts each."""
    params = abstract_params(load_model_config(seven.model.path))
    found, _ = plan_candidates.candidates(seven, params, parse_slice("v5p:8x8x8"))
    assert {c.mesh for c in found} == {(2, 256, 1), (1, 256, 2), (1, 128, 4)}


@pytest.mark.parametrize(
    "asked, said",
    [
        (dict(meshes=[(1, 8, 8)]), "tensor=8"),
        (dict(meshes=[(1, 32, 1)]), "is not 64 devices"),
        (dict(rows=[40]), "rows must be a multiple of 64"),
    ],
)
def test_what_is_asked_for_and_not_legal_is_refused(seven, asked, said):
    params = abstract_params(load_model_config(seven.model.path))
    with pytest.raises(UserError, match=said) as error:
        plan_candidates.candidates(seven, params, parse_slice("v5e:8x8"), **asked)
    assert "\n" not in str(error.value)


def test_rows_hold_the_questions_they_are_full_of(seven):
    """A full row: budgets in proportion to its tokens, the tree's own visible pairs; a tree that
    is longer than a row is cut, and its repeated prompt is work too."""
    config = load_model_config(seven.model.path)
    question = plan_candidates.Question()
    rows = plan_candidates.rows_of(seven, config, question, 8192)
    budgets = rows.budgets
    assert budgets.tokens == 8192 and budgets.targets < 8192
    assert budgets.patches % config.vision.patch_unit == 0
    assert rows.work.tokens == pytest.approx(question.fill * 8192)
    tokens = 1024 + 64 + 7 * 40 + 8 * 720  # picture, words, path, 8 branches at 6 points
    assert rows.questions == pytest.approx(question.fill * 8192 / tokens)
    assert rows.blocked_pairs(1) == pytest.approx(rows.work.pairs)
    assert rows.work.pairs < rows.blocked_pairs(256) < rows.blocked_pairs(512) < 8192**2
    cut = plan_candidates.rows_of(seven, config, question, 4096)
    assert len(cut.subtree_ends) > 1
    assert cut.work.patches / cut.questions > rows.work.patches / rows.questions
    assert cut.budgets.patches >= 4096


def test_the_least_memory_grows_with_what_needs_memory(seven):
    """More rows, less rematerialisation and a smaller slice need more; 16 GB chips take the 7B with
    full rematerialisation on 64 of them and not on 4. A policy unknown here rules nothing out."""
    config = load_model_config(seven.model.path)
    rows = plan_candidates.rows_of(seven, config, plan_candidates.Question(), 8192)

    def gib(devices, count, remat):
        candidate = plan_candidates.Candidate(1, devices, 1, count, remat)
        state = 12 * 8.3e9 / devices
        least = plan_candidates.least_memory(
            seven, config, candidate, rows.budgets, int(state), int(state / 3), tower=True
        )
        return least / 2**30

    assert gib(64, 64, "full") < gib(64, 128, "full") < gib(64, 64, "none")
    assert gib(64, 64, "full") < 15.75 < gib(64, 64, "none")
    assert gib(4, 4, "full") > 15.75
    policies = ("none", "dots", "attention", "full", "offload")
    needs = [gib(64, 64, policy) for policy in policies]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)
    assert gib(64, 64, "of next year") == gib(64, 64, "offload")


def test_gradients_are_as_wide_as_their_parameters(seven):
    """Half of the bytes in bfloat16, and none for what is frozen."""
    config = load_model_config(seven.model.path)
    params = abstract_params(config)
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    shardings = param_shardings(params, plan_candidates.abstract_mesh((1, 64, 1)))
    paths = list(by_path(params))
    wide, half = (plan_candidates.trained_bytes(p, shardings, paths) for p in (params, narrow))
    assert wide == 2 * half > 4 * 8e9 / 64
    assert plan_candidates.trained_bytes(params, shardings, paths[:1]) < wide / 10


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--topology=v5e:3x3"], "v5e has 1x1, 2x2"),
        (["--topology=v5e:16x32"], "can be had"),
        (["--topology=v5e:8x4"], "did you mean v5e:4x8?"),
        (["--topology=v5litepod:8x8"], "did you mean v5e:8x8?"),
        (["--topology=h100:8"], "there is v5e, v5p, v6e, tpu7x"),
        ([], "--topology=NAME is missing"),
        (["--topology=v5e:4x4", "--meshes=5"], "write fsdp*tensor"),
        (["--topology=v5e:4x4", "--rows=many"], "--rows: 'many'"),
        (["--topology=v5e:4x4", "--remat=some"], "allowed is none | full | dots"),
        (["--topology=v5e:4x4", "--question=size=3"], "no 'size'; there is image_tokens"),
        (["--topology=v5e:4x4", "--question=fill=1.5"], "fill in (0, 1]"),
        (["--topology=v5e:4x4", "--top=0"], "--top=0: at least 1"),
        (["--topology=v5e:4x4", "--price=free"], "--price: 'free'"),
        (["--topology=v5e:4x4", "--json", "--markdown"], "exclude each other"),
        (["--topology=v5e:4x4", "--config.model.path=nowhere"], "no such file"),
        (["--topology=v5e:4x4"], "config.model.path is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, said):
    if argv and "nowhere" not in argv[-1] and "empty" not in said:
        argv = [*argv, f"--config.model.path={RELEASED}"]
    assert cli.main(["plan", f"--config={POD}", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err, err


@pytest.mark.parametrize("version", [None, "0.0.52"])
def test_libtpu_that_is_missing_or_another_is_refused(monkeypatch, version):
    """The line says which one to install, and how."""
    real = plan_run.metadata.version

    def fake_version(name):
        if name != "libtpu":
            return real(name)
        if version is None:
            raise plan_run.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(plan_run.metadata, "version", fake_version)
    with pytest.raises(UserError, match=r"pip install 'srpo_jax\[tpu\]'") as error:
        plan_run.check_libtpu()
    assert "\n" not in str(error.value)


@needs_libtpu
def test_nothing_that_fits_is_said_so(seven):
    """A 7B on one chip: no compilation is tried."""
    with pytest.raises(UserError, match="nothing fits v5e:1x1: .* needs at least"):
        plan(seven, "v5e:1x1", options(rows="1"), say=print)


def test_the_compilers_number_is_read_from_every_form_of_its_message():
    hbm = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.75G of 15.75G hbm."
    assert out_of_memory(hbm)["needed_gib"] == 18.75
    temporaries = "HLO temporaries (1.5T) exceeds available HBM (15.75G)."
    assert out_of_memory(temporaries)["needed_gib"] == 1536
    assert out_of_memory("Ran out of memory")["needed_gib"] is None


# -- slices ----------------------------------------------------------------------------------------


@needs_libtpu
@pytest.mark.tpu_aot
def test_every_slice_of_the_table_exists():
    """libtpu knows them all, with the devices that the table says; axes may be parts of sides."""
    script = (
        "import json, sys\n"
        "from srpo_jax.distributed.accelerators import CHIPS, parse_slice\n"
        "from srpo_jax.distributed.mesh import make_mesh\n"
        "from srpo_jax.plan.compile_job import devices_of, extent\n"
        "for chip in CHIPS.values():\n"
        "    for shape in chip.shapes:\n"
        "        where = parse_slice(f'{chip.name}:{shape}')\n"
        "        found = devices_of(where.name, where.host_bounds)\n"
        "        assert len(found) == where.devices, where.name\n"
        "        assert found[0].device_kind == chip.kind, found[0].device_kind\n"
        "found = devices_of('v5e:8x8', None)\n"
        "mesh = make_mesh(1, 32, 2, devices=found)\n"
        "assert (extent(mesh, ('tensor',)), extent(mesh, ('fsdp',))) == ([2, 1, 1], [4, 8, 1])\n"
    )
    env = os.environ | plan_run.ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_links_that_a_group_can_use():
    """A whole ring side gives two links, a line or a part of a side one, two sides add up."""
    ring, line = parse_slice("v5e:16x16"), parse_slice("v5e:8x8")
    rate = CHIPS["v5e"].ici_gbs
    assert [ring.link_gbs(extent) for extent in ((16, 16), (16, 1), (2, 1), (4, 4))] == [
        4 * rate,
        2 * rate,
        rate,
        2 * rate,
    ]
    assert line.link_gbs((8, 8)) == 2 * rate
    assert parse_slice("v5p:4x4x4").link_gbs((4, 4, 4)) == 6 * CHIPS["v5p"].ici_gbs
    two = parse_slice("tpu7x:2x2x1")
    assert two.link_gbs((2, 2, 1)) == CHIPS["tpu7x"].ici_gbs  # two devices share a chip's links


# -- processes and cache ---------------------------------------------------------------------------


def job(rows: int) -> dict:
    return {
        "config": {"model": {"path": "x"}, "train": {"steps": 1}, "pack": {"rows": rows}},
        "effort": -1.0,
    }


def run(folder, rows, wanted, report=lambda line: None, workers=2):
    with plan_run.Compiler(folder, "model", report, workers=workers) as compiler:
        names = [f"rows={count}" for count in rows]
        return compiler.until([job(count) for count in rows], names, wanted)


def test_it_compiles_until_enough_fit_and_remembers(fake, tmp_path):
    """What does not fit is an answer and is kept like one; a failure is told and tried again."""
    lines = []
    results = run(tmp_path, [8, 12, 4, 20], 1, lines.append, workers=1)
    assert [r and r["status"] for r in results] == ["oom", "refused", "ok", None]
    assert len(fake()) == 3
    assert any("does not fit: needs 18.8 GiB" in line for line in lines)
    assert any("about" in line for line in lines)
    lines.clear()
    again = run(tmp_path, [8, 12, 4, 20], 1, lines.append, workers=1)
    assert again == results and len(fake()) == 3
    assert all(line.startswith("known") for line in lines)
    failed = run(tmp_path, [16], 1)
    assert failed[0]["status"] == "failed" and "broken" in failed[0]["message"]
    assert run(tmp_path, [16], 1)[0]["status"] == "failed" and len(fake()) == 5


def test_the_key_is_what_changes_the_program(fake):
    """Not the folder of the model or the number of steps; but rows, objective and jax's version."""
    base = job(4)
    key = plan_run.key_of(base, "model", ["jax 1"])
    moved = json.loads(json.dumps(base))
    moved["config"]["model"]["path"] = "elsewhere"
    moved["config"]["train"]["steps"] = 99
    moved["config"]["data"] = {"trees": "y"}
    assert plan_run.key_of(moved, "model", ["jax 1"]) == key
    frozen = json.loads(json.dumps(base))
    frozen["config"]["train"]["freeze"] = ["vision/.*"]
    others = [
        (job(8), "model", ["jax 1"]),
        (base, "other", ["jax 1"]),
        (base, "model", ["jax 2"]),
        (frozen, "model", ["jax 1"]),
        (base | {"effort": 0}, "model", ["jax 1"]),
    ]
    assert len({key, *(plan_run.key_of(*other) for other in others)}) == 6


def test_the_key_follows_a_loss_from_outside(tmp_path, monkeypatch):
    """What its module says is part of the key, as the package's own source is."""
    monkeypatch.chdir(tmp_path)
    named = job(4)
    named["config"]["objective"] = {"contrast": "a_loss_to_plan:Loss"}
    keys = set()
    for text in ("Loss = 1\n", "Loss = 2\n"):
        (tmp_path / "a_loss_to_plan.py").write_text(text)
        keys.add(plan_run.key_of(named, "model", ["jax 1"]))
    assert len(keys) == 2


def test_the_digest_covers_what_the_step_is_made_of(tmp_path, monkeypatch):
    """Model, attention, step; not the report or the table of prices."""
    read = set()
    real = plan_run._file_of

    def note(name):
        file = real(name)
        if file:
            read.add(file.relative_to(ROOT).as_posix())
        return file

    monkeypatch.setattr(plan_run, "_file_of", note)
    first = plan_run.source_digest()
    assert first == plan_run.source_digest() and len(first) == 16
    assert read >= {
        f"srpo_jax/{name}.py"
        for name in (
            "train/train_step",
            "train/losses/objective",
            "train/losses/pairwise",
            "train/losses/target_logps",
            "distributed/sharding",
            "plan/hlo_cost",
            "models/blocks/decoder",
            "models/families/qwen2_5_vl/model",
            "models/attention/dispatch",
            "models/attention/pallas_tpu",
        )
    }
    assert not read & {
        "srpo_jax/distributed/accelerators.py",
        "srpo_jax/plan/table.py",
        "srpo_jax/train/loop.py",
    }


def test_an_interruption_leaves_no_process_and_keeps_what_is_done(fake, tmp_path):
    """Ctrl-C while one compiles: it is gone at once, the one before is in the cache."""

    def interrupt(line):
        if line.startswith("start: rows=20"):
            while len(fake()) < 2:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [4, 20], 2, interrupt, workers=1)
    assert len(fake()) == 2 and not any(map(alive, fake()))
    assert run(tmp_path, [4], 1)[0]["status"] == "ok" and len(fake()) == 2


def test_a_killed_planner_takes_its_processes_along(fake, tmp_path):
    """SIGKILL cannot be caught: the worker sees its input end."""
    script = (
        "import json, pathlib, sys; from srpo_jax.plan import compiler_pool as plan_run\n"
        "plan_run.WORKER = 'tests.support.plan_fake_worker'\n"
        "plan_run.ENVIRONMENT['PYTHONPATH'] = sys.argv[2]\n"
        "with plan_run.Compiler(pathlib.Path(sys.argv[1]), 'model', print) as compiler:\n"
        "    compiler.until([json.loads(sys.argv[3])], ['rows=20'], 1)\n"
    )
    path = plan_run.ENVIRONMENT["PYTHONPATH"]
    env = os.environ | {"PYTHONPATH": path}
    planner = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, path, json.dumps(job(20))], env=env
    )
    try:
        wait_for(lambda: fake())
        planner.send_signal(signal.SIGKILL)
        planner.wait()
        wait_for(lambda: not any(map(alive, fake())))
    finally:
        planner.kill()


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:  # gone, or reaped between open and read: ProcessLookupError
        return False
    return state != "Z"


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- figures ---------------------------------------------------------------------------------------


@needs_libtpu
def test_figures_of_a_plan(fake, small, tmp_path, monkeypatch):
    """The roofline is the sum that the docstring says; text, Markdown and JSON hold the figures."""
    chosen = options(
        rows="4",
        top=2,
        cache=str(tmp_path),
        row_tokens=2048,
        meshes="4*1,2*2",
        question="image_tokens=16,branch_tokens=30",
    )
    found = plan(small, "v5e:2x2", chosen, say=print)
    json.dumps(found)
    best = found["candidates"][0]
    seconds = best["seconds"]
    chip = CHIPS["v5e"]
    executed = 1e12 + kernel_flops(*model_of(small, found), chip)  # products are the fake's
    assert seconds["compute"] == pytest.approx(executed / (0.7 * 197e12))
    assert seconds["network"] == pytest.approx(6 / (2 * chip.ici_gbs))  # two sides of 2
    assert seconds["serial"] == pytest.approx(
        max(seconds["compute"], seconds["memory"]) + seconds["network"]
    )
    assert best["mfu"][0] < best["mfu"][1]
    assert best["usd_per_1000_questions"] == pytest.approx(
        1000 / best["questions_per_second"] / 3600 * 4 * chip.price
    )
    text = plan_report.text(found)
    assert max(map(len, text.splitlines())) < 180
    assert "--config.mesh.fsdp=" in text and "no TPU was measured" in text
    table = plan_report.markdown([found]).splitlines()
    assert len({line.count("|") for line in table[:4]}) == 1
    page = tmp_path / "page.md"
    page.write_text(plan_table.PAGE.read_text())
    monkeypatch.setattr(plan_table, "PAGE", page)
    for _ in range(2):  # the second time the table is replaced
        plan_table.write_page("\n".join(table), "table")
        assert page.read_text().count(table[2]) == 1


def test_the_guess_before_compiling_prefers_what_it_should(seven):
    """Recomputation costs time, and so does the way to the host; a row more per chip shares the
    gathered weights; a smaller optimizer state moves fewer bytes."""
    model = model_with(seven, plan_candidates.Question(), 8192)
    where = parse_slice("v5p:4x4x4")

    def per_row(*candidate):
        candidate = plan_candidates.Candidate(*candidate)
        return estimate(model, candidate, where, None).serial / candidate.rows

    times = [
        per_row(1, 64, 1, 64, policy) for policy in ("none", "dots", "attention", "full", "offload")
    ]
    assert times == sorted(times) and len(set(times)) == len(times)
    assert per_row(1, 64, 1, 128, "full") < per_row(1, 64, 1, 64, "full")
    one = plan_candidates.Candidate(1, 64, 1, 64, "full")
    light = model._replace(state=model.state._replace(opt_state=()))
    moments = 8 * sum(x.size for x in jax.tree.leaves(model.params))
    saved = hbm_bytes(model, one) - hbm_bytes(light, one)
    assert saved == pytest.approx(2 * moments / 64)


# -- the real compiler -----------------------------------------------------------------------------


@pytest.mark.slow
@needs_libtpu
@pytest.mark.tpu_aot
def test_a_tiny_model_is_planned_for_real(small, tmp_path, capsys):
    """Through the command line: memory, FLOPs as by formula, kernels, traffic; the second time
    nothing is compiled."""
    argv = [
        "plan",
        f"--config={POD}",
        f"--config.model.path={small.model.path}",
        "--topology=v5e:2x2",
        "--rows=4",
        "--meshes=2*2",
        "--remat=full",
        "--row_tokens=1024",
        "--top=1",
        "--json",
        "--question=image_tokens=16,branch_tokens=30",
        f"--cache={tmp_path}",
    ]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    (entry,) = found["candidates"]
    assert entry["status"] == "ok", entry
    assert 0 < entry["argument_gib"] < entry["peak_gib"] < entry["hbm_gib"]
    state = 12 * found["parameters"] / 4  # float32 parameters and moments over 4 devices
    assert state < entry["argument_gib"] * 2**30 < 2 * state + 8e6
    # The rest is 100 patches' attention, which needs no kernel, and the patch embedding, which
    # `tensor` does not split: 3 % here.
    formula = product_flops(*model_of(small, found))
    assert 1.0 < entry["compiled_flops_per_device"] / formula < 1.04
    assert entry["executed_flops_per_device"] > entry["compiled_flops_per_device"]
    # Two layers, forward and again.
    assert entry["kernels"] == {"tree_attention_forward": 4, "tree_attention_backward": 2}
    assert {"fsdp"} < {axis for each in entry["collectives"] for axis in each["axes"]}
    assert entry["seconds"]["network"] > 0 and not entry["unknown_loops"]
    assert "start:" in err
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == found and "start:" not in err and "known:" in err


def model_with(cfg, question, row_tokens: int) -> Model:
    config = load_model_config(cfg.model.path)
    optimizer, _, state = describe_state(cfg, config)
    rows = plan_candidates.rows_of(cfg, config, question, row_tokens)
    return Model(cfg, config, state, optimizer.trainable, False, rows)


def model_of(cfg, found: dict):
    """(what the plan was made of, its best candidate)."""
    names = {field.name for field in dataclasses.fields(plan_candidates.Question)}
    question = {name: value for name, value in found["question"].items() if name in names}
    model = model_with(cfg, plan_candidates.Question(**question), found["row"]["tokens"])
    best = {name: found["candidates"][0][name] for name in plan_candidates.Candidate._fields}
    return model, plan_candidates.Candidate(**best)
