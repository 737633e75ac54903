"""YAML as people mean it, with errors that name the line."""

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import PipelineError


class _StrictLoader(yaml.SafeLoader):
    """`1e-3` is a number, and a key given twice is an error, not a silent override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str | Path) -> Any:
    """Parse YAML text; `where` is named in the error.

    Raises:
        PipelineError: the text is no YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else str(where)
        raise PipelineError(place, f"no valid YAML ({getattr(error, 'problem', error)})", "mend that line") from None


def read_mapping(path: str | Path, remedy: str, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: the file.
        remedy: what to do if it cannot be read.
        what: the end of "it must be a mapping …", such as `of sections`.

    Raises:
        PipelineError: the file cannot be read, is no YAML, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", remedy) from None
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise PipelineError(path, f"holds a {type(values).__name__}", f"it must be a mapping {what}")
    return values
