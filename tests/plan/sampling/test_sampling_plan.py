"""`srpo plan --for=explore`: workload, roofline, choice of meshes; and what the compiled programs
hold: no weights on the network, and the memory that the formula says."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.cli import main as cli
from srpo_jax.command.table import VERBS
from srpo_jax.config.fields import Config
from srpo_jax.config.load import load_config
from srpo_jax.config.sampling_sections import ExploreSettings
from srpo_jax.config.sections import ModelSettings
from srpo_jax.distributed.accelerators import parse_slice
from srpo_jax.errors import UserError
from srpo_jax.inference import sampling_mesh
from srpo_jax.plan.candidates import Question
from srpo_jax.plan.compiler_pool import Compiler
from srpo_jax.plan.hlo_cost import read_stats
from srpo_jax.plan.plan import parse_options
from srpo_jax.plan.sampling import plan as planning
from srpo_jax.plan.sampling import table
from srpo_jax.plan.sampling.estimate import Candidate
from srpo_jax.plan.sampling.workload import branch_points, row_steps, waiting, workload
from tests.support import RELEASED, ROOT

OPTIONS = {name: default for name, (default, _) in VERBS["plan"].options.items()}
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def options(**changes):
    return parse_options({**OPTIONS, **changes})


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """configs/qwen2_5_vl_7b.py with the released config.json."""
    folder = tmp_path_factory.mktemp("7b")
    (folder / "config.json").write_text((RELEASED / "qwen2_5_vl_7b.json").read_text())
    unused = ("arbiter.kind", "judge.model")
    config = f"{ROOT}/configs/qwen2_5_vl_7b.py"
    return Config(**vars(load_config(config, [f"--config.model.path={folder}"], unused)))


def task_of(cfg, topology, **changes):
    return planning._task(cfg, parse_slice(topology), options(**changes))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 12))
def test_a_row_takes_as_long_as_its_fullest_slot(lengths, slots):
    """As simulated step by step: every slot that is done takes the next branch of the queue."""
    queue, left, steps = list(lengths), [0] * slots, 0
    while queue or any(left):
        for slot in range(slots):
            while not left[slot] and queue:
                left[slot] = queue.pop(0) - 1
        if not any(left):
            break
        left = [max(n - 1, 0) for n in left]
        steps += 1
    assert row_steps(np.asarray(lengths), slots) == steps


def test_fewer_slots_idle_less():
    """Tokens do not depend on the slots, idle ones grow with them; one part of the mesh waits for
    no other."""
    cfg = Config(explore=ExploreSettings(branches=8, max_new_tokens=512))
    found = [workload(cfg, Question(branch_tokens=180), slots) for slots in (1, 8, 48)]
    used = [each.tokens / (each.steps * n) for each, n in zip(found, (1, 8, 48))]
    assert len({each.tokens for each in found}) == 1
    assert used == sorted(used, reverse=True) and used[0] > 0.99 and used[2] < 0.4
    assert waiting(8, 1, 1000) == (0, 1)
    assert waiting(480, 16, 1000).prefills > waiting(60, 2, 1000).prefills > 1
    first = dataclasses.replace(cfg, explore=ExploreSettings(branch_points="first"))
    assert branch_points(first, Question()) == 1


def test_meshes_are_those_of_exploring(seven):
    """Divisors of the 4 kv heads that leave room; hosts explore alone where the policy fits one;
    the batch is what the memory holds, or pays."""
    task = task_of(seven, "v5e:4x4")
    assert task.where.name == "v5e:2x2" and task.hosts == 4
    found, dropped, chosen = planning.candidates(task, options())
    assert [c.mesh for c in found] == [(2, 1, 2), (1, 1, 4)]
    assert "15.8 GiB" in dropped[0]["why"] and dropped[0]["mesh"] == (4, 1, 1)
    assert chosen is not None and chosen.mesh == (2, 1, 2)
    assert all(c.rows // c.parts == CHIP_ROWS for c in found)
    together = dataclasses.replace(
        seven, explore=dataclasses.replace(seven.explore, together="yes")
    )
    assert task_of(together, "v5e:4x4").where.name == "v5e:4x4"
    found, _, _ = planning.candidates(task, options(meshes="1*4", rows="5,40"))
    assert found == [Candidate(1, 1, 4, 5), Candidate(1, 1, 4, 40)]
    for asked, why in ((dict(meshes="8*1"), "does not cover 4"), (dict(remat="full"), "training")):
        with pytest.raises(UserError, match=why) as error:
            planning.plan(seven, "v5e:2x2", options(**asked))
        assert "\n" not in str(error.value)


CHIP_ROWS = 240 // 4  # slots for which a step of v5e is bound by reading the weights


def program(flops, sent):
    collective = {
        "kind": "all-reduce",
        "axes": ["tensor"],
        "extent": [2, 2, 1],
        "count": 57,
        "wire_bytes": sent,
        "largest": [["jit(decode)/while/o", 1.0]],
    }
    return {"flops": flops, "kernel_flops": 0.0, "collectives": [collective]}


def result(peak=2**33):
    programs = {"prefill": program(1e12, 1e9), "decode": program(1e12, 1.5e8)}
    sizes = {name: 2**31 for name in ("weight_bytes", "state_bytes")}
    return {"status": "ok", "peak_bytes": peak, "programs": programs, "seconds": 9.0, **sizes}


def test_the_roofline_of_exploring(seven):
    """Weights of the decoder and head are read once a step, caches as full; parts of the time sum
    to 1; the rate is branches' tokens over steps and prefills; hosts add up."""
    task, wide = task_of(seven, "v5e:2x2"), task_of(seven, "v5e:4x4")
    candidate = Candidate(1, 1, 4, 30)
    found = task.estimate(candidate, result()["programs"])
    read = found.bytes
    assert read.weights == pytest.approx((7.62e9 - 152064 * 3584) * 2 / 4, rel=0.01)
    token = 2 * 28 * 128 * 2
    assert read.shared == 30 * 1296 * token and read.own == 30 * 4 * 512 * token
    assert found.step.memory == pytest.approx(sum(read) / 819e9)
    assert found.step.network == pytest.approx(1.5e8 / 100e9)  # two sides of 2, a link each
    assert found.step.compute == pytest.approx(1e12 / (0.7 * 197e12))
    assert sum(found.parts.values()) == pytest.approx(1)
    seconds = task.work.steps * found.step.serial / 30 + found.prefill.serial
    assert found.questions_per_second == pytest.approx(1 / seconds)
    assert found.tokens_per_second == pytest.approx(task.work.tokens / seconds)
    plans = [
        table.summary(each, [(candidate, result())], Question(), price=0, dropped=[], chosen=None)
        for each in (task, wide)
    ]
    rates = [each["candidates"][0]["questions_per_second"] for each in plans]
    assert rates[1] == pytest.approx(4 * rates[0])
    said = table.text(plans[1])
    assert "--config.explore.mesh=data=1,tensor=4 --config.explore.batch=30" in said
    assert "4 hosts of v5e:2x2" in said and "no TPU was measured" in said
    lines = table.markdown(plans).splitlines()[:4]
    assert len({line.count("|") for line in lines}) == 1
    assert cli.main(["plan", "--for=eval", "--topology=v5e:2x2"]) == 2


def test_a_step_is_one_round_of_a_loop_whose_length_is_data():
    """The counts are of its body, with the rounds that are given for the loop inside."""

    def decode(x, n, m):
        def body(carry):
            x, i = carry
            with jax.named_scope("inner"):
                x = jax.lax.fori_loop(0, m, lambda _, x: jnp.sin(x @ x), x)
            return x @ x, i + 1

        return jax.lax.while_loop(lambda carry: carry[1] < n, body, (x @ x, 0))

    text = jax.jit(decode).lower(jnp.zeros((8, 8)), 3, 4).compile().as_text()
    each = 2 * 8**3
    found = read_stats(text, step="jit(decode)/while", lengths={"inner/while": 5})
    assert found.flops == 6 * each and not found.unknown_loops
    assert read_stats(text).flops == 3 * each
    with pytest.raises(ValueError, match="no loop"):
        read_stats(text, step="jit(encode)/while")


# -- the real compiler -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The released 7B with 3 layers, a quarter of its width and a ninth of its vocabulary."""
    raw = json.loads((RELEASED / "qwen2_5_vl_7b.json").read_text())
    raw |= {"hidden_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 8}
    raw |= {"intermediate_size": 2048, "vocab_size": 16384}
    raw |= {name: i for i, name in enumerate(n for n in raw if n.endswith("_token_id"))}
    raw["vision_config"] |= {"depth": 2, "hidden_size": 256, "num_heads": 4}
    raw["vision_config"] |= {"intermediate_size": 512, "out_hidden_size": 1024}
    raw["vision_config"] |= {"fullatt_block_indexes": [1]}
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(raw))
    return Config(
        model=ModelSettings(path=str(folder), dtype="bfloat16"),
        explore=ExploreSettings(branches=4, max_new_tokens=200, together="no"),
    )


@pytest.fixture(scope="module")
def compiled(small, tmp_path_factory):
    """{mesh: (candidate, result)} of meshes that split the weights over tensor, and over fsdp."""
    task = task_of(small, "v5e:2x2", question="image_tokens=64,step_tokens=20")
    found, _, _ = planning.candidates(task, options(meshes="1*1*4,1*4*1", rows="32"))
    folder = tmp_path_factory.mktemp("cache")
    said = lambda line: None  # noqa: E731
    with Compiler(folder, repr(task.config), said, workers=1, worker=planning.WORKER) as compiler:
        jobs = [planning._job(task, candidate, -1.0) for candidate in found]
        results = compiler.until(jobs, [c.name for c in found], 2)
    return task, {c.mesh: (c, r) for c, r in zip(found, results)}


def sent(found, kind):
    collectives = found["programs"]["decode"]["collectives"]
    return sum(each["bytes"] for each in collectives if each["kind"] == kind)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.tpu_aot
def test_no_weight_cache_or_logits_are_gathered_for_a_token(compiled):
    """With the weights over tensor a step sends the residual stream, twice a layer and once for the
    embeddings, and what the draw needs: sums of blocks. Over fsdp it gathers all weights."""
    task, found = compiled
    candidate, result = found[1, 1, 4]
    assert result["status"] == "ok", result
    text, branches = task.config.text, candidate.rows * task.shape.slots
    logits = branches * text.padded_vocab * 4
    for kind in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert sent(result, kind) < 0.05 * logits, kind
    stream = (2 * text.num_layers + 1) * branches * text.hidden_size * 2
    assert stream <= sent(result, "all-reduce") < 1.1 * stream
    _, gathering = found[1, 4, 1]
    layers = 0.8 * 4 * result["weight_bytes"]  # of which the tables are gathered, too
    assert sent(gathering, "all-gather") > 0.5 * layers


@needs_libtpu
@pytest.mark.slow
@pytest.mark.tpu_aot
def test_memory_is_what_the_formula_says(compiled):
    """Within a tenth; and decoding copies no cache: what it needs beside its arguments is less than
    a quarter of the branches' own keys and values."""
    task, found = compiled
    candidate, result = found[1, 1, 4]
    shape = sampling_mesh.Shape(
        task.shape.tokens, task.shape.slots, task.shape.new_tokens, task.shape.patches
    )
    split = {"tensor": 4, "itemsize": 2}
    per_row = sampling_mesh.bytes_per_row(task.config.text, shape, **split)
    fixed = sampling_mesh.fixed_bytes(task.config, shape, **split)
    formula = result["weight_bytes"] + fixed + candidate.rows * per_row
    assert formula == pytest.approx(result["peak_bytes"], rel=0.1)
    token = sampling_mesh.cache_bytes(task.config.text, **split)
    own = candidate.rows * shape.slots * 256 * token
    assert result["programs"]["decode"]["beside_bytes"] < own / 4
