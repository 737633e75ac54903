"""The digest of code: what a trial's identity says about the program that made it.

Imports are followed from a module through our own package, by parsing files, never by importing them. Each file's
syntax tree is walked without positions, docstrings and empty fields, so that a comment, a docstring or formatting
changes nothing and Python 3.11 to 3.13 agree; anything that could change a result changes the digest.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.files import digest
from pipeline.common.kinds import module_of

SOURCE = Path(__file__).resolve().parents[2]
"""The folder that holds our package."""

LEFT_OUT = {
    "pipeline.common.code": "this digest itself",
    "pipeline.common.command": "how a command is called",
    "pipeline.common.errors": "what is said when nothing comes out",
    "pipeline.common.files": "how files are written, not what is in them",
    "pipeline.common.redaction": "what is hidden in records, and makes no result",
    "pipeline.common.progress": "what is shown on the way",
    "pipeline.pretrained.folder": "it names weights by their content",
    "pipeline.config": "its values are in the identity by way of the configuration",
    "pipeline.tracking": "it shows results and makes none",
    "pipeline.trials": "it records results and makes none",
}
"""Modules, and all below them, whose code is in no digest, each with its reason."""

# `kind` is the u of u"text"; `ctx` follows from where a name stands; a comment of types has no effect.
_KIND = re.compile(r"\w+(\.\w+)+:\w+")
_WITHOUT_MEANING = frozenset({"kind", "ctx", "type_comment"})


def code_digest(*modules: str, without: tuple[str, ...] = (), source: Path = SOURCE) -> str:
    """SHA-256 of the code of our package that these modules reach, 64 hexadecimal digits.

    Modules reach one another by `import` and `from ... import`, absolute or relative, at the top or inside functions,
    and by the name of a kind in a registry, such as `pipeline.encoders.dct:MouthDCT`;
    a package's `__init__` counts as reached with anything in it. `LEFT_OUT` is not followed. The result is kept for
    the life of the process: it speaks of the code that was loaded, not of what an editor saved since.

    Args:
        modules: names such as `pipeline.train`.
        without: further modules that are not followed, beside `LEFT_OUT`.
        source: the folder that holds the package.

    Raises:
        ModuleNotFoundError: there is no such module in `source`.
    """
    return _code_digest(tuple(sorted(set(modules))), without, source)


@functools.cache
def _code_digest(modules: tuple[str, ...], without: tuple[str, ...], source: Path) -> str:
    reached = _reached(modules, source, (*LEFT_OUT, *without))
    return digest({name: _file_digest(path) for name, path in reached.items()})


@functools.cache
def reached_files(*modules: str, source: Path = SOURCE) -> tuple[Path, ...]:
    """The files that these modules reach, sorted, with those that `code_digest` leaves out: what it takes to run them.

    Raises:
        ModuleNotFoundError: there is no such module in `source`.
    """
    return tuple(sorted(_reached(modules, source, ()).values()))


def _reached(modules: tuple[str, ...], source: Path, left_out: tuple[str, ...]) -> dict[str, Path]:
    package = modules[0].partition(".")[0]
    found: dict[str, Path] = {}
    waiting = []
    for module in modules:
        if _file_of(module, source) is None:
            raise ModuleNotFoundError(f"no module {module} in {source}", name=module)
        waiting.append(module)
    while waiting:
        module = waiting.pop()
        path = _file_of(module, source)
        if path is None or module in found or _is_below(module, left_out):
            continue
        found[module] = path
        parent = module.rpartition(".")[0]
        waiting += [parent] if parent else []
        is_package = path.name == "__init__.py"
        waiting += [name for name in _imported(module, is_package, path) if name.partition(".")[0] == package]
    return found


def _is_below(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


@functools.cache
def _file_of(module: str, source: Path) -> Path | None:
    place = source.joinpath(*module.split("."))
    for candidate in (place.with_name(place.name + ".py"), place / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


@functools.cache
def _imported(module: str, is_package: bool, path: Path) -> tuple[str, ...]:
    """Names that may be modules: those that are none have no file and end there."""
    return tuple(_imports(module, is_package, _tree(path)))


def _imports(module: str, is_package: bool, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _KIND.fullmatch(node.value):
            yield module_of(node.value)


@functools.cache
def _file_digest(path: Path) -> str:
    return tree_digest(_tree(path))


def tree_digest(tree: ast.AST) -> str:
    """SHA-256 of a syntax tree's meaning, 64 hexadecimal digits, equal on Python 3.11 to 3.13."""
    written: list[str] = []
    _write(tree, written)
    return hashlib.sha256("".join(written).encode("ascii")).hexdigest()


def _write(node: object, written: list[str]) -> None:
    if isinstance(node, ast.JoinedStr):
        written.append("JoinedStr[")
        for part in _joined(node.values):
            _write(part, written)
        written.append("]")
    elif isinstance(node, ast.AST):
        written.append(type(node).__name__ + "(")
        for name in node._fields:
            value = getattr(node, name, None)
            # Fields that a newer Python adds are empty in code that an older one can read.
            if value is None or value == [] or name in _WITHOUT_MEANING:
                continue
            written.append(name + "=")
            _write(value, written)
        written.append(")")
    elif isinstance(node, list):
        written.append("[")
        for element in node:
            if not _is_docstring(element):
                _write(element, written)
        written.append("]")
    else:
        # ascii, since what repr finds printable follows Python's version of Unicode.
        written.append(f"{type(node).__name__}:{node!a};")


def _is_docstring(node: object) -> bool:
    """Whether a statement is text alone: a docstring, or the line below a field that says what it is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _joined(values: list[ast.expr]) -> list[object]:
    """The parts of an f-string with neighbouring texts made one: how they are cut differs between versions."""
    parts: list[object] = []
    for value in values:
        if not isinstance(value, ast.Constant):
            parts.append(value)
        elif parts and isinstance(parts[-1], str):
            # In an f-string every constant is text.
            parts[-1] += str(value.value)
        elif value.value:
            parts.append(value.value)
    return parts
