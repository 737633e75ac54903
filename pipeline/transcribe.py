"""One's own recordings through a trained adapter: a line of text for each file.

Encoders, rates, LLM and adapter are those of the trial, as its own config.yaml has them. A trial that hears takes any
audio, or a video with sound; one that reads lips takes a video of a face, or of a mouth. A .wav of the same name beside
a video is its sound.
"""

import argparse
import sys
from pathlib import Path

from pipeline.common.command import params_of, parser, run_command


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio or video in any format")
    options.add_argument(
        "--trial",
        required=True,
        metavar="ID",
        help="a trained trial: its folder, the beginning of its identity, or the id of its run in MLflow",
    )
    options.add_argument("--beams", type=int, metavar="N", help="of the search; by default as the trial's evaluation")
    options.add_argument(
        "--sinks", action="store_true", help="say which tokens are sinks while the model reads its own text"
    )
    arguments = options.parse_args()
    run_command(lambda: transcribe(arguments))


def transcribe(arguments: argparse.Namespace) -> None:
    """Print the text of each file, in their order, and below it, indented, its sinks if they are asked for.

    Raises:
        PipelineError: there is no such trial, it is not trained, or a file cannot be read. What was printed before it
            is right.
    """
    from pipeline.comparison.selection import named_trial
    from pipeline.transcription.recording import require_file

    # Before the seconds that it takes to load a model.
    for file in arguments.files:
        require_file(file)
    # A folder needs no params.yaml to be found.
    runs = "runs" if Path(arguments.trial).is_dir() else params_of(arguments).train.runs
    trial = named_trial(arguments.trial, runs)

    from pipeline.transcription.sinks import sink_words
    from pipeline.transcription.transcriber import Transcriber

    beams = [] if arguments.beams is None else [f"evaluate.beams={arguments.beams}"]
    transcriber = Transcriber(trial, [*arguments.set, *beams])
    for file in arguments.files:
        heard = transcriber.hear(file)
        print(heard.text, flush=True)
        if heard.is_cut:
            limit = transcriber.params.evaluate.max_new_tokens
            more = f"allow more: --set evaluate.max_new_tokens={2 * limit}"
            print(
                f"warning: {file}: its text has all the {limit} tokens it may have; {more}", file=sys.stderr, flush=True
            )
        if arguments.sinks:
            labels, tokens = transcriber.tokens(heard)
            lines = sink_words(labels, tokens, transcriber.params.sinks.tau)
            print(*(f"  {line}" for line in lines), sep="\n", flush=True)


if __name__ == "__main__":
    main()
