"""Claims of the paper: verdicts, values, and reasons for inconclusive claims."""

from collections import Counter
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
ROLES = {"padding": 0, "bos": 10, "audio": 150, "prompt": 10, "response": 40}
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


def measured(folder: Path, metrics: dict[str, list], *settings: str, roles: dict[str, int] = ROLES) -> Trial:
    trial = finish(make_trial(folder, AUDIO, *settings), {"test": NONE})
    write_sinks(trial, 3000, **sink_records(metrics, roles))
    return trial


def checked(*trials: Trial) -> dict[tuple[float, str], Claim]:
    return {(claim.variant.decorrelation_weight, claim.statement): claim for claim in claims(compare(trials))}


def test_claims_about_trials_without_the_loss(tmp_path: Path) -> None:
    by_name = {statement: claim for (_, statement), claim in checked(measured(tmp_path, metrics_of(MANY))).items()}
    words = {statement: (claim.verdict, claim.value) for statement, claim in by_name.items()}
    assert words["there are intermediate sinks, by activation"] == ("holds", "1.70 [1.40, 2.00] per utterance")
    verdict, value = words["they occur at certain roles"]
    # Ten of seventeen at the prompt, which has 10 of 200 tokens.
    assert verdict == "holds"
    assert value.startswith("prompt 59% [")
    assert value.endswith("] (of the tokens 5%, p<0.001), audio 41%")
    assert words["they share massive dimensions with BOS"] == ("holds", "0.90 [0.90, 0.90]")
    assert words["the MLP writes them"] == ("holds", "0.99 [0.99, 0.99]")
    assert words["they align with BOS"] == ("holds", "cosine 0.97 [0.97, 0.97], other tokens 0.20 [0.20, 0.20]")
    assert len(by_name) == 7


def test_claims_read_the_records_of_a_trial_once_and_no_other_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [
        measured(tmp_path, metrics_of(MANY), f"decorrelation.weight={weight}", f"train.seed={seed}")
        for weight in (0, 0.1, 0.2)
        for seed in (0, 1)
    ]
    comparison = compare(trials)
    read: Counter[str] = Counter()
    item = np.lib.npyio.NpzFile.__getitem__

    def counted(arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
        read[name] += 1
        return item(arrays, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", counted)
    assert claims(comparison) == claims(comparison)
    assert read == dict.fromkeys(sink_records(metrics_of(MANY), ROLES), len(trials))


def test_without_sinks_claims_about_their_properties_are_inconclusive(tmp_path: Path) -> None:
    by_name = checked(measured(tmp_path, metrics_of(NONE)))
    assert by_name[0, "there are intermediate sinks, by activation"].verdict is ClaimVerdict.FAILS
    for statement in ("they occur at certain roles", "the MLP writes them", "they align with BOS"):
        assert (by_name[0, statement].verdict, by_name[0, statement].value) == (
            ClaimVerdict.INCONCLUSIVE,
            "there is no intermediate sink by activation",
        )


@pytest.mark.parametrize(
    ("name", "values", "statement", "verdict"),
    [
        ("feature_jaccard", [0.2] * 10, "they share massive dimensions with BOS", ClaimVerdict.FAILS),
        ("feature_jaccard", [0, 1] * 5, "they share massive dimensions with BOS", ClaimVerdict.INCONCLUSIVE),
        ("mlp_share/intermediate", [0.3] * 10, "the MLP writes them", ClaimVerdict.FAILS),
        ("bos_cosine/sink", [0.5] * 10, "they align with BOS", ClaimVerdict.FAILS),
        ("bos_cosine/other", [0.99] * 10, "they align with BOS", ClaimVerdict.FAILS),
        (COUNT, [1, *[0] * 9], "there are intermediate sinks, by activation", ClaimVerdict.INCONCLUSIVE),
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
    stays = by_name[0.1, "no sink is relocated, by attention"]
    assert stays.verdict is ClaimVerdict.HOLDS
    assert stays.value.startswith("not BOS in 0% [0, 0] of the utterances, -90 points [-100, -70] against weight 0")


def test_a_loss_that_relocates_the_sink_or_leaves_some(tmp_path: Path) -> None:
    some = [1, 1, 0, 1, 0, 1, 0, 1, 1, 1]
    by_name = checked(
        measured(tmp_path, metrics_of(MANY)), measured(tmp_path, metrics_of(some, [1] * 8 + [0] * 2), LOSS)
    )
    assert by_name[0.1, "the loss removes them, by activation"].verdict is ClaimVerdict.FAILS
    assert "41% remain" in by_name[0.1, "the loss removes them, by activation"].value
    moved = by_name[0.1, "no sink is relocated, by ratio"]
    assert moved.verdict is ClaimVerdict.FAILS
    assert "+80 points [" in moved.value


def test_a_sink_that_is_elsewhere_without_the_loss_too_is_not_relocated(tmp_path: Path) -> None:
    elsewhere = [1] * 9 + [0]
    by_name = checked(
        measured(tmp_path, metrics_of(MANY, elsewhere)), measured(tmp_path, metrics_of(NONE, elsewhere), LOSS)
    )
    stays = by_name[0.1, "no sink is relocated, by attention"]
    assert stays.verdict is ClaimVerdict.HOLDS
    assert stays.value.startswith("not BOS in 90% [70, 100] of the utterances, 0 points [0, 0] against weight 0")


def test_with_too_few_sinks_removal_is_inconclusive(tmp_path: Path) -> None:
    by_name = checked(measured(tmp_path, metrics_of(NONE)), measured(tmp_path, metrics_of(MANY), LOSS))
    removed = by_name[0.1, "the loss removes them, by activation"]
    assert removed.verdict is ClaimVerdict.INCONCLUSIVE
    assert removed.value.startswith("too few sinks to test removal: 0.00 [0.00, 0.00] → 1.70")


def with_seeds(folder: Path, metrics: list[dict[str, list]], *settings: str) -> list[Trial]:
    """A trial with the metrics of each seed."""
    return [measured(folder, each, f"train.seed={seed}", *settings) for seed, each in enumerate(metrics)]


def test_removal_is_inconclusive_if_seeds_vary_widely_and_not_for_want_of_sinks(tmp_path: Path) -> None:
    before = [metrics_of([count] * 10) for count in (0, 1, 4)]
    by_name = checked(*with_seeds(tmp_path, before), *with_seeds(tmp_path, [metrics_of(NONE)] * 3, LOSS))
    removed = by_name[0.1, "the loss removes them, by activation"]
    # 5/3, and 4.303 times the standard error, sqrt(13/3) / sqrt(3); a count is not below 0.
    value = "1.67 [0.00, 6.84] (3) → 0.00 [0.00, 0.00] (3) per utterance"
    assert removed.value == f"whether there were sinks to remove is inconclusive: {value}"
    assert removed.verdict is ClaimVerdict.INCONCLUSIVE


def test_no_sink_is_relocated_if_none_is_dominant_however_much_weight_0_varies(tmp_path: Path) -> None:
    shares = [[1] * count + [0] * (10 - count) for count in (6, 1, 0, 0, 0)]
    before = with_seeds(tmp_path, [metrics_of(MANY, share) for share in shares])
    by_name = checked(*before, *with_seeds(tmp_path, [metrics_of(NONE)] * 5, LOSS))
    stays = by_name[0.1, "no sink is relocated, by attention"]
    # The mean of -0.6, -0.1, 0, 0 and 0, and 2.776 times its standard error, sqrt(0.068 / 5).
    assert stays.value == "not BOS in 0% [0, 0] (5) of the utterances, -14 points [-46, 18] (5) against weight 0"
    assert stays.verdict is ClaimVerdict.HOLDS


def test_the_interval_of_a_share_is_within_0_and_1(tmp_path: Path) -> None:
    after = [metrics_of(NONE, [share] * 10) for share in (1, 1, 0)]
    by_name = checked(*with_seeds(tmp_path, [metrics_of(MANY)] * 3), *with_seeds(tmp_path, after, LOSS))
    moved = by_name[0.1, "no sink is relocated, by ratio"]
    # 2/3, and 4.303 times the standard error 1/3.
    assert moved.value == "not BOS in 67% [0, 100] (3) of the utterances, +67 points [-77, 100] (3) against weight 0"
    assert moved.verdict is ClaimVerdict.INCONCLUSIVE


def at_roles(audio: int, end: int) -> dict[str, list]:
    """Sinks of each of ten utterances, in the audio and at its end."""
    return metrics_of([audio + end] * 10) | {f"{COUNT}/audio": [audio] * 10, f"{COUNT}/audio_end": [end] * 10}


def about_roles(folder: Path, tokens: dict[str, int], *seeds: dict[str, list]) -> tuple[str, str]:
    """Verdict and value of the claim about roles, for trials with these metrics and numbers of tokens."""
    roles = {"padding": 7, "bos": 10} | tokens
    trials = [measured(folder, each, f"train.seed={seed}", roles=roles) for seed, each in enumerate(seeds)]
    claim = checked(*trials)[0, "they occur at certain roles"]
    return claim.verdict, claim.value


def test_sinks_are_concentrated_at_a_role_that_has_few_of_them(tmp_path: Path) -> None:
    """Most are in the audio, as most tokens are, but three in ten at the one token in a hundred that ends it."""
    tokens = {"audio": 800, "audio_end": 10, "response": 190}
    verdict, value = about_roles(tmp_path, tokens, at_roles(7, 3))
    # exp(-10 (0.3 ln(0.3 / 0.01) + 0.7 ln(0.7 / 0.99))) is 0.00042, times three roles.
    assert value == "audio_end 30% [30, 30] (of the tokens 1%, p=0.001), audio 70%"
    assert verdict == "holds"


def test_three_seeds_with_all_sinks_at_a_frequent_role_may_be_chance(tmp_path: Path) -> None:
    verdict, value = about_roles(tmp_path, {"audio": 45, "response": 55}, *[at_roles(2, 0)] * 3)
    # 0.45 to the third power, for two roles.
    assert value == "audio 100% [100, 100] (3) (of the tokens 45%, p=0.182)"
    assert verdict == "inconclusive"


def test_shares_of_the_sinks_are_means_over_seeds_and_add_up(tmp_path: Path) -> None:
    """One seed has ten sinks, all in the audio, the other one hundred, a half at its end."""
    verdict, value = about_roles(tmp_path, {"audio": 90, "audio_end": 10}, at_roles(1, 0), at_roles(5, 5))
    # exp(-2 (0.25 ln(0.25 / 0.1) + 0.75 ln(0.75 / 0.9))) is 0.8315.
    assert value == "audio_end 25% [0, 100] (2) (of the tokens 10%, p=1.000), audio 75%"
    assert verdict == "inconclusive"


def test_alignment_is_inconclusive_if_the_intervals_overlap(tmp_path: Path) -> None:
    others = [(0.86, 1), (1, 1), (1, 1), (1, 1), (1, 1)] * 2
    claim = checked(measured(tmp_path, metrics_of(MANY, **{"bos_cosine/other": others})))[0, "they align with BOS"]
    assert claim.value.startswith("cosine 0.97 [0.97, 0.97], other tokens 0.97 [0.9")
    assert claim.verdict is ClaimVerdict.INCONCLUSIVE


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
    assert by_name[0.1, "every claim"].verdict is ClaimVerdict.INCONCLUSIVE
    assert by_name[0.1, "every claim"].value.endswith(
        "has no records of single utterances; evaluate the trial again: python -m pipeline.evaluate --params "
        "FOLDER/config.yaml"
    )
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
    assert claim.verdict is ClaimVerdict.INCONCLUSIVE
    assert claim.value == "1.67 [0.00, 6.84] (3) per utterance"


def rates(folder: Path, errors: dict[tuple[int, float], list[int]]) -> dict[tuple[int, float, str], Claim]:
    """Claims by audio rate and weight, of trials with so many errors in 60 words, a seed each."""
    trials = [
        finish(
            make_trial(
                folder, AUDIO, f"model.rates.audio={rate}", f"decorrelation.weight={weight}", f"train.seed={seed}"
            ),
            {"test": [count // 10 + (number < count % 10) for number in range(10)]},
        )
        for (rate, weight), counts in errors.items()
        for seed, count in enumerate(counts)
    ]
    return {(c.task.rates[0], c.variant.decorrelation_weight, c.statement): c for c in claims(compare(trials))}


def test_word_error_rate_falls_at_the_highest_rate_and_stays_at_the_lowest(tmp_path: Path) -> None:
    falls, stays = "at the highest rate the word error rate falls", "at the lowest rate the word error rate stays"
    by_name = rates(
        tmp_path / "paper",
        {
            (16, 0): [40, 50, 40, 50],
            (16, 0.1): [20, 20, 10, 20],
            (4, 0): [20, 21, 20, 21],
            (4, 0.1): [21, 20, 20, 21],
        },
    )
    assert by_name[16, 0.1, falls].verdict is ClaimVerdict.HOLDS
    assert by_name[4, 0.1, stays].verdict is ClaimVerdict.HOLDS
    assert by_name[16, 0.1, falls].value.endswith("over 4 seeds")
    assert not {(4, 0.1, falls), (16, 0.1, stays), (16, 0, falls)} & by_name.keys()
    by_name = rates(
        tmp_path / "worse",
        {(16, 0): [10, 20, 10], (16, 0.1): [50, 50, 60], (4, 0): [10, 20, 10], (4, 0.1): [50, 50, 60]},
    )
    assert by_name[16, 0.1, falls].verdict is ClaimVerdict.FAILS
    assert by_name[4, 0.1, stays].verdict is ClaimVerdict.FAILS
    by_name = rates(tmp_path / "once", {(16, 0): [40], (16, 0.1): [40], (4, 0): [40], (4, 0.1): [40]})
    assert by_name[4, 0.1, stays].verdict is ClaimVerdict.INCONCLUSIVE


def test_a_word_error_rate_whose_interval_includes_the_margin_is_inconclusive(tmp_path: Path) -> None:
    """The change is significant and of more than five points, but may be of less than one."""
    errors = {(16, 0): [20, 21], (16, 0.1): [20, 21], (4, 0): [19, 20, 21], (4, 0.1): [22, 24, 26]}
    claim = rates(tmp_path, errors)[4, 0.1, "at the lowest rate the word error rate stays"]
    assert claim.value.startswith("change in points: +6.7 [+0.3, +13.7] (p=0.0")
    assert claim.verdict is ClaimVerdict.INCONCLUSIVE
