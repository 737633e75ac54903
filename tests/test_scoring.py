"""Text normalisation, error rates and intervals."""

import jiwer
import numpy as np
import pytest

from pipeline.common.errors import PipelineError
from pipeline.common.normalisation import normalise
from pipeline.common.statistics import ratio_interval
from pipeline.scoring.error_rates import EditCounts, score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  SPACES\tand\nlines ", "spaces and lines"),
        ("don't", "don't"),
        ("DON’T", "don't"),
        ("'quoted' words", "quoted words"),
        ("the dogs' bowl", "the dogs bowl"),
        ("rock 'n' roll", "rock n roll"),
        ("twenty-one", "twenty one"),
        ("snake_case", "snake case"),
        ("a.b", "a b"),
        ("Café Über", "café über"),
        ("ﬁne", "fine"),
        ("bin blue at F 2 now", "bin blue at f 2 now"),
        ("3.5", "3 5"),
        ("...", ""),
        ("'", ""),
        ("", ""),
        # Marks belong to their letters, in every script.
        ("हिन्दी में, “नमस्ते”।", "हिन्दी में नमस्ते"),
        ("வணக்கம்!", "வணக்கம்"),
        ("ที่นี่ น้ำ", "ที่นี่ น้ำ"),
        ("مَرْحَبًا؟", "مَرْحَبًا"),
        ("שָׁלוֹם־עֲלֵיכֶם", "שָׁלוֹם עֲלֵיכֶם"),
        ("Việt Nam", "việt nam"),
        ("Vie\u0323\u0302t", "việt"),
        ("İSTANBUL'da", "istanbul'da"),
        ("\u0301x", "x"),
        # Joiners stay where they are part of the spelling, and go elsewhere, as all that is invisible.
        ("می\u200cروم", "می\u200cروم"),
        ("می\u200c \u200cروم", "می روم"),
        ("ශ්\u200dරී അവന്\u200d", "ශ්\u200dරී അവന്\u200d"),
        ("he\u200dl\u200clo", "hello"),
        ("co\u00adoperate z\u200be\u2060r\ufeffo", "cooperate zero"),
        ("\u202bمرحبا\u202c", "مرحبا"),
        ("❤\ufe0f 👩\u200d🔬 yes", "yes"),
        # What people type for an apostrophe.
        ("don´t don`t don‛t don′t", "don't don't don't don't"),
        ("rock ''n'' roll", "rock n roll"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_numbers_and_contractions_in_either_form_agree() -> None:
    references = ["it's twenty-one", "the third of nineteen ninety nine", "one hundred and five percent"]
    hypotheses = ["It is 21.", "the 3rd of 1999", "105%"]
    found = score(references, hypotheses, bootstrap=0)
    assert found.wer.value > 1 / 2
    assert found.wer_normalised is not None
    assert found.wer_normalised.value == 0


def test_references_of_fillers_alone_have_no_normalised_rate() -> None:
    assert score(["uh hmm"], ["uh"], bootstrap=0).metrics("test") == {"wer/test": 0.5, "cer/test": 4 / 6}


def test_corpus_and_scoring_use_the_same_words() -> None:
    """Words that differ only in vowel signs differ, and no word is split."""
    found = score(["हिन्दी में नमस्ते"], ["हिन्दा मे नमस्ता"], bootstrap=0)
    assert (found.wer.value, found.wer.counts) == (1, EditCounts(substitutions=3, deletions=0, insertions=0, hits=0))
    for text in ("हिन्दी", "ที่นี่", "مَرْحَبًا", "می\u200cروم", "İçin"):
        assert normalise(f"“{text}”") == normalise(f"{text}?")
        assert len(normalise(text).split()) == 1
        assert score([text], [normalise(text)], bootstrap=0).wer.value == 0


@pytest.mark.parametrize("start", range(0, 0x20000, 0x1000))
def test_normalisation_is_idempotent(start: int) -> None:
    once = normalise(" ".join(f"a{one}b {one}x' ക്{one}" for one in map(chr, range(start, start + 0x1000))))
    assert normalise(once) == once


REFERENCES = [
    "bin blue at f two now",
    "set red by c nine soon",
    "lay green in a zero again",
    "place white with z one please",
]
HYPOTHESES = ["bin blue at f 2 now", "set red red c nine", "", "please place white with z one please"]


def test_rates_equal_those_of_jiwer_over_the_corpus() -> None:
    found = score(REFERENCES, HYPOTHESES, bootstrap=0)
    assert found.wer.value == pytest.approx(jiwer.wer(REFERENCES, HYPOTHESES))
    assert found.cer.value == pytest.approx(jiwer.cer(REFERENCES, HYPOTHESES))
    assert found.wer.counts == EditCounts(substitutions=2, deletions=7, insertions=1, hits=15)
    assert found.wer_normalised.counts == EditCounts(substitutions=1, deletions=7, insertions=1, hits=16)
    assert found.metrics("test") == {
        "wer/test": found.wer.value, "cer/test": found.cer.value, "wer_normalised/test": 9 / 24
    }  # fmt: skip


def test_edits_of_utterances_add_up() -> None:
    found = score(REFERENCES, HYPOTHESES, bootstrap=0)
    assert [one.counts.errors for one in found.utterances] == [1, 2, 6, 1]
    assert sum(one.counts.errors for one in found.utterances) == found.wer.counts.errors
    assert found.utterances[0].record() == {
        "substitutions": 1, "deletions": 0, "insertions": 0, "hits": 5, "words": 6, "changes": ["two → 2"]
    }  # fmt: skip
    assert found.utterances[1].record()["changes"] == ["by → red", "soon → ∅"]
    assert found.utterances[3].record()["changes"] == ["∅ → please"]
    assert [edit.position for edit in found.utterances[1].edits] == [2, 5]


def test_an_empty_hypothesis_is_all_deletions() -> None:
    counts = score(["one two three"], [""], bootstrap=0).utterances[0].counts
    assert counts == EditCounts(substitutions=0, deletions=3, insertions=0, hits=0)


def test_an_empty_reference_counts_its_insertions_in_the_corpus() -> None:
    found = score(["", "one two"], ["uh huh", "one two"], bootstrap=100)
    assert found.utterances[0].counts == EditCounts(substitutions=0, deletions=0, insertions=2, hits=0)
    assert found.wer.value == 1.0
    assert found.wer.interval is None
    assert np.isfinite(score(["", *["one two"] * 10], ["uh huh", *["one"] * 10], bootstrap=100).wer.interval).all()


def test_a_corpus_without_a_reference_word_has_no_rate() -> None:
    with pytest.raises(PipelineError, match="no word in 2 references"):
        score(["", "..."], ["a", "b"], bootstrap=0)
    with pytest.raises(PipelineError):
        score([], [], bootstrap=0)


def test_references_and_hypotheses_must_have_equal_length() -> None:
    with pytest.raises(ValueError, match="2 references and 1 hypotheses"):
        score(["a", "b"], ["a"], bootstrap=0)


def test_case_and_punctuation_are_ignored() -> None:
    assert score(["Don't stop, now!"], ["don’t STOP now"], bootstrap=0).cer.value == 0


def test_interval_equals_a_plain_loop() -> None:
    random = np.random.default_rng(1)
    words = random.integers(3, 9, size=40)
    edits = random.integers(0, 4, size=40)
    draws = np.random.default_rng(7).integers(40, size=(500, 40))
    rates = [sum(edits[i] for i in draw) / sum(words[i] for i in draw) for draw in draws]
    assert ratio_interval(edits, words, 500, seed=7) == pytest.approx(tuple(np.percentile(rates, [2.5, 97.5])))


def test_interval_covers_the_truth_at_its_level() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = ratio_interval(random.normal(5, 2, size=80), np.ones(80), 300, seed)
        covered += low <= 5 <= high
    assert 180 <= covered <= 198


def test_interval_in_chunks_equals_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(10.0)
    expected = ratio_interval(values, np.ones(10), 100, seed=3)
    monkeypatch.setattr("pipeline.common.statistics.CHUNK", 70)
    assert ratio_interval(values, np.ones(10), 100, seed=3) == expected


def test_undefined_intervals() -> None:
    assert ratio_interval([1, 2], [3, 4], 0, seed=0) is None
    assert ratio_interval([0, 0], [0, 0], 100, seed=0) is None
    assert ratio_interval([], [], 100, seed=0) is None
    # Where most utterances have nothing to divide by, draws of those alone are left out.
    assert ratio_interval([0] * 30 + [2] * 10, [0] * 30 + [4] * 10, 200, seed=0) == (0.5, 0.5)
    assert ratio_interval([0] * 30 + [2] * 9, [0] * 30 + [4] * 9, 200, seed=0) is None
    with pytest.raises(ValueError, match="must be of one length"):
        ratio_interval([1, 2], [3], 10, seed=0)


def test_score_is_the_same_at_each_call() -> None:
    assert score(REFERENCES, HYPOTHESES, 100) == score(REFERENCES, HYPOTHESES, 100)
    found = score(REFERENCES * 3, HYPOTHESES * 3, 100).metrics("test/snr_0")
    assert found["wer/test/snr_0/low"] <= found["wer/test/snr_0"] <= found["wer/test/snr_0/high"]
