"""Differences between two trials: parameters, code, data, versions, metrics and hypotheses.

A trial is named by its folder, a prefix of its identity, or the id of its run in MLflow.
"""

from pipeline.common.command import params_of, parser, run_command
from pipeline.comparison.selection import named_trial
from pipeline.differences.pair import compare_pair
from pipeline.differences.text import pair_text, terminal_width


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("trials", nargs=2, metavar="TRIAL", help="the first is A, the second is B")
    options.add_argument(
        "--utterances", type=int, default=5, metavar="N", help="how many to show per condition and direction"
    )
    arguments = options.parse_args()

    def body() -> None:
        folder = params_of(arguments).train.runs
        a, b = (named_trial(name, folder) for name in arguments.trials)
        print(pair_text(compare_pair(a, b), arguments.utterances, terminal_width()), end="")

    run_command(body)


if __name__ == "__main__":
    main()
