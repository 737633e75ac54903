"""What differs between the sources of two runs: files, and the functions and classes in them."""

import ast
from dataclasses import dataclass

from pipeline.common.code import tree_digest

REST = "imports and other statements"


@dataclass(frozen=True)
class FileChange:
    """A file that differs in more than comments, docstrings and formatting."""

    name: str
    what: str
    """`only in A`, `only in B`, or the definitions that differ: `fit, +Watch.on_save, -old`."""


def changed_files(one: dict[str, bytes], other: dict[str, bytes]) -> tuple[list[FileChange], int]:
    """Compare two sets of sources by name.

    Returns:
        The Python files that differ, and how many more differ in comments, docstrings or formatting only.
    """
    changes, cosmetic = [], 0
    for name in sorted(name for name in one.keys() | other.keys() if name.endswith(".py")):
        if name not in one or name not in other:
            changes.append(FileChange(name, "only in A" if name in one else "only in B"))
        elif one[name] != other[name]:
            parts = _changed_definitions(one[name], other[name])
            cosmetic += not parts
            changes += [FileChange(name, ", ".join(parts))] if parts else []
    return changes, cosmetic


def _changed_definitions(one: bytes, other: bytes) -> list[str]:
    """Names of what changed; `+` before what only the second has, `-` before what only the first has."""
    was, now = _definitions(ast.parse(one)), _definitions(ast.parse(other))
    changed = [name for name in was if name in now and was[name] != now[name]]
    return [*changed, *(f"+{name}" for name in _only_in(now, was)), *(f"-{name}" for name in _only_in(was, now))]


def _only_in(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Definitions that the other has not; of a class that it has not, the class alone."""
    new = [name for name in one if name not in other]
    return [name for name in new if "." not in name or name.partition(".")[0] not in new]


def _definitions(tree: ast.Module) -> dict[str, str]:
    """Digest of each function, class, method and named value of a module, and of what is left."""
    found: dict[str, str] = {}
    rest = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{method.name}": tree_digest(method) for method in methods}
            node.body = [part for part in node.body if part not in methods]
            found[node.name] = tree_digest(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = tree_digest(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = tree_digest(node)
        else:
            rest.append(node)
    return found | {REST: tree_digest(ast.Module(rest, []))}
