"""A comparison of trials: word error rates, sinks, and the changes due to the decorrelation weight.

Prints the weight and rate with the lowest word error rate without intermediate sinks, then the table; with --out it
also writes the table as Markdown, CSV and LaTeX, the claims and the figures.
"""

from pathlib import Path

from pipeline.common.command import load_params_for_command, parser, require_only_runs_set, run_command
from pipeline.comparison.output import text_above_table, write_comparison
from pipeline.comparison.rendering import table_text
from pipeline.comparison.table import compare
from pipeline.tracking.selection import named_trials


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument(
        "trials",
        nargs="*",
        metavar="TRIAL_OR_FOLDER",
        help="identities or prefixes of them, trial folders or folders of trials; default: all done trials",
    )
    options.add_argument("--out", type=Path, metavar="FOLDER", help="write tables and figures here")
    arguments = options.parse_args()
    require_only_runs_set(arguments)
    comparison = compare(named_trials(arguments.trials, load_params_for_command(arguments).train.runs))
    print(text_above_table(comparison) + table_text(comparison), end="")
    if arguments.out:
        write_comparison(comparison, arguments.out)
        print(f"written: {arguments.out}")


if __name__ == "__main__":
    run_command(main)
