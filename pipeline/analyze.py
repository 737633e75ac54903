"""The sink instrument on a finished trial, or on any causal language model and a text.

`--trial ID` takes a trial, `--model PATH --text FILE` a language model. Prints which tokens are sinks, in which
dimensions, which layer writes them and how strong they are; draws the figures. With --interventions it also removes
sinks, and prints what that costs in word errors or perplexity.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.config import Evaluate, Sinks
from pipeline.pretrained.folder import RECORD, verify_weights

if TYPE_CHECKING:
    from pipeline.analysis.survey import Survey
    from pipeline.analysis.target import Subject

RESULTS = Path("results/analysis")


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--trial", metavar="ID", help="a trial: its identity, the beginning of it, or its folder")
    options.add_argument("--model", type=Path, metavar="FOLDER", help="a language model as model hubs have it")
    options.add_argument("--text", type=Path, metavar="FILE", help="what the language model reads, in UTF-8")
    options.add_argument("--tokens", type=int, default=64, help="length of a sequence of the text, BOS included")
    options.add_argument("--utterances", type=int, metavar="N", help="take the first N utterances (or sequences) only")
    options.add_argument("--interventions", action="store_true", help="intervene on the sinks, and score it")
    options.add_argument("--out", type=Path, metavar="FOLDER", help=f"write here; by default {RESULTS}/<what it is>")
    arguments = options.parse_args()
    if bool(arguments.trial) == bool(arguments.model):
        options.error("name a trial with --trial, or a language model with --model and --text")
    if bool(arguments.model) != bool(arguments.text):
        options.error("--model and --text go together")
    if arguments.utterances is not None and arguments.utterances < 1:
        options.error("--utterances is at least 1")
    run_command(lambda: analyze(arguments))


def analyze(arguments: argparse.Namespace) -> None:
    """Analyse what the arguments name.

    Raises:
        PipelineError: there is no such trial or model, an input is missing, or nothing can be measured.
    """
    from pipeline.analysis.figures import draw_sinks
    from pipeline.analysis.survey import survey
    from pipeline.analysis.words import words
    from pipeline.common.files import write_json, write_text

    subject, sinks, evaluate = _subject(arguments)
    folder = arguments.out or RESULTS / subject.name
    found = survey(subject, sinks, evaluate.bootstrap)
    if not found.summary.metrics:
        raise PipelineError(subject.title, "its activations are not finite", "take a model that has not diverged")
    summary = words(subject, found, sinks)
    print(summary)
    write_text(folder / "summary.txt", summary)
    write_json(folder / "sinks.json", {"metrics": found.summary.metrics, "description": found.summary.description})
    draw_sinks(found.summary, folder, subject.name)
    if arguments.interventions:
        print(_interventions(subject, found, sinks, folder))
    print(f"written: {folder}")


def _subject(arguments: argparse.Namespace) -> tuple["Subject", Sinks, Evaluate]:
    if arguments.model:
        from pipeline.analysis.text import Text

        params = params_of(arguments)
        if (Path(arguments.model) / RECORD).exists():
            verify_weights(arguments.model)
        subject = Text(arguments.model, arguments.text, arguments.tokens, params, arguments.utterances)
        return subject, params.sinks, params.evaluate
    from pipeline.analysis.speech import Speech
    from pipeline.comparison.selection import named_trials

    # A folder needs no params.yaml to be found.
    runs = "runs" if Path(arguments.trial).is_dir() else params_of(arguments).train.runs
    trials = named_trials([arguments.trial], runs)
    if len(trials) != 1:
        raise PipelineError(arguments.trial, f"holds {len(trials)} trials", "name one of them")
    speech = Speech(trials[0], arguments.set, arguments.utterances)
    return speech, speech.params.sinks, speech.params.evaluate


def _interventions(subject: "Subject", found: "Survey", sinks: Sinks, folder: Path) -> str:
    """Score the interventions, or go on with it; write the table in every form, and give it as text."""
    from pipeline.analysis import table
    from pipeline.analysis.effects import applicable_tests, effects, outcomes
    from pipeline.analysis.figures import draw_effects
    from pipeline.common.code import code_digest
    from pipeline.common.files import digest, write_json, write_text

    tests = applicable_tests(found, subject.title)
    source = {
        "subject": subject.identity,
        "sinks": sinks.model_dump(mode="json"),
        "tests": [test.name for test in tests],
        "code": code_digest("pipeline.analyze"),
    }
    # Named by all that decides the outcomes, so that those of another model or beam are not taken for these.
    journal = folder / f"interventions.{digest(source)[:16]}.journal"
    for other in set(folder.glob("interventions.*.journal")) - {journal}:
        other.unlink()
    rows = effects(subject, tests, outcomes(subject, tests, sinks, journal))
    text = table.text(rows, subject.score, subject.item)
    write_text(folder / "interventions.txt", text)
    write_text(folder / "interventions.md", table.markdown(rows, subject.score, subject.item))
    write_text(folder / "interventions.csv", table.csv_table(rows))
    records = [{"test": effect.record(), "control": control and control.record()} for effect, control in rows]
    write_json(folder / "interventions.json", {"source": source, "score": subject.score, "effects": records})
    draw_effects(rows, subject.score, folder)
    return text


if __name__ == "__main__":
    main()
