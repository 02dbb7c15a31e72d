"""The engine against transformers' generate, against a full forward pass, and against chance."""

import dataclasses

import jax
import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.requests import SampleRequest
from tests.support.chance import fits
from tests.support.engines import make_engine, reference_path, told
from tests.support.tiny import oracle_inputs


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' model of the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = transformers.AutoModelForImageTextToText
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


PENALTIES = Sampling(0.0, repetition_penalty=1.3, presence_penalty=0.5)


def presence(begin: int, penalty: float):
    """transformers has no such processor. begin: of what was drawn."""
    transformers = pytest.importorskip("transformers")

    class Presence(transformers.LogitsProcessor):
        def __call__(self, ids, scores):
            drawn = ids[0, begin:].unique()
            scores = scores.clone()
            scores[0, drawn] -= penalty
            return scores

    return transformers.LogitsProcessorList([Presence()])


@pytest.mark.parametrize("sampling", [Sampling(0.0), PENALTIES], ids=["plain", "penalties"])
def test_greedy_equals_transformers_generate(folder, policy, theirs, pictures, prompts, sampling):
    """Token for token, with no, one and two ragged pictures, from the prompt alone and after each
    prefix of a reference path that is prefilled only once, of which the ids count as said where the
    branch has them; three questions in two rows, and slots that are taken again."""
    torch = pytest.importorskip("torch")
    processor = policy[2]
    path, starts = reference_path(processor)
    seeds = (0,) * len(starts)
    requests = [SampleRequest(prompt, path, tuple(starts), seeds) for prompt in prompts]
    ours = make_engine(policy, sampling=sampling, max_new_tokens=16)(requests)

    for i, images in enumerate([pictures[:1], pictures, []]):
        for r, start in enumerate(starts):
            inputs = oracle_inputs(folder, [*prompts[i].tokens, *path[:start]], images)
            before = inputs["input_ids"].shape[1]
            out = theirs.generate(
                **inputs,
                attention_mask=torch.ones_like(inputs["input_ids"]),
                max_new_tokens=16,
                do_sample=False,
                suppress_tokens=list(processor.suppress_ids),
                eos_token_id=list(processor.eos_ids),
                pad_token_id=0,
                repetition_penalty=sampling.repetition_penalty,
                logits_processor=presence(before, sampling.presence_penalty),
            )[0, before:].tolist()
            assert ours[i][r].tokens.tolist() == out, (i, r)
            assert ours[i][r].finished == (out[-1] in processor.eos_ids)


LESS_SURE = 0.3


@pytest.mark.parametrize(
    "sampling", [Sampling(0.5), Sampling(1.0, top_p=0.8)], ids=["cold", "top_p"]
)
def test_first_tokens_are_draws_from_transformers_softmax(
    folder, policy, theirs, pictures, prompts, sampling
):
    """2000 branches of a question with pictures and of one without: chi-square against what
    transformers' model and its logits warpers say, below the 99.9 % point; no suppressed or padded
    id is ever drawn. A branch may have one token only."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (model, params, processor), count = policy, 1000
    # The tiny policy is almost certain of its first token; a final norm of a third is less so.
    scale = {"scale": params["norm"]["scale"] * LESS_SURE}
    level = model, {**params, "norm": scale}, processor
    engine = make_engine(level, branches=count, max_new_tokens=1, sampling=sampling, rows=1)
    for prompt, images in ((prompts[1], pictures), (prompts[2], [])):
        requests = [
            SampleRequest(prompt, np.zeros(0, np.int32), (0,) * count, tuple(range(i, i + count)))
            for i in (0, count)
        ]
        samples = [sample for own in engine(requests) for sample in own]
        assert {len(sample.tokens) for sample in samples} == {1}
        drawn = np.array([sample.tokens[0] for sample in samples])
        with torch.no_grad():
            scores = theirs(**oracle_inputs(folder, prompt.tokens, images)).logits[:, -1]
        scores *= LESS_SURE
        scores[:, list(processor.suppress_ids)] = -torch.inf
        scores[:, processor.config.text.vocab_size :] = -torch.inf
        for warper in (
            transformers.TemperatureLogitsWarper(sampling.temperature),
            transformers.TopPLogitsWarper(sampling.top_p),
        ):
            scores = warper(None, scores)
        fits(drawn, torch.softmax(scores[0], -1).numpy())


def test_a_branch_depends_on_its_own_seed_only(policy, prompts, refilled):
    """The same (prompt, prefix, seed) gives the same tokens alone, in another slot and beside
    other questions and branches; other seeds give other tokens."""
    engine = refilled[0]
    path, starts = reference_path(policy[2])
    seed = 2**63 + 12345
    alone = engine([SampleRequest(prompts[0], path, (starts[1],), (seed,))])[0][0]
    mixed = engine(
        [
            SampleRequest(prompts[1], path, (0, starts[2]), (1, 2)),
            SampleRequest(prompts[0], path, (0, starts[2], starts[1], starts[1]), (7, 8, seed, 9)),
        ]
    )[1]
    assert mixed[2].tokens.tolist() == alone.tokens.tolist()
    assert mixed[2].logp == pytest.approx(alone.logp, abs=1e-4)
    assert mixed[3].tokens.tolist() != alone.tokens.tolist()
    many = engine([SampleRequest(prompts[0], path, (starts[1],) * 30, (*range(29), seed))])[0]
    assert len(many) == 30  # more branches than a row has take a second row
    assert many[29].tokens.tolist() == alone.tokens.tolist()
    low_bits = engine([SampleRequest(prompts[0], path, (starts[1],), (12345,))])[0][0]
    assert low_bits.tokens.tolist() != alone.tokens.tolist()  # all 64 bits of a seed count


def test_what_does_not_fit_is_refused_by_name(policy, prompts):
    """Nothing is cut: too long a prompt or too many patches is an error naming the question."""
    request = SampleRequest(prompts[1], np.zeros(0, np.int32), (0,), (0,), name="record 'r7'")
    with pytest.raises(UserError, match="record 'r7'.*tokens"):
        make_engine(policy, prompt_tokens=16)([request])
    with pytest.raises(UserError, match="record 'r7'.*patches"):
        make_engine(policy, patches=8)([request])


def test_wrong_arguments_are_refused(policy, prompts):
    """Sizes below 1, no way to draw, rows that do not divide over the mesh, and
    branches without a seed or outside their path.
    """
    for wrong in ({"rows": 0}, {"branches": 0}, {"max_new_tokens": 0}, {"slots": -1}):
        with pytest.raises(ValueError, match="start at"):
            make_engine(policy, **wrong)
    for wrong in ({"temperature": -0.1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 1.5}):
        with pytest.raises(ValueError, match="no way to sample"):
            Sampling(**wrong)
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"))
    assert make_engine(policy, rows=8, mesh=mesh).shape.rows == 8
    with pytest.raises(ValueError, match="6 rows do not divide over 4 devices"):
        make_engine(policy, rows=6, mesh=mesh)
    path = np.asarray([5, 6], np.int32)
    for starts, seeds, said in (((0, 1), (0,), "one seed"), ((3,), (0,), "outside its path")):
        with pytest.raises(ValueError, match=said):
            make_engine(policy)([SampleRequest(prompts[2], path, starts, seeds)])


def test_requests_say_how_they_are_drawn(policy, prompts):
    """Temperature, top_p, limit and stop texts of each, in one engine: what an engine has that is
    made for them, to the token."""
    none = np.zeros(0, np.int32)
    ways = [(0.0, 1.0, 8, ()), (2.0, 1.0, 5, ()), (2.0, 0.4, 1, ()), (2.0, 1.0, 8, ("e", "a"))]
    requests = [
        SampleRequest(
            *(prompts[i % 3], none, (0,) * 3, tuple(range(10 * i, 10 * i + 3)), f"{i}"),
            stop=stop,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=most,
        )
        for i, (temperature, top_p, most, stop) in enumerate(ways * 2)
    ]
    mixed = make_engine(policy, sampling=None, rows=3, branches=2)
    found = mixed(requests)
    lengths = set()
    for i, (temperature, top_p, most, stop) in enumerate(ways):
        made_for = Sampling(temperature, top_p)
        alone = make_engine(policy, sampling=made_for, max_new_tokens=most, stop=stop)
        for ours, theirs in zip(
            found[i :: len(ways)], alone(requests[i :: len(ways)]), strict=True
        ):
            assert told([ours]) == told([theirs])
            lengths |= {len(sample.tokens) for sample in ours}
    assert {1, 5, 8} <= lengths
    with pytest.raises(ValueError, match="more new tokens than"):
        mixed([dataclasses.replace(requests[0], max_new_tokens=9)])
    with pytest.raises(ValueError, match="no way to sample"):
        mixed([dataclasses.replace(requests[0], top_p=0)])
