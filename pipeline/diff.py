"""Differences between two trials: parameters, code, data, versions, metrics and hypotheses."""

from pipeline.common.command import from_zero, parser, require_only_runs_set, run_command
from pipeline.differences.pair import find_differences
from pipeline.differences.text import differences_text, terminal_width
from pipeline.tracking.selection import TRIAL_HELP, requested_trial


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("trials", nargs=2, metavar="TRIAL", help=f"A and B, each {TRIAL_HELP}")
    options.add_argument(
        "--utterances", type=from_zero, default=5, metavar="N", help="how many to show per condition and direction"
    )
    arguments = options.parse_args()
    require_only_runs_set(arguments)
    a, b = (requested_trial(name, arguments) for name in arguments.trials)
    print(differences_text(find_differences(a, b), arguments.utterances, terminal_width()), end="")


if __name__ == "__main__":
    run_command(main)
