"""Reading YAML for a configuration: safe, strict, and with the line of every key.

Stricter than YAML: no duplicate keys, no anchors, keys are names. Wider in one point: `1e-6` is a
number, as in YAML 1.2, and a date is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

Tree = dict[str, Any]

_NUMBER = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*(?:e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+|\.[0-9]+(?:e[-+]?[0-9]+)?)\Z",
    re.IGNORECASE,
)


class YamlError(ValueError):
    """What is wrong with the text, with its line where that is known."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012  (the base class declares it so)
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise YamlError(f"line {line}: anchors and aliases are not read: use extends")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read_value(text: str) -> Any:
    """One YAML value, as on the command line.

    Raises:
        YamlError: the text is no YAML, or a key is there twice.
    """
    return _read(text)[0]


def read_tree(text: str) -> tuple[Tree, dict[str, int]]:
    """A mapping and the line of each of its dotted keys; an empty text is an empty mapping.

    Raises:
        YamlError: the text is no mapping, is no YAML, or a key is there twice.
    """
    value, node = _read(text)
    if value is None:
        return {}, {}
    if not isinstance(value, dict):
        raise YamlError("the file holds no keys: write `section:` with its keys indented below it")
    return value, dict(_lines(node, ""))


def _read(text: str) -> tuple[Any, yaml.Node | None]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        for _ in _lines(node, ""):  # refuses duplicates before they are merged into one
            pass
        return loader.construct_document(node), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise YamlError(f"{place}this is no YAML: {problem}") from error
    finally:
        loader.dispose()


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                raise YamlError(f"line {line}: a key must be a name")
            if key.value in seen:
                raise YamlError(
                    f"line {line}: {prefix}{key.value} is there twice, first in line "
                    f"{seen[key.value]}: remove one"
                )
            seen[key.value] = line
            yield f"{prefix}{key.value}", line
            yield from _lines(value, f"{prefix}{key.value}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield f"{prefix.rstrip('.')}[{index}]", item.start_mark.line + 1
            yield from _lines(item, f"{prefix.rstrip('.')}[{index}].")
