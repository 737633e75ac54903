"""The model card of an exported trial: a Hugging Face README.md with the records of the trial's folder."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.common.formatting import rounded
from pipeline.common.metrics import PERCENT, TABLE, Unit, is_bound, shown
from pipeline.comparison.entries import Entry, condition_name, condition_order, read_entries
from pipeline.config import Params
from pipeline.reporting.provenance import shared_facts, trial_provenance
from pipeline.trials.folder import Trial
from pipeline.trials.provenance import sessions

TEMPLATES = Path(__file__).with_name("model_card")
WITH_CODE = {("audio", "whisper", "padded"), ("video", "dct", None)}
"""Stream, encoder and window of encoders that plain libraries reproduce; each has a template with the code."""


def model_card(trial: Trial, params: Params, config: dict[str, Any], source: dict[str, str]) -> str:
    """The card of a trained trial as Markdown with front matter; it has results if the trial is evaluated. `config` is
    `pipeline.export.export_config`; `source` that of the base model in `weights.json`, empty if not recorded."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    (entry,), _ = read_entries([trial], {})
    title = f"{entry.task}, decorrelation weight {entry.decorrelation_weight:g}, seed {entry.seed}"
    conditions = _conditions(entry)
    encoders = {stream: (stream, about["encoder"], about.get("window")) for stream, about in config["streams"].items()}
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    values = {
        "front_matter": _front_matter(entry, title, params, source).strip(),
        "title": title,
        "identity": entry.identity,
        "seed": entry.seed,
        "decorrelation": params.decorrelation,
        "config": config,
        "layer_norm": params.model.projector.layer_norm,
        "source": _source_text(source),
        "error_rates": [
            (condition_name(condition), *(_value(entry, f"{metric}/{condition}", PERCENT) for metric in ("wer", "cer")))
            for condition in conditions
        ],
        "sinks": [(m.label, _value(entry, m.name, m.unit)) for m in shown(TABLE) if m.name in entry.metrics],
        "sink_split": params.sinks.split,
        "is_evaluated": trial.metrics.exists(),
        "corpus": _yaml(_corpus(params)),
        "utterances": _utterances(trial),
        "data": entry.data,
        "facts": _facts(entry),
        "settings": _yaml(trial.identity_parts()["configuration"]),
        "with_code": [stream for stream, encoder in encoders.items() if encoder in WITH_CODE],
    }
    return templates.get_template("card.md.jinja").render(values)


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()


def _corpus(params: Params) -> dict[str, Any]:
    """The settings of the corpus, without paths."""
    noise = params.corpus.noise.model_dump(mode="json", exclude={"folder"})
    synthetic = params.corpus.synthetic.model_dump(mode="json", exclude={"sentences"})
    chosen = {"kind": params.corpus.kind, "seed": params.corpus.seed, "noise": noise}
    return chosen | ({"synthetic": synthetic} if params.corpus.kind == "synthetic" else {})


def _front_matter(entry: Entry, title: str, params: Params, source: dict[str, str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = "automatic-speech-recognition"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=params.corpus.kind,
            dataset_name=f"{params.corpus.kind}, {condition_name(condition)}",
            # Without it, the conditions of a split count as one data set.
            dataset_config=condition.partition("/")[2] or "clean",
            dataset_split=condition.partition("/")[0],
            metric_type=metric,
            metric_name=f"{metric.upper()} %",
            metric_value=round(100 * entry.metrics[f"{metric}/{condition}"], 2),
        )
        for condition in _conditions(entry)
        for metric in ("wer", "cer")
    ]
    data = ModelCardData(
        library_name="peft",
        pipeline_tag=task,
        # Only the name of a hub's repository is a valid link.
        base_model=source.get("repository"),
        tags=["lora", "speech-recognition", params.model.modality, "attention-sinks"],
        model_name=title,
        eval_results=results or None,
    )
    return data.to_yaml()


def _source_text(source: dict[str, str]) -> str:
    match source.get("kind"):
        case "hub":
            return f"`{source['repository']}` at revision `{source['revision']}`"
        case "wheel":
            member = f"`{source['member']}` of the Python wheel `{source['package']}` {source['version']}"
            return f"converted from {member} (SHA-256 `{source['sha256']}`)"
        case _:
            return ""


def _conditions(entry: Entry) -> list[str]:
    names = {name.removeprefix("wer/") for name in entry.metrics if name.startswith("wer/")}
    return sorted((name for name in names if not is_bound(name)), key=condition_order)


def _value(entry: Entry, metric: str, unit: Unit) -> str:
    names = (metric, f"{metric}/low", f"{metric}/high")
    value, *bounds = [rounded(unit.factor * entry.metrics[n], unit.decimals) for n in names if n in entry.metrics]
    return f"{value} [{', '.join(bounds)}]" if bounds else value


def _utterances(trial: Trial) -> str:
    """Number of scored utterances by split and condition."""
    if not trial.result():
        return ""
    lines = trial.read_hypotheses()
    return ", ".join(f"{condition_name(name)}: {len(lines[name])}" for name in sorted(lines, key=condition_order))


def _facts(entry: Entry) -> dict[str, str]:
    facts: dict[str, str] = {}
    for origin in trial_provenance([entry]):
        facts |= {"started": f"{origin.started} UTC", "duration": origin.duration, "machine": origin.machine}
    commits = dict.fromkeys(
        f"`{code['commit']}`" + " with uncommitted changes" * bool(code.get("dirty"))
        for session in sessions(entry.trial)
        if "commit" in (code := session.get("code", {}))
    )
    shared = {name: fact for name, fact in shared_facts([entry]).items() if not name.startswith("data: ")}
    return facts | {"commit": ", ".join(commits) or "not under version control"} | shared
