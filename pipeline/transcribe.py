"""Transcribe your own recordings with a trained trial: one line of text per file.

Encoders, rates, LLM and adapter are those of the trial's own config.yaml. An audio trial takes any audio, or a video
with audio; a trial with video takes a video of a face or of a mouth. A .wav, .flac or .ogg with the name of a video
replaces its audio.
"""

import argparse
import sys
from pathlib import Path

from pipeline.common.command import parser, run_command
from pipeline.tracking.selection import TRIAL_HELP, requested_trial


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio or video in any format")
    options.add_argument("--trial", required=True, metavar="TRIAL", help=TRIAL_HELP)
    options.add_argument("--beams", type=int, metavar="N", help="beam size; by default that of the trial's evaluation")
    options.add_argument(
        "--sinks", action="store_true", help="also list the sinks, measured with the transcribed text as the response"
    )
    transcribe(options.parse_args())


def transcribe(arguments: argparse.Namespace) -> None:
    """Print the text of each file in order, followed by indented lines on its sinks if requested. PipelineError if the
    trial does not exist or is not trained, or a file cannot be read. Text printed before the error is valid."""
    from pipeline.transcription.recording import require_file

    # Before the seconds of loading a model.
    for file in arguments.files:
        require_file(file)
    trial = requested_trial(arguments.trial, arguments)

    from pipeline.transcription.transcriber import Transcriber

    beams = [] if arguments.beams is None else [f"evaluate.beams={arguments.beams}"]
    transcriber = Transcriber(trial, [*arguments.set, *beams])
    limit = transcriber.params.evaluate.max_new_tokens
    for file in arguments.files:
        transcription = transcriber.transcribe(file)
        print(transcription.text, flush=True)
        if transcription.is_truncated:
            warning = f"its text reached the limit of {limit} tokens"
            remedy = f"raise it with --set evaluate.max_new_tokens={2 * limit}"
            print(f"warning: {file}: {warning}; {remedy}", file=sys.stderr, flush=True)
        if arguments.sinks:
            print(*(f"  {line}" for line in transcriber.sinks(transcription)), sep="\n", flush=True)


if __name__ == "__main__":
    run_command(main)
