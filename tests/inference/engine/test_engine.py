"""The engine against transformers' generate, against a full forward pass, and against chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import PolicyModel, head_matrix
from tests.support.tiny import picture, tiny_qwen2_5_vl

TOKENS, PATCHES = 160, 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def policy(folder):
    processor = Processor.from_dir(folder)
    return PolicyModel(processor.config), load_params(folder, processor.config), processor


@pytest.fixture(scope="module")
def pictures():
    return [picture(84, 112, seed=1), picture(140, 56, seed=2)]


@pytest.fixture(scope="module")
def prompts(policy, pictures):
    processor = policy[2]
    return [
        processor.encode_question("What is in this image?", pictures[:1]),
        processor.encode_question("Compare <image> with <image>, please.", pictures),
        processor.encode_question("No picture here.", []),
    ]


@pytest.fixture(scope="module")
def warm(policy):
    """One engine for several tests: compiling costs more than sampling."""
    return make_engine(policy, max_new_tokens=12, temperature=3.0)


@pytest.fixture(scope="module")
def full_logits(policy):
    """(prompt, continuation of m tokens) -> float32 [m + 1, V]: what predicts each token of the
    continuation, and the one after it. Never cached, never batched."""
    model, params, _ = policy
    head = head_matrix(params, model.config)
    forward = jax.jit(lambda inputs: model.apply({"params": params}, inputs)[0] @ head)

    def run(prompt, continuation):
        row = causal_row(prompt, continuation)
        logits = forward(pad_rows([row], tokens=TOKENS, patches=PATCHES))
        return np.array(logits[len(prompt.tokens) - 1 : len(row["tokens"])], np.float32)

    return run


def make_engine(policy, temperature=1.0, sampling=None, **options):
    sizes = dict(rows=2, branches=4, prompt_tokens=TOKENS, patches=PATCHES, max_new_tokens=8)
    sampling = sampling or Sampling(temperature)
    return Engine(*policy, **{**sizes, "sampling": sampling, **options})


def reference_path(processor):
    pieces = [processor.encode(text) for text in ("Look at it.\n", "It is a kitchen.\n")]
    starts = [0, len(pieces[0]), len(pieces[0]) + len(pieces[1])]
    return np.asarray(sum(pieces, []), np.int32), starts


def allowed_log_softmax(processor, logits):
    logits[..., list(processor.suppress_ids)] = -np.inf
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))


def test_greedy_equals_transformers_generate(folder, policy, pictures, prompts):
    """Token for token, with no, one and two ragged pictures, from the prompt alone and after each
    prefix of a reference path that is prefilled only once; three questions in two rows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = policy[2]
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    path, starts = reference_path(processor)
    seeds = (0,) * len(starts)
    requests = [SampleRequest(prompt, path, tuple(starts), seeds) for prompt in prompts]
    ours = make_engine(policy, temperature=0.0, max_new_tokens=16)(requests)

    for i, images in enumerate([pictures[:1], pictures, []]):
        encoded = [processor.image(image) for image in images]
        vision = {}
        if encoded:
            vision["pixel_values"] = torch.from_numpy(np.concatenate([p for p, _ in encoded]))
            vision["image_grid_thw"] = torch.tensor([grid for _, grid in encoded])
        for r, start in enumerate(starts):
            ids = torch.tensor([[*prompts[i].tokens.tolist(), *path[:start].tolist()]])
            out = theirs.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == processor.config.image_token_id).int(),
                max_new_tokens=16,
                do_sample=False,
                suppress_tokens=list(processor.suppress_ids),
                eos_token_id=list(processor.eos_ids),
                pad_token_id=0,
                **vision,
            )[0, ids.shape[1] :].tolist()
            assert ours[i][r].tokens.tolist() == out, (i, r)
            assert ours[i][r].finished == (out[-1] in processor.eos_ids)


def test_first_token_is_a_draw_from_the_softmax(policy, prompts, full_logits):
    """4000 branches at temperature 2: the counts fit softmax(logits / 2) (chi-square below its
    99.9 % point), and no suppressed or padded id is ever drawn."""
    processor, count = policy[2], 1000
    engine = make_engine(policy, branches=count, max_new_tokens=1, temperature=2.0, rows=1)
    requests = [
        SampleRequest(prompts[2], np.zeros(0, np.int32), (0,) * count, tuple(range(i, i + count)))
        for i in range(0, 4 * count, count)
    ]
    drawn = np.array([s.tokens[0] for own in engine(requests) for s in own])
    assert not np.isin(drawn, processor.suppress_ids).any()
    assert drawn.max() < 386  # the tokenizer ends there, the embedding has 400 rows

    logits = full_logits(prompts[2], [])[0]
    logits[list(processor.suppress_ids)] = -np.inf
    expected = 4 * count * np.asarray(jax.nn.softmax(logits / 2.0))
    seen = np.bincount(drawn, minlength=len(expected))
    common = expected >= 5
    bins = [(seen[common], expected[common]), (seen[~common].sum(), expected[~common].sum())]
    statistic = sum(np.sum((s - e) ** 2 / e) for s, e in bins)
    freedom = common.sum()  # one bin more, one constraint
    assert common.sum() > 20
    assert statistic < freedom + 3.1 * np.sqrt(2 * freedom) + 6, (statistic, freedom)


def test_a_branch_depends_on_its_own_seed_only(policy, prompts, warm):
    """The same (prompt, prefix, seed) gives the same tokens alone, in another slot and beside
    other questions and branches; other seeds give other tokens."""
    path, starts = reference_path(policy[2])
    seed = 2**63 + 12345
    alone = warm([SampleRequest(prompts[0], path, (starts[1],), (seed,))])[0][0]
    mixed = warm(
        [
            SampleRequest(prompts[1], path, (0, starts[2]), (1, 2)),
            SampleRequest(prompts[0], path, (0, starts[2], starts[1], starts[1]), (7, 8, seed, 9)),
        ]
    )[1]
    assert mixed[2].tokens.tolist() == alone.tokens.tolist()
    assert mixed[2].logp == pytest.approx(alone.logp, abs=1e-4)
    assert mixed[3].tokens.tolist() != alone.tokens.tolist()
    many = warm([SampleRequest(prompts[0], path, (starts[1],) * 6, (1, 2, 3, 4, 5, seed))])[0]
    assert len(many) == 6  # more branches than a row has take a second row
    assert many[5].tokens.tolist() == alone.tokens.tolist()
    low_bits = warm([SampleRequest(prompts[0], path, (starts[1],), (12345,))])[0][0]
    assert low_bits.tokens.tolist() != alone.tokens.tolist()  # all 64 bits of a seed count


def test_logp_equals_a_full_forward_pass(policy, prompts, warm, full_logits):
    """logp is the sum of log-probabilities at temperature 1 over the ids that may be drawn, here
    with sampling at 3: 1e-4."""
    processor = policy[2]
    path, starts = reference_path(processor)
    requests = [SampleRequest(p, path, tuple(starts), (1, 2, 3)) for p in prompts]
    for request, samples in zip(requests, warm(requests)):
        for start, sample in zip(starts, samples):
            tokens = [*path[:start].tolist(), *sample.tokens.tolist()]
            logp = allowed_log_softmax(processor, full_logits(request.prompt, tokens))
            own = np.arange(start, len(tokens))
            assert sample.logp == pytest.approx(logp[own, sample.tokens].sum(), abs=1e-4)


def test_ends_at_an_end_token_and_compiles_once(policy, prompts, warm, full_logits):
    """A branch keeps its end token and nothing after it, only then is it finished, and branches
    that ended do not change, nor do their log-probs; one compilation serves every
    call."""
    model, params, processor = policy
    request = SampleRequest(prompts[2], np.zeros(0, np.int32), (0,) * 4, (1, 2, 3, 4))
    before = warm([request])[0]
    # Make an ordinary token of branch 0 the end token: the draws before it are the same.
    end = int(before[0].tokens[2])

    class Ids:
        eos_ids = (end,)
        suppress_ids = (*processor.suppress_ids, end)  # an end token is never suppressed
        decode = processor.decode

    engine = make_engine((model, params, Ids), max_new_tokens=12, temperature=3.0)
    programs = set()
    for number in (1, 2, 3):
        after = engine([request] * number)[-1]
        programs.add(tuple(map(id, engine._compiled.values())))
    for old, new in zip(before, after):
        tokens = old.tokens.tolist()
        expected = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        assert new.tokens.tolist() == expected
        assert new.finished == (end in tokens)
        logps = allowed_log_softmax(processor, full_logits(prompts[2], new.tokens))
        own = np.arange(len(expected))
        assert new.logp == pytest.approx(logps[own, expected].sum(), abs=1e-4)
    assert after[0].finished and len(after[0].tokens) <= 3
    assert len(programs) == 1, "a compiled program, which takes no other shape"


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
