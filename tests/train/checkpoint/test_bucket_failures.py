"""srpo_jax/train/checkpoint/bucket_failures.py: each library's errors, as they were seen."""

from __future__ import annotations

import errno

import aiohttp
import gcsfs.retry
import google.api_core.exceptions as api
import google.auth.exceptions as auth
import pytest
import requests

from srpo_jax.errors import RunFailure, UserError
from srpo_jax.train.checkpoint.bucket_failures import told
from srpo_jax.train.checkpoint.seal import Damaged

ADDRESS = "gs://bucket-a/run/checkpoints"
FULL = '{"error": {"code": 403, "message": "The quota is used up"}}'
ERRORS = [
    (api.Forbidden("no"), UserError),
    (api.Unauthorized("no"), UserError),
    (api.NotFound("no"), UserError),
    (auth.DefaultCredentialsError("none"), UserError),
    (auth.RefreshError("expired"), UserError),
    (OSError("Forbidden: b/bucket-a/o\nno"), UserError),
    (gcsfs.retry.HttpError({"code": 401, "message": "no"}), UserError),
    (gcsfs.retry.HttpError({"code": "401", "message": "no"}), UserError),
    (ValueError("PERMISSION_DENIED: Error writing x: no [http_response_code='403']"), UserError),
    (ValueError("UNAUTHENTICATED: Error reading x"), UserError),
    (api.Forbidden("quotaExceeded"), OSError),
    (OSError("Forbidden: b/bucket-a/o\nquotaExceeded"), OSError),
    (ValueError(f"PERMISSION_DENIED: Error writing x [http_response_body='{FULL}']"), OSError),
    (api.ServiceUnavailable("no"), RunFailure),
    (api.TooManyRequests("slower"), RunFailure),
    (api.RetryError("too late", None), RunFailure),
    (auth.TransportError("no route"), RunFailure),
    (requests.ConnectionError("no route"), RunFailure),
    (aiohttp.ClientConnectionError("no route"), RunFailure),
    (gcsfs.retry.HttpError({"code": 503, "message": "no"}), RunFailure),
    (ConnectionResetError("gone"), RunFailure),
    (TimeoutError(), RunFailure),
    (ValueError("UNAVAILABLE: CURL error"), RunFailure),
    (ValueError("DEADLINE_EXCEEDED: retries"), RunFailure),
]


@pytest.mark.parametrize("error, kind", ERRORS, ids=lambda x: str(x)[:30])
def test_who_must_mend_it(error, kind):
    """The user, or nobody; a quota that is used up is a full disk. One line, with the address."""
    found = told(error, ADDRESS)
    assert type(found) is kind and ADDRESS in str(found) and "\n" not in str(found)
    assert kind is not OSError or (found.errno, found.filename) == (errno.EDQUOT, ADDRESS)


@pytest.mark.parametrize(
    "error",
    [
        Damaged("x is missing"),
        UserError("PERMISSION_DENIED"),
        FileNotFoundError(errno.ENOENT, "no such file", "x"),
        OSError(errno.ENOSPC, "no space", "x"),
        ValueError("DATA_LOSS: CRC-32C checksum verification failed"),
        KeyError("params"),
    ],
)
def test_what_is_not_of_the_bucket_stays_what_it_is(error):
    """Damage above all: a step that holds it is skipped, which a bucket that fails must not be."""
    assert told(error, ADDRESS) is None
