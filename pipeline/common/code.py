"""The digest of code: the part of a trial's identity that covers the program.

Imports are followed within this package by parsing files, not by importing them. Each file's syntax tree is hashed
without positions, docstrings and empty fields, so that comments, docstrings and formatting change nothing and Python
3.11 to 3.13 agree; anything that could change a result changes the digest.
"""

import ast
import functools
import hashlib
import re
from pathlib import Path

from pipeline.common.digests import digest

SOURCE = Path(__file__).resolve().parents[2]
"""The project: the folder that contains this package."""

MODULES_LEFT_OUT = {
    "pipeline.common.code": "this digest itself",
    "pipeline.common.command": "command-line handling",
    "pipeline.common.errors": "error messages",
    "pipeline.common.files": "how files are read and written, not their content",
    "pipeline.common.redaction": "what is hidden in records; computes no result",
    "pipeline.common.progress": "progress bars",
    "pipeline.pretrained.folder": "names weights by their content",
    "pipeline.config": "its values are in the identity as the configuration",
    "pipeline.tracking": "shows results; computes none",
    "pipeline.trials": "records results; computes none",
}
"""Modules (with all submodules) whose code is in no digest, each with its reason."""

_KIND = re.compile(r"\w+(\.\w+)+:\w+")
"""A kind in a registry, such as `pipeline.encoders.dct:MouthDCT`."""
# `kind` is the u of u"text"; `ctx` follows from the position of a name; a type comment has no effect.
_WITHOUT_MEANING = frozenset({"kind", "ctx", "type_comment"})


def code_digest(*modules: str, without: tuple[str, ...] = (), source: Path = SOURCE) -> str:
    """SHA-256 of the code that `modules`, such as `pipeline.train`, import from their package, 64 hexadecimal digits.

    Imports may be absolute or relative, at the top or inside functions, or the name of a kind in a registry, such as
    `pipeline.encoders.dct:MouthDCT`; a package's `__init__` is imported with any of its modules. `MODULES_LEFT_OUT` and
    `without` are not followed. Cached for the life of the process, so that it describes the loaded code, not later
    edits. ModuleNotFoundError if a module is not below `source`, the folder that contains the package.
    """
    return _code_digest(tuple(sorted(set(modules))), without, source)


@functools.cache
def _code_digest(modules: tuple[str, ...], without: tuple[str, ...], source: Path) -> str:
    reached = _reached(modules, source, (*MODULES_LEFT_OUT, *without))
    return digest({name: tree_digest(_tree(path)) for name, path in reached.items()})


@functools.cache
def reached_files(*modules: str, source: Path = SOURCE) -> tuple[Path, ...]:
    """All files needed to run these modules, sorted, including those that `code_digest` leaves out."""
    return tuple(sorted(_reached(modules, source, ()).values()))


def _reached(modules: tuple[str, ...], source: Path, left_out: tuple[str, ...]) -> dict[str, Path]:
    package = modules[0].partition(".")[0]
    reached: dict[str, Path] = {}
    for module in modules:
        if _file_of(module, source) is None:
            raise ModuleNotFoundError(f"no module {module} in {source}", name=module)
    pending = list(modules)
    while pending:
        module = pending.pop()
        path = _file_of(module, source)
        if path is None or module in reached or any(f"{module}.".startswith(f"{name}.") for name in left_out):
            continue
        reached[module] = path
        parent = module.rpartition(".")[0]
        pending += [parent] if parent else []
        pending += [name for name in _imported(module, path) if name.partition(".")[0] == package]
    return reached


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
def _imported(module: str, path: Path) -> list[str]:
    """Imported names, of modules or of their members; members have no file and are dropped later."""
    is_package = path.name == "__init__.py"
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _KIND.fullmatch(node.value):
            names.append(node.value.partition(":")[0])
    return names


@functools.cache
def tree_digest(tree: ast.AST) -> str:
    """SHA-256 of a syntax tree, 64 hexadecimal digits, equal on Python 3.11 to 3.13."""
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
            # Fields added by a newer Python are empty in code that an older one can parse.
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
        # ascii, since repr depends on Python's version of Unicode.
        written.append(f"{type(node).__name__}:{node!a};")


def _is_docstring(node: object) -> bool:
    """Whether a statement is a string alone: a docstring, of a field too."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _joined(values: list[ast.expr]) -> list[object]:
    """The parts of an f-string, adjacent texts joined: how they are split differs between versions of Python."""
    parts: list[object] = []
    for value in values:
        if not isinstance(value, ast.Constant):
            parts.append(value)
        elif parts and isinstance(parts[-1], str):
            parts[-1] += str(value.value)
        elif value.value:
            parts.append(value.value)
    return parts
