"""Claims of the paper: verdicts, values, and reasons for inconclusive claims."""

from pathlib import Path

import numpy as np
import pytest
from trials import finish, make_trial, sink_records, write_sinks

from pipeline.comparison import output
from pipeline.comparison.claims import Claim, ClaimVerdict, claims, claims_markdown, claims_summary
from pipeline.comparison.output import write_comparison
from pipeline.comparison.table import compare
from pipeline.trials.folder import Trial

COUNT = "intermediate_tokens_per_utterance"
ROLES = {"padding": 0, "bos": 10, "audio": 100, "prompt": 60, "response": 40}
AUDIO = "model.modality=audio"
LOSS = "decorrelation.weight=0.1"
NONE = [0] * 10
MANY = [2, 1, 2, 2, 1, 2, 2, 1, 2, 2]


def metrics_of(sinks: list[int], relocated: list[int] = NONE, **more: list) -> dict[str, list]:
    """Metrics of ten utterances: sinks, the first of each at the prompt and the others in the audio."""
    metrics = {
        COUNT: sinks,
        f"{COUNT}/audio": [max(0, n - 1) for n in sinks],
        f"{COUNT}/prompt": [min(n, 1) for n in sinks],
        f"{COUNT}/tau_300": sinks,
        f"{COUNT}/attention": sinks,
        "feature_jaccard": [(0.9 * n, n) for n in sinks],
        "mlp_share/intermediate": [(0.99 * n, n) for n in sinks],
        "bos_cosine/sink": [(0.97 * n, n) for n in sinks],
        "bos_cosine/other": [(0.2 * 30, 30)] * 10,
        "relocated_share": relocated,
        "relocated_share/ratio": relocated,
    }
    return metrics | more


def measured(folder: Path, metrics: dict[str, list], *settings: str) -> Trial:
    trial = finish(make_trial(folder, AUDIO, *settings), {"test": NONE})
    write_sinks(trial, 3000, **sink_records(metrics, ROLES))
    return trial


def checked(*trials: Trial) -> dict[tuple[float, str], Claim]:
    return {(claim.variant.decorrelation_weight, claim.statement): claim for claim in claims(compare(trials))}


def test_claims_about_trials_without_the_loss(tmp_path: Path) -> None:
    by_name = {statement: claim for (_, statement), claim in checked(measured(tmp_path, metrics_of(MANY))).items()}
    words = {statement: (claim.verdict, claim.value) for statement, claim in by_name.items()}
    assert words["there are intermediate sinks, by activation"] == ("holds", "1.70 [1.40, 2.00] per utterance")
    verdict, value = words["they occur at certain roles"]
    # Ten of seventeen at the prompt, which has 60 of 200 tokens.
    assert verdict == "holds"
    assert value.startswith("prompt 59% [")
    assert value.endswith("] (of the tokens 30%), audio 41%")
    assert words["they share massive dimensions with BOS"] == ("holds", "0.90 [0.90, 0.90]")
    assert words["the MLP writes them"] == ("holds", "0.99 [0.99, 0.99]")
    assert words["they align with BOS"] == ("holds", "cosine 0.97 [0.97, 0.97], other tokens 0.20 [0.20, 0.20]")
    assert len(by_name) == 7


def test_without_sinks_claims_about_their_properties_are_inconclusive(tmp_path: Path) -> None:
    by_name = checked(measured(tmp_path, metrics_of(NONE)))
    assert by_name[0, "there are intermediate sinks, by activation"].verdict is ClaimVerdict.FAILS
    for statement in ("they occur at certain roles", "the MLP writes them", "they align with BOS"):
        assert (by_name[0, statement].verdict, by_name[0, statement].value) == (
            ClaimVerdict.OPEN,
            "there is no intermediate sink",
        )


@pytest.mark.parametrize(
    ("name", "values", "statement", "verdict"),
    [
        ("feature_jaccard", [0.2] * 10, "they share massive dimensions with BOS", ClaimVerdict.FAILS),
        ("feature_jaccard", [0, 1] * 5, "they share massive dimensions with BOS", ClaimVerdict.OPEN),
        ("mlp_share/intermediate", [0.3] * 10, "the MLP writes them", ClaimVerdict.FAILS),
        ("bos_cosine/sink", [0.5] * 10, "they align with BOS", ClaimVerdict.FAILS),
        ("bos_cosine/other", [0.99] * 10, "they align with BOS", ClaimVerdict.FAILS),
        (COUNT, [1, *[0] * 9], "there are intermediate sinks, by activation", ClaimVerdict.OPEN),
    ],
)
def test_claims_that_do_not_hold_or_include_their_bound(
    tmp_path: Path, name: str, values: list, statement: str, verdict: ClaimVerdict
) -> None:
    assert checked(measured(tmp_path, metrics_of(MANY, **{name: values})))[0, statement].verdict is verdict


def test_a_loss_that_removes_the_sinks(tmp_path: Path) -> None:
    by_name = checked(measured(tmp_path, metrics_of(MANY, [1] * 9 + [0])), measured(tmp_path, metrics_of(NONE), LOSS))
    removed = by_name[0.1, "the loss removes them, by activation"]
    assert (removed.verdict, removed.value) == (
        ClaimVerdict.HOLDS,
        "0% remain: 1.70 [1.40, 2.00] → 0.00 [0.00, 0.00] per utterance",
    )
    stays = by_name[0.1, "no other token takes over from BOS, by attention"]
    assert stays.verdict is ClaimVerdict.HOLDS
    assert stays.value.startswith("not BOS in 0% [0, 0] of the utterances, -90% [-100, -70] relative to weight 0")


def test_a_loss_that_relocates_the_sink_or_leaves_some(tmp_path: Path) -> None:
    some = [1, 1, 0, 1, 0, 1, 0, 1, 1, 1]
    by_name = checked(
        measured(tmp_path, metrics_of(MANY)), measured(tmp_path, metrics_of(some, [1] * 8 + [0] * 2), LOSS)
    )
    assert by_name[0.1, "the loss removes them, by activation"].verdict is ClaimVerdict.FAILS
    assert "41% remain" in by_name[0.1, "the loss removes them, by activation"].value
    moved = by_name[0.1, "no other token takes over from BOS, by ratio"]
    assert moved.verdict is ClaimVerdict.FAILS
    assert "+80% [" in moved.value


def test_with_too_few_sinks_removal_is_inconclusive(tmp_path: Path) -> None:
    by_name = checked(measured(tmp_path, metrics_of(NONE)), measured(tmp_path, metrics_of(MANY), LOSS))
    removed = by_name[0.1, "the loss removes them, by activation"]
    assert removed.verdict is ClaimVerdict.OPEN
    assert removed.value.startswith("too few sinks to test removal: 0.00 [0.00, 0.00] → 1.70")


def test_seeds_are_the_sample_and_paired(tmp_path: Path) -> None:
    trials = [
        measured(
            tmp_path, metrics_of(MANY if weight == 0 else NONE), f"decorrelation.weight={weight}", f"train.seed={seed}"
        )
        for weight, seed in ((0, 0), (0, 1), (0.1, 1))
    ]
    by_name = checked(*trials)
    assert by_name[0, "there are intermediate sinks, by activation"].value == "1.70 [1.70, 1.70] (2) per utterance"
    assert by_name[0.1, "the loss removes them, by activation"].verdict is ClaimVerdict.HOLDS


def test_inconclusive_claims_have_reasons(tmp_path: Path) -> None:
    plain = measured(tmp_path, metrics_of(MANY))
    older = finish(make_trial(tmp_path, AUDIO, LOSS), {"test": NONE})
    write_sinks(older, 3000)
    by_name = checked(plain, older)
    assert by_name[0.1, "every claim"].verdict is ClaimVerdict.OPEN
    assert by_name[0.1, "every claim"].value.endswith("has no records of single utterances; evaluate the trial again")
    older.sinks.unlink()
    assert "cannot be read" in checked(plain, older)[0.1, "every claim"].value
    shorter = {name: values[:9] for name, values in metrics_of(NONE).items()}
    write_sinks(older, 3000, **sink_records(shorter, ROLES))
    assert "was measured on other utterances" in checked(plain, older)[0.1, "every claim"].value
    waiting = make_trial(tmp_path, AUDIO, "decorrelation.weight=1")
    assert checked(plain, waiting)[1, "every claim"].value == "new"
    lone = measured(tmp_path / "lone", metrics_of(NONE), LOSS)
    assert "has no done trial of this task and seed" in checked(lone)[0.1, "every claim"].value


def test_claims_are_written_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_figures", lambda *_: [])
    trials = [measured(tmp_path / "runs", metrics_of(MANY)), measured(tmp_path / "runs", metrics_of(NONE), LOSS)]
    comparison = compare(trials)
    by_name = claims(comparison)
    assert claims_summary(by_name) == (
        "Claims of the paper: without the loss 7 holds; with it 5 holds. Details: claims.md\n"
    )
    row = "| ASR 16 | weight 0 | the MLP writes them | **holds** | 0.99 [0.99, 0.99] |"
    assert row in claims_markdown(by_name).splitlines()
    assert tmp_path / "claims.md" in write_comparison(comparison, tmp_path)
    assert (tmp_path / "table.txt").read_text().endswith(claims_summary(by_name))


def test_intervals_are_those_of_the_instrument() -> None:
    records = sink_records(metrics_of(MANY), ROLES)
    assert records["records"].shape == (11, 2, 10)
    assert np.isfinite(records["records"]).all()


def test_a_claim_is_inconclusive_if_seeds_vary_widely(tmp_path: Path) -> None:
    """Three trials of 0, 1 and 4 sinks per utterance are not one of 1.7: the next may have none."""
    trials = [
        measured(tmp_path, metrics_of([count] * 10), f"train.seed={seed}") for seed, count in enumerate((0, 1, 4))
    ]
    claim = checked(*trials)[0, "there are intermediate sinks, by activation"]
    assert claim.verdict is ClaimVerdict.OPEN
    assert claim.value == "1.67 [-3.50, 6.84] (3) per utterance"


def rates(folder: Path, errors: dict[tuple[int, float], list[int]]) -> dict[tuple[int, float, str], Claim]:
    """Claims by audio rate and weight, of trials with so many errors in each of 400 words, a seed each."""
    trials = [
        finish(
            make_trial(
                folder, AUDIO, f"model.rates.audio={rate}", f"decorrelation.weight={weight}", f"train.seed={seed}"
            ),
            {"test": [count] * 10},
        )
        for (rate, weight), counts in errors.items()
        for seed, count in enumerate(counts)
    ]
    return {(c.task.rates[0], c.variant.decorrelation_weight, c.statement): c for c in claims(compare(trials))}


def test_word_error_rate_falls_at_the_highest_rate_and_stays_at_the_lowest(tmp_path: Path) -> None:
    falls, stays = "at the highest rate the word error rate falls", "at the lowest rate the word error rate stays"
    by_name = rates(
        tmp_path / "paper", {(16, 0): [4, 5, 4, 5], (16, 0.1): [2, 2, 1, 2], (4, 0): [2] * 4, (4, 0.1): [2] * 4}
    )
    assert by_name[16, 0.1, falls].verdict is ClaimVerdict.HOLDS
    assert by_name[4, 0.1, stays].verdict is ClaimVerdict.HOLDS
    assert by_name[16, 0.1, falls].value.endswith("over 4 seeds")
    assert not {(4, 0.1, falls), (16, 0.1, stays), (16, 0, falls)} & by_name.keys()
    by_name = rates(
        tmp_path / "worse", {(16, 0): [1, 2, 1], (16, 0.1): [5, 5, 6], (4, 0): [1, 2, 1], (4, 0.1): [5, 5, 6]}
    )
    assert by_name[16, 0.1, falls].verdict is ClaimVerdict.FAILS
    assert by_name[4, 0.1, stays].verdict is ClaimVerdict.FAILS
    by_name = rates(tmp_path / "once", {(16, 0): [4], (16, 0.1): [4], (4, 0): [4], (4, 0.1): [4]})
    assert by_name[4, 0.1, stays].verdict is ClaimVerdict.OPEN
