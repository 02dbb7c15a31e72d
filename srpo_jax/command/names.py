"""Whether there is what a config names. The config itself knows no registry: names are looked up
here, so that a wrong one is told before anything heavy begins.
"""

from __future__ import annotations

from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.errors import UserError


def check_names(config: Config) -> None:
    """Errors: UserError for a contrast that there is not."""
    name, rule = config.objective.contrast, FIELDS["objective.contrast"].rule
    if name not in rule.built_in:
        raise UserError(f"config.objective.contrast is {name!r}; allowed is {rule.allowed()}")
