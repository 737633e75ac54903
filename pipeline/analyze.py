"""Analyse the sinks of a trained trial, or of any causal language model on a text.

`--trial ID` selects a trial, `--model FOLDER --text FILE` a language model. Prints which tokens are sinks, in which
dimensions, which layer writes them and how strong they are; draws the figures. With --interventions it also removes
sinks, and prints the change of the word error rate or the perplexity.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.command import load_params_for_command, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.config import Evaluate, Sinks
from pipeline.pretrained.folder import WEIGHTS_RECORD, verify_weights
from pipeline.tracking.selection import TRIAL_HELP, requested_trial

if TYPE_CHECKING:
    from pipeline.analysis.survey import Survey
    from pipeline.analysis.target import AnalysisTarget

RESULTS = Path("results/analysis")


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--trial", metavar="TRIAL", help=TRIAL_HELP)
    options.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a language model: config.json, weights, tokenizer"
    )
    options.add_argument("--text", type=Path, metavar="FILE", help="text for the language model, in UTF-8")
    options.add_argument("--tokens", type=int, default=64, help="length of each sequence of the text, BOS included")
    options.add_argument("--utterances", type=int, metavar="N", help="use only the first N utterances (or sequences)")
    options.add_argument("--interventions", action="store_true", help="score interventions on the sinks")
    options.add_argument("--out", type=Path, metavar="FOLDER", help=f"output folder; by default {RESULTS}/NAME")
    arguments = options.parse_args()
    if bool(arguments.trial) == bool(arguments.model):
        options.error("give a trial with --trial, or a language model with --model and --text")
    if bool(arguments.model) != bool(arguments.text):
        options.error("--model and --text go together")
    if arguments.utterances is not None and arguments.utterances < 1:
        options.error("--utterances must be at least 1")
    analyze(arguments)


def analyze(arguments: argparse.Namespace) -> None:
    """Analyse the selected trial or language model. PipelineError if the trial or model does not exist, an input is
    missing, or nothing can be measured."""
    from pipeline.analysis.figures import draw_sinks
    from pipeline.analysis.summary import summary_text
    from pipeline.analysis.survey import survey
    from pipeline.common.files import write_json, write_text

    target, sinks, evaluate = _target(arguments)
    folder = arguments.out or RESULTS / target.name
    surveyed = survey(target, sinks, evaluate.bootstrap)
    summary = surveyed.summary
    if not summary.metrics:
        raise PipelineError(target.title, "its activations are not finite", "use a model that has not diverged")
    text = summary_text(target, surveyed, sinks)
    print(text)
    write_text(folder / "summary.txt", text)
    write_json(folder / "sinks.json", {"metrics": summary.metrics, "description": summary.description})
    draw_sinks(summary, folder, target.name)
    if arguments.interventions:
        print(_interventions(target, surveyed, sinks, folder))
    print(f"written: {folder}")


def _target(arguments: argparse.Namespace) -> tuple["AnalysisTarget", Sinks, Evaluate]:
    if arguments.model:
        from pipeline.analysis.text_target import TextTarget

        params = load_params_for_command(arguments)
        if (Path(arguments.model) / WEIGHTS_RECORD).exists():
            verify_weights(arguments.model)
        text = TextTarget(arguments.model, arguments.text, arguments.tokens, params, arguments.utterances)
        return text, params.sinks, params.evaluate
    from pipeline.analysis.speech_target import SpeechTarget

    speech = SpeechTarget(requested_trial(arguments.trial, arguments), arguments.set, arguments.utterances)
    return speech, speech.params.sinks, speech.params.evaluate


def _interventions(target: "AnalysisTarget", surveyed: "Survey", sinks: Sinks, folder: Path) -> str:
    """Score the interventions, resuming an interrupted run; write the table in all formats and return it as text."""
    from dataclasses import asdict

    from pipeline.analysis import table
    from pipeline.analysis.effects import applicable_tests, effects, item_results
    from pipeline.analysis.figures import draw_effects
    from pipeline.common.code import code_digest
    from pipeline.common.digests import digest
    from pipeline.common.files import write_json, write_text

    tests = applicable_tests(surveyed, target.title)
    source = {
        "subject": target.identity,
        "sinks": sinks.model_dump(mode="json"),
        "tests": [test.name for test in tests],
        "code": code_digest("pipeline.analyze"),
    }
    # The name has the digest of everything that determines the results, so that those of other settings are not used.
    journal = folder / f"interventions.{digest(source)[:16]}.journal"
    for outdated in set(folder.glob("interventions.*.journal")) - {journal}:
        outdated.unlink()
    rows = effects(target, tests, item_results(target, tests, sinks, journal))
    text = table.effects_text(rows, target.score_kind, target.item)
    write_text(folder / "interventions.txt", text)
    write_text(folder / "interventions.csv", table.effects_csv(rows))
    records = [{"test": asdict(effect), "control": control and asdict(control)} for effect, control in rows]
    write_json(folder / "interventions.json", {"source": source, "score": target.score_kind, "effects": records})
    draw_effects(rows, target.score_kind, folder)
    return text


if __name__ == "__main__":
    run_command(main)
