"""YAML of plain values, in which no key may be given twice (the reader would keep the last)."""

from __future__ import annotations

from typing import Any

import yaml


class UniqueKeys(yaml.SafeLoader):
    """For yaml.load(text, UniqueKeys). Errors: yaml.YAMLError."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice")
        return super().construct_mapping(node, deep)
