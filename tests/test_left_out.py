"""Code outside a trial's identity affects no result: it is mutated, and the inputs of training stay equal."""

import ast
import builtins
import functools
import importlib
import inspect
import shutil
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

import pipeline
from pipeline.common import code
from pipeline.config import load_params
from pipeline.trials.identity import COVERED_BY_DATA_DIGEST, WITHOUT_EFFECT

PACKAGE = Path(pipeline.__file__).parent


def modules(*names: str) -> list[str]:
    """These modules and all below them."""
    found = []
    for name in names:
        place = PACKAGE.parent.joinpath(*name.split("."))
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        found += [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in found]


LEFT_OUT = modules(*code.MODULES_LEFT_OUT, *WITHOUT_EFFECT)
"""`COVERED_BY_DATA_DIGEST` is not among them: that code has a digest of its own, in the data."""
MLFLOW = [name for name in LEFT_OUT if name.startswith("pipeline.tracking.")]
SEEN = ("pipeline.common.modality", "pipeline.training.batches", "pipeline.corpora.utterance_media")
"""Some modules of the digest: the same mutations must have an effect, or the test could not fail."""


class _Reverse(ast.NodeTransformer):
    """Passes every returned value through `__reversed_order__`."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        self.generic_visit(node)
        if node.value is not None:
            call = ast.Call(ast.Name("__reversed_order__", ast.Load()), [node.value], [])
            node.value = ast.copy_location(call, node.value)
        return ast.fix_missing_locations(node)


def _reversed_order(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(reversed(value))
    if type(value) is dict:
        return dict(reversed(value.items()))
    if type(value) is bool:
        return not value
    return value


def _codes(holder: types.CodeType) -> Iterator[types.CodeType]:
    for constant in holder.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """All functions and methods that a module defines, without their decorators."""
    holders = [module, *(one for one in vars(module).values() if inspect.isclass(one))]
    for holder in holders:
        for value in vars(holder).values():
            value = getattr(value, "fget", None) or getattr(value, "func", None) or value
            value = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else value
            if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
                yield value


def _caches() -> None:
    """Clear all caches."""
    for module in [one for name, one in sys.modules.items() if name.startswith("pipeline.")]:
        for value in vars(module).values():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


@contextmanager
def changed(name: str, one: str | None = None) -> Iterator[list[str]]:
    """A module whose functions return sequences and mappings in reverse order, and booleans negated.

    Functions are mutated in place, so that importers by name have the mutated ones.

    Args:
        name: of the module.
        one: the only function to change; None changes all.

    Yields:
        The changed functions.
    """
    module = importlib.import_module(name)
    tree = _Reverse().visit(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
    new = {one.co_qualname: one for one in _codes(compile(tree, module.__file__, "exec"))}
    before = [(function, function.__code__) for function in _functions(module)]
    builtins.__reversed_order__ = _reversed_order
    try:
        for function, old in before:
            is_meant = one in (None, old.co_qualname)
            if is_meant and (code := new.get(old.co_qualname)) and code.co_freevars == old.co_freevars:
                function.__code__ = code
        _caches()
        yield [old.co_qualname for function, old in before if function.__code__ is not old]
    finally:
        for function, old in before:
            function.__code__ = old
        del builtins.__reversed_order__
        _caches()


def outcome() -> list[Any]:
    """What the training of a small project begins with: utterances, the order of its batches, roles, the losses."""
    from pipeline.model.examples import batch_to
    from pipeline.training.batches import Batches
    from pipeline.training.build import build_model
    from pipeline.training.inputs import TrialInputs

    params = load_params("params.yaml", ["decorrelation.weight=0.5"])
    inputs = TrialInputs(params).training
    model = build_model(params, inputs)
    chosen = inputs.chosen("train")
    examples = inputs.examples(chosen, model.tokenize_response)
    batches = [batch for _, batch in Batches([round(25 * u.audio_seconds) for u in chosen], params.train)]
    batch = batch_to(examples.collate([examples[number] for number in batches[0]]), model.device)
    with torch.no_grad():
        losses = model(batch, params.decorrelation)
    roles = model.sequence(batch, response=True).roles
    return [
        [utterance.id for utterance in inputs.utterances],
        batches,
        roles.tolist(),
        float(losses.cross_entropy),
        float(losses.decorrelation),
    ]


@pytest.fixture(scope="module")
def calm(prepared: Path) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        return outcome()


def _after(name: str, one: str | None = None) -> Any:
    """The outcome after a mutation; None if it fails, as after a negated check."""
    with changed(name, one):
        try:
            return outcome()
        except Exception:
            return None


@pytest.mark.parametrize("name", [name for name in LEFT_OUT if name not in MLFLOW])
def test_code_outside_the_identity_affects_no_result(
    name: str, calm: list[Any], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared)
    after = _after(name)
    if after is None:
        # One of its functions is required; each is mutated by itself.
        with changed(name) as functions:
            pass
        assert {one for one in functions if _after(name, one) not in (None, calm)} == set()
    else:
        assert after == calm


@pytest.mark.parametrize("name", SEEN)
def test_the_same_change_affects_results_in_code_of_the_identity(
    name: str, calm: list[Any], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared)
    with changed(name) as functions:
        pass
    assert any(_after(name, one) not in (None, calm) for one in functions)
    assert name in {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in _in_the_digest()}


def _in_the_digest() -> list[Path]:
    left_out = (*code.MODULES_LEFT_OUT, *COVERED_BY_DATA_DIGEST, *WITHOUT_EFFECT)
    return list(code._reached(("pipeline.train", "pipeline.evaluate"), PACKAGE.parent, left_out).values())


def test_config_has_values_and_checks_only() -> None:
    """No section has a method, and the code of the identity imports only sections from config."""
    for name in modules("pipeline.config"):
        module = importlib.import_module(name)
        for section in vars(module).values():
            if inspect.isclass(section) and issubclass(section, BaseModel) and section.__module__ == name:
                own = {key for key, value in vars(section).items() if inspect.isfunction(value) and key[0] != "_"}
                assert own - {"model_post_init"} == set(), section
    for file in _in_the_digest():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline.config"):
                taken = [getattr(importlib.import_module(node.module), alias.name) for alias in node.names]
                assert all(inspect.isclass(one) or not callable(one) or "Literal" in str(one) for one in taken), file


def test_digests_seed_random_choices_and_are_part_of_the_identity(tmp_path: Path) -> None:
    copied = shutil.copytree(PACKAGE, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    digests = copied / "common/digests.py"
    digests.write_text(digests.read_text().replace("sort_keys=True", "sort_keys=False"))
    assert code.code_digest("pipeline.train", source=tmp_path) != code.code_digest("pipeline.train")
