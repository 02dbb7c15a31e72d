"""srpo_jax/inference/path_scores.py: scores are the model's own, and the points that are kept."""

import jax
import numpy as np
import pytest

from srpo_jax.config.convert import as_config
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.inference.path_scores import FIRST_TOKENS, PathScorer, chosen_points
from srpo_jax.inference.policy import load_policy
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import head_matrix
from tests.support.small_world import write_world


def test_scores_are_mean_log_probabilities_of_first_tokens(tmp_path):
    """Equal to a plain forward pass and log-softmax over the whole path, step by step."""
    config = write_world(tmp_path)
    policy = load_policy(as_config(config))
    record = read_records(config.data.train_records)[1]
    prompt, (_, pieces) = policy.encode(record), policy.reference(record)
    tokens, patches = policy.budgets([record], [200])
    scores = PathScorer(policy, tokens=tokens, patches=patches, steps=5)(prompt, pieces)
    path = np.concatenate(pieces)
    row = pad_rows([causal_row(prompt, path)], tokens=tokens, patches=patches)
    hidden = policy.model.apply({"params": policy.params}, row)[0]
    head = head_matrix(policy.params, policy.model.config)
    logp = np.asarray(jax.nn.log_softmax(hidden @ head, axis=-1))
    start = len(prompt.tokens)
    for score, piece in zip(scores, pieces[:-1], strict=True):
        own = [logp[start + i - 1, piece[i]] for i in range(min(FIRST_TOKENS, len(piece)))]
        assert score == pytest.approx(np.mean(own), abs=1e-4)
        start += len(piece)


def test_the_first_three_and_the_least_certain_points_are_kept():
    """Never more than asked for, in order, the start always among them."""
    scores = np.array([-1.0, -0.1, -0.1, -0.5, -3.0, -0.2, -2.0])
    assert chosen_points(scores, 0) == list(range(7))
    assert chosen_points(scores, 9) == list(range(7))
    assert chosen_points(scores, 5) == [0, 1, 2, 4, 6]
    assert chosen_points(scores, 4) == [0, 1, 2, 4]
    assert chosen_points(scores, 2) == [0, 1]
