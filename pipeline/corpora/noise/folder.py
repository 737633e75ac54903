"""Noise from a folder of audio files, such as a long babble.wav or the noises of MUSAN."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.rates import SAMPLE_RATE
from pipeline.corpora.formats.tree import AUDIO_ENDINGS, files_below
from pipeline.corpora.noise.mixing import NOISE_LEVEL, root_mean_square
from pipeline.corpora.reader import SILENCE, SkippedClip, Unusable, skip_summary
from pipeline.corpora.splits import SPLITS, random_generator

MAX_NOISE_SECONDS = 600
"""Maximum length of the noise of a split, which every worker holds in memory."""
MAX_FILES = 60
"""Maximum number of files, drawn at random: each contributes ten seconds."""


def noise_files(folder: str | Path) -> list[Path]:
    """All audio files in a folder and below it, sorted by name. PipelineError if there is none."""
    unread: list[SkippedClip] = []
    files: list[Path] = []
    if Path(folder).is_dir():
        for parts, names in files_below(Path(folder), unread):
            files += [
                Path(folder).joinpath(*parts, name) for name in names if Path(name).suffix.lower() in AUDIO_ENDINGS
            ]
    if not files:
        found = f"there is no audio file in {folder}{skip_summary(unread)}"
        raise PipelineError("corpus.noise.folder", found, "set it to a folder of noise, or null")
    return sorted(files)


def chosen_files(folder: str | Path, seed: int) -> list[Path]:
    """At most `MAX_FILES` random files of a folder, in the order in which they are used. PipelineError if there is
    none."""
    files = noise_files(folder)
    return [files[index] for index in random_generator("noise files", seed).permutation(len(files))[:MAX_FILES]]


def noise_settings(folder: str | Path) -> dict[str, Any]:
    """Everything that noise from this folder depends on: names and sizes of the files, and this code. PipelineError if
    there is no file in it."""
    files = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in noise_files(folder)]
    return {"files": files, "code": code_digest("pipeline.corpora.noise.folder")}


def folder_noise(folder: str | Path, split: str, seed: int, seconds: float) -> np.ndarray:
    """The noise of a split: the first (training), middle (validation) or last (test) third of each file, equally loud.
    PipelineError if there is no file, a file is unreadable, or all are silent.

    Returns:
        (samples,) float32 at 16 kHz, at least `seconds`, repeated if necessary.
    """
    from pipeline.corpora.recorded.recording import extract_audio

    files = chosen_files(folder, seed)
    max_samples = MAX_NOISE_SECONDS * SAMPLE_RATE // len(files)
    parts = []
    for path in files:
        try:
            samples = extract_audio(path)
        except Unusable as error:
            if error.reason == SILENCE:
                continue
            raise PipelineError(path, str(error), "repair it, or remove it from the folder of noise") from None
        part = np.array_split(samples, len(SPLITS))[SPLITS.index(split)][:max_samples]
        if part.any():
            parts.append(part / root_mean_square(part))
    if not parts:
        raise PipelineError(folder, "has only silence", "set corpus.noise.folder to a folder of noise, or null")
    noise = np.concatenate(parts)
    return np.resize(noise, max(len(noise), int(np.ceil(seconds * SAMPLE_RATE)))) * NOISE_LEVEL
