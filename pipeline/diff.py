"""Two recorded runs: what differs in parameters, code, data and versions, in figures, and in what was understood.

A run is a trial's folder, the beginning of an identity, or the id of its run in MLflow.
"""

from pipeline.common.command import params_of, parser, run_command
from pipeline.comparison.pair import compare_pair
from pipeline.comparison.pair_text import pair_text, terminal_width
from pipeline.comparison.selection import named_trial


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("runs", nargs=2, metavar="RUN", help="the first is A, the second is B")
    options.add_argument(
        "--utterances", type=int, default=5, metavar="N", help="how many to show of each condition and direction"
    )
    arguments = options.parse_args()

    def body() -> None:
        folder = params_of(arguments).train.runs
        one, other = (named_trial(name, folder) for name in arguments.runs)
        print(pair_text(compare_pair(one, other), arguments.utterances, terminal_width()), end="")

    run_command(body)


if __name__ == "__main__":
    main()
