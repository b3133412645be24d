"""YAML as the settings are written in it: a key that is there twice in one place is an error, where PyYAML would take
the last, and a date is text."""

from __future__ import annotations

from collections.abc import Hashable
from typing import IO, Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one, which minds keys that are there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(source: str | IO[str]) -> Any:
    """Plain data from YAML. Raises `yaml.YAMLError`, of a stream with the name of its file, and `ValueError` for a
    number that is none."""
    return yaml.load(source, _Loader)
