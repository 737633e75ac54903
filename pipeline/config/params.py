"""All parameters: reading, overriding and checking."""

from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.common.errors import PipelineError
from pipeline.common.strict_yaml import parse_yaml, read_mapping
from pipeline.config.checks import check_across_sections
from pipeline.config.corpus import Corpus, CorpusSection, corpus_section
from pipeline.config.evaluate import Evaluate, Sinks
from pipeline.config.features import AudioEncoderSettings, FeaturesSection, VideoEncoderSettings, encoder_section
from pipeline.config.model import Model
from pipeline.config.registry import Kind
from pipeline.config.section import Section, checked, not_null
from pipeline.config.train import Decorrelation, Train
from pipeline.config.weights import WeightsSection


class Params(Section):
    """All parameters of a trial."""

    weights: WeightsSection
    corpus: CorpusSection
    features: FeaturesSection = Field(default_factory=FeaturesSection)
    model: Model = Model()
    decorrelation: Decorrelation = Decorrelation()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    sinks: Sinks = Sinks()


def load_params(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Params:
    """Read `params.yaml` with `a.b=value` overrides, of which the value is YAML (`model.rates.audio=4`,
    `evaluate.splits=[test]`). PipelineError if the file is missing, or a value in it or in an override is wrong."""
    values = read_mapping(path, "give the file with --params", "of sections")
    for key, value in map(parse_assignment, overrides):
        assign(values, key, value)
    return validate(values, path)


def parse_assignment(text: str, option: str = "--set") -> tuple[str, Any]:
    """Key and value of `key=value`, of which the value is YAML. PipelineError without a `=`, or if the value is
    invalid."""
    key, equals, value = text.partition("=")
    if not equals:
        raise PipelineError(option, f"{text!r} has no '='", f"use {option} key=value")
    return key, parse_yaml(value, f"{option} {key}")


def assign(values: dict[str, Any], key: str, value: Any, where: str | Path = "--set") -> None:
    """Set a dotted `key` in nested `values`, creating sections that are missing or null; `where` is named in errors."""
    *sections, last = key.split(".")
    for depth, section in enumerate(sections, 1):
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            above = ".".join(sections[:depth])
            raise PipelineError(where, f"cannot set {key}: {above} is {values!r}", f"set {above} as a whole")
    values[last] = value


def validate(values: dict[str, Any], where: str | Path) -> Params:
    """Validate nested values as `Params`; `where` is named in errors."""
    params = checked(Params, values, where)
    check_across_sections(params, where)
    return params


def known_below(key: str) -> list[str] | None:
    """The valid keys of the section at a dotted key (`""`: the sections themselves), for all kinds together; empty if
    it is not a section, and None if they depend on the chosen kind."""
    kind: Any = Params
    for step in key.split(".") if key else ():
        field = getattr(kind, "model_fields", {}).get(step)
        kind = not_null(field.annotation) if field else None
        if kind is Kind:
            return None
        if kind in (Corpus, AudioEncoderSettings, VideoEncoderSettings):
            kind = corpus_section() if kind is Corpus else encoder_section(kind)
    return list(getattr(kind, "model_fields", ()))
