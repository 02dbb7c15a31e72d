"""All families: logits and greedy answers equal transformers', on checkpoints all of random."""

import io

import numpy as np
import pytest

from srpo_jax.data_pipelines.prompt import Demonstration, Prompt
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.models.hf.prompt_encoder import PromptEncoder
from tests.support.families import CASES, Loaded

pytest.importorskip("torch")
ANSWERS = ([31, 32, 33, 34], [35], [36, 37, 38])


@pytest.fixture(scope="module", params=CASES)
def loaded(request, tmp_path_factory):
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(case.name)
    return Loaded(case, case.make(folder, tied=case.module.TIED[0]))


def check_logits(loaded, answers=ANSWERS):
    for ours, theirs in zip(loaded.logits(answers), loaded.oracle_logits(answers), strict=True):
        assert np.abs(theirs[:, : ours.shape[1]]).max() > 1  # the tolerance means something
        np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], atol=1e-4, rtol=0)


def test_logits_equal_transformers(loaded):
    """Two pictures, one and none, ragged in one padded batch, each token of prompt and answer."""
    check_logits(loaded)


def test_logits_of_a_conversation_equal_transformers(loaded):
    """A system message, a demonstration with a picture and a question with another: where the
    template writes pictures in front of a message, in one message."""
    pictures, data = loaded.case.pictures(2, seed=5), io.BytesIO()
    pictures[0].save(data, "PNG")
    demo = Demonstration("d", "What is it?", "I look.\nReply: A cat.", (data.getvalue(),))
    layout = "text" if loaded.case.in_front else "turns"
    prompt = Prompt("Be careful.", "Look: ", "", (demo,), layout, max_side=0)
    encoder = PromptEncoder(loaded.processor, prompt)
    asked = encoder.encode("And this?", pictures[1:])
    assert asked.num_patches == sum(len(loaded.processor.image(p)[0]) for p in pictures)
    check_logits(loaded.asking([asked], [pictures]), ANSWERS[:1])


def test_greedy_answers_equal_transformers(loaded):
    """Token for token, from one prefill per question and cached branches."""
    new = 12
    room = loaded.room(0)
    engine = Engine(
        loaded.model,
        loaded.params,
        loaded.processor,
        rows=3,
        branches=1,
        sampling=Sampling(temperature=0.0),
        prompt_tokens=room["tokens"],
        patches=room["patches"],
        max_new_tokens=new,
    )
    requests = [
        SampleRequest(prompt, np.zeros(0, np.int32), (0,), (0,)) for prompt in loaded.prompts
    ]
    ours = [samples[0].tokens.tolist() for samples in engine(requests)]
    assert ours == loaded.oracle_greedy(new)


OTHERWISE_TIED = [case.name for case in CASES.values() if len(case.module.TIED) > 1]


@pytest.mark.parametrize("name", OTHERWISE_TIED)
def test_logits_with_the_other_kind_of_head(name, tmp_path):
    """A head of its own where the first checkpoint is tied, and the other way round."""
    case = CASES[name]
    check_logits(Loaded(case, case.make(tmp_path / "model", tied=case.module.TIED[1])))
