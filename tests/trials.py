"""Trial folders with given metrics, written without training, and manifests without media."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.config import load_params
from pipeline.corpora.manifest import MANIFEST, Utterance, manifest_text
from pipeline.trials.folder import Trial

ROOT = Path(__file__).resolve().parents[1]
WORDS = 6
DATA = {"utterances": "1" * 64, "llm": "1" * 64}


def make_trial(runs: Path, *settings: str, data: dict[str, str] = DATA) -> Trial:
    """A trial that has not started to train, with the settings of the repository's params.yaml and these."""
    params = load_params(ROOT / "params.yaml", ["train.device=cpu", "train.precision=float32", *settings])
    return Trial.create(runs, params, data)


def write_manifest(corpus: Path, utterances: Iterable[Utterance]) -> None:
    """Write `manifest.jsonl` into the folder of a corpus, which is created if it is new."""
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / MANIFEST).write_text(manifest_text(utterances), encoding="utf-8")


def finish(trial: Trial, errors: dict[str, list[int]], **more: float) -> Trial:
    """Write the results of an evaluation: errors per utterance of six words, by condition, and more metrics."""
    metrics = dict(more)
    lines = []
    for name, counts in errors.items():
        wer = sum(counts) / (WORDS * len(counts))
        metrics |= {f"wer/{name}": wer, f"wer/{name}/low": 0.8 * wer, f"wer/{name}/high": 1.2 * wer}
        split, _, condition = name.partition("/")
        for number, count in enumerate(counts):
            record = {"split": split, "condition": condition or "clean", "id": f"{name}/{number}", "words": WORDS}
            record |= {"substitutions": count, "deletions": 0, "insertions": 0, "hits": WORDS - count, "changes": []}
            lines.append(json.dumps({**record, "reference": "a b c d e f", "hypothesis": "a b c d e f"}))
    trial.hypotheses.write_text("".join(f"{line}\n" for line in lines))
    trial.adapter.mkdir(exist_ok=True)
    trial.finish("e" * 64, metrics)
    return trial


def with_hypotheses(trial: Trial, text: str) -> None:
    """Replace the lines of `hypotheses.jsonl` of a done trial."""
    result = trial.result()
    trial.hypotheses.write_text(text)
    trial.finish(result["evaluation"], result["metrics"], result["details"])


def sink_records(metrics: dict[str, list], roles: dict[str, int]) -> dict[str, np.ndarray]:
    """The sink instrument's records per utterance (a value, or numerator and denominator), and tokens by role."""
    values = [[value if isinstance(value, tuple) else (value, 1) for value in column] for column in metrics.values()]
    return {
        "record_ids": np.array([f"test/{number}" for number in range(len(values[0]))]),
        "record_names": np.array([f"sinks/{name}" for name in metrics]),
        "records": np.array(values, np.float32).transpose(0, 2, 1),
        "roles": np.array(list(roles)),
        "role_tokens": np.array(list(roles.values())),
    }


def write_sinks(
    trial: Trial, massive: float, blocks: int = 8, heads: int = 3, sinks: bool = True, **more: np.ndarray
) -> None:
    """Plausible arrays of the sink instrument: BOS and, if there are sinks, others are `massive` in the middle."""
    random = np.random.default_rng(0)
    here = np.zeros(blocks, bool)
    here[2 : blocks - 1] = True
    quantiles = np.array([0.05, 0.25, 0.5, 0.75, 0.95], np.float32)
    cosine = np.stack([0.1 + 0.4 * random.random(blocks), np.where(here, 0.97, np.nan)], 1)
    cosine[:, 1] = cosine[:, 1] if sinks else np.nan
    spread = np.array([-0.1, -0.04, 0, 0.04, 0.1]) * np.array([[1], [0.2]])
    origin = np.zeros((blocks, 2), int)
    origin[2] = (5, 9 if sinks else 0)
    np.savez(
        trial.sinks,
        cosine_mean_joined=cosine,
        cosine_quantiles_joined=(cosine[..., None] + spread).astype(np.float32),
        quantiles=quantiles,
        largest=np.where(here[:, None], massive * np.array([1, 0.3, 0.1]), np.array([9, 7, 6])),
        median=np.linspace(1, 4, blocks),
        importance_bos=random.random((blocks, heads)),
        importance_intermediate=random.random((blocks, heads)) * (0.5 if sinks else 0.05),
        origin_main=origin,
        origin_first=origin,
        **more,
    )
