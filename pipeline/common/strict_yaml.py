"""A strict reader of YAML 1.2 with bounded size, whose errors name the line.

Only text, numbers, booleans, null, lists, and mappings with text keys. PyYAML resolves YAML 1.1, where `1e-3` is text,
`1:30` is 90, `no` is false and `2020-13-45` is a traceback; DVC reads params.yaml as 1.2.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_text

MAX_CHARACTERS = 4 << 20
MAX_DEPTH = 50
"""Nested lists and mappings."""
MAX_VALUES = 100_000
"""Values of a file with its aliases (`*name`) expanded."""
MAX_INTEGER_LENGTH = 18
"""Characters of an integer, its sign or `0x` included; one of this length fits 64 bits."""
_TAG = "tag:yaml.org,2002:"
_TRUE = ("true", "True", "TRUE")


class _StrictLoader(yaml.SafeLoader):
    """The core schema of YAML 1.2. A duplicate key is an error, not a silent override."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012, as in the base
    yaml_constructors: ClassVar[dict] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._measures: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise ConstructorError(None, None, f"the tag {event.tag} is not supported", event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConstructorError(None, None, f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            self._measure(node, event)
        return node

    def _measure(self, node: yaml.Node, event: Any) -> None:
        """Count the values and levels below a node with its aliases expanded, visiting each node once."""
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._measures:
                raise ConstructorError(None, None, f"*{event.anchor} contains itself", mark)
            return
        below = node.value if not isinstance(node, yaml.ScalarNode) else []
        parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        values = 1 + sum(self._measures[id(part)][0] for part in parts)
        levels = 1 + max((self._measures[id(part)][1] for part in parts), default=0)
        if values > MAX_VALUES or levels > MAX_DEPTH:
            size = f"{values} values, more than {MAX_VALUES}" if values > MAX_VALUES else f"{levels} levels"
            raise ConstructorError(None, None, f"too large with its aliases expanded ({size})", mark)
        self._measures[id(node)] = values, levels

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def text(self, node: yaml.ScalarNode) -> str:
        if "\0" in node.value or any("\ud800" <= character <= "\udfff" for character in node.value):
            raise ConstructorError(None, None, "contains a character that no file can hold", node.start_mark)
        return node.value

    def whole_number(self, node: yaml.ScalarNode) -> int:
        base = {"0x": 16, "0o": 8}.get(node.value[:2], 10)
        if len(node.value) > MAX_INTEGER_LENGTH:
            found = f"an integer of more than {MAX_INTEGER_LENGTH} characters"
            raise ConstructorError(None, None, found, node.start_mark)
        return int(node.value, base)


for _name, _pattern, _first, _construct in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""], lambda loader, node: None),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF"), lambda loader, node: node.value in _TRUE),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789"), _StrictLoader.whole_number),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
        lambda loader, node: float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
    ("merge", r"<<", ["<"], _StrictLoader.text),
    ("str", None, None, _StrictLoader.text),
    ("seq", None, None, yaml.SafeLoader.construct_yaml_seq),
    ("map", None, None, yaml.SafeLoader.construct_yaml_map),
):
    if _pattern:
        _StrictLoader.add_implicit_resolver(_TAG + _name, re.compile(_pattern + r"\Z"), _first)
    _StrictLoader.add_constructor(_TAG + _name, _construct)


def parse_yaml(text: str, where: str | Path) -> Any:
    """Parse YAML text; `where` is named in errors. PipelineError if the text is not YAML, has a duplicate key, or
    exceeds the bounds above."""
    if len(text) > MAX_CHARACTERS:
        raise PipelineError(where, f"has {len(text)} characters", f"use a YAML file of at most {MAX_CHARACTERS}")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else str(where)
        raise PipelineError(place, f"invalid YAML: {getattr(error, 'problem', error)}", "fix that line") from None


def read_yaml(path: str | Path, remedy: str) -> Any:
    """Read a YAML file; raises the same errors as `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(path, remedy), path)


def read_mapping(path: str | Path, remedy: str, what: str) -> dict[str, Any]:
    """Read a YAML file whose content must be a mapping; `what` ends "it must be a mapping …" in the error."""
    values = read_yaml(path, remedy)
    if not isinstance(values, dict):
        raise PipelineError(path, f"is a {type(values).__name__}", f"it must be a mapping {what}")
    return values
