"""An export answers a chat request with a picture through `transformers serve`, as our policy does.

Everything on 127.0.0.1. Random models write byte soup, of which decoding keeps little; so all but
readable ASCII is suppressed, on both sides, and equal text means equal tokens.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.policy_model import PolicyModel
from tests.support.families import CASES
from tests.support.transformers_serve import NEEDED, serving

NEW_TOKENS = 24
QUESTION = "What does this picture show?"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)), reason=f"needs {', '.join(NEEDED)}"
    ),
]


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl3", "smolvlm"]
)
def test_the_export_answers_over_the_network_what_we_sample(tmp_path, name):
    """The openai client, a PNG in the request, temperature 0: our greedy text, token for token."""
    if name == "smolvlm":
        pytest.importorskip("num2words")  # transformers' processor wants it
    case = CASES[name]
    folder, params, processor = exported(case, tmp_path)
    picture = case.pictures(1)[0]
    ours = greedy(params, processor, picture, suppressed(folder))
    with serving(folder, tmp_path, plain=name.startswith("llava")) as url:
        answer = asked(url, folder, picture)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert answer.usage.prompt_tokens == len(processor.encode_question(QUESTION, [picture]).tokens)
    assert answer.usage.completion_tokens == len(ours)
    assert choice.message.content == processor.decode(ours)
    black = Image.new("RGB", picture.size)
    assert greedy(params, processor, black, suppressed(folder)) != ours  # the picture counts


def exported(case, tmp_path: pathlib.Path):
    """(folder of the export, the parameters in it, its processor)."""
    tied = all(case.module.TIED)  # a random tied model says its last token again and again
    source = case.make(tmp_path / "source", tied=tied)
    processor = Processor.from_dir(source)
    vocab = processor.config.text.vocab_size
    readable = {i for i in range(vocab) if is_readable(processor.decode([i]))}
    file = source / "generation_config.json"
    never = sorted(set(range(vocab)) - readable - set(processor.eos_ids))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"suppress_tokens": never}))
    base = load_params(source, processor.config, dtype=np.float32)
    params = jax.tree.map(lambda x: x * 1.01, base)
    export_checkpoint(params, source, tmp_path / "export", processor.config)
    return tmp_path / "export", params, Processor.from_dir(tmp_path / "export")


def is_readable(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


def suppressed(folder: pathlib.Path) -> tuple[int, ...]:
    return tuple(json.loads((folder / "generation_config.json").read_text())["suppress_tokens"])


def greedy(params, processor, picture, never) -> list[int]:
    prompt = processor.encode_question(QUESTION, [picture])

    class Ids:
        eos_ids, suppress_ids, decode = processor.eos_ids, never, processor.decode

    engine = Engine(
        PolicyModel(processor.config),
        params,
        Ids,
        rows=1,
        branches=1,
        prompt_tokens=len(prompt.tokens),
        patches=len(prompt.patches),
        max_new_tokens=NEW_TOKENS,
        sampling=Sampling(temperature=0.0),
    )
    ((sample,),) = engine([SampleRequest(prompt, np.zeros(0, np.int32), (0,), (0,))])
    return sample.tokens.tolist()


def asked(url: str, folder: pathlib.Path, picture):
    import openai

    png = io.BytesIO()
    picture.save(png, "PNG")
    shown = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": shown}},
        {"type": "text", "text": QUESTION},
    ]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return client.chat.completions.create(
            model=str(folder),
            messages=[{"role": "user", "content": content}],
            temperature=0.0,
            max_tokens=NEW_TOKENS,
            timeout=120,
        )
