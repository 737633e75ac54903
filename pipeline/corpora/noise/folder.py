"""Noise out of a folder of audio files, such as one long babble.wav or the noises of MUSAN."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.corpora.formats.tree import AUDIO, files_below
from pipeline.corpora.manifest import SAMPLE_RATE
from pipeline.corpora.reader import SILENCE, SkippedClip, Unusable, reasons
from pipeline.corpora.synthetic.plan import SPLITS, babble_file, generator

NOISE_SECONDS = 600
"""What a split takes at most; every worker holds it in memory."""
FILES = 60
"""From so many files at most, drawn at random, so that each gives ten seconds."""
LEVEL = 0.1
"""Root mean square, so that people can listen to it."""


def noise_files(folder: str | Path) -> list[Path]:
    """All audio files in a folder and below it, in the order of their names.

    Raises:
        PipelineError: there is none.
    """
    unread: list[SkippedClip] = []
    found: list[Path] = []
    if Path(folder).is_dir():
        for parts, names in files_below(Path(folder), unread):
            found += [Path(folder).joinpath(*parts, name) for name in names if Path(name).suffix.lower() in AUDIO]
    if not found:
        why = f"there is no audio file in {folder}{reasons(unread)}"
        raise PipelineError("corpus.noise.folder", why, "name a folder of noise, or null")
    return sorted(found)


def chosen_files(folder: str | Path, seed: int) -> list[Path]:
    """The files that noise is taken from, `FILES` at most, in the order in which they are taken.

    Raises:
        PipelineError: there is none.
    """
    files = noise_files(folder)
    return [files[index] for index in generator("noise files", seed).permutation(len(files))[:FILES]]


def noise_settings(folder: str | Path) -> dict[str, Any]:
    """What noise from this folder follows from: names and sizes of its files, and this code.

    Raises:
        PipelineError: there is no file in it.
    """
    files = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in noise_files(folder)]
    return {"files": files, "code": code_digest("pipeline.corpora.noise.folder")}


def make_noise(noise: str | Path, split: str, seed: int, seconds: float, folder: Path) -> None:
    """Make the noise of a split where it is missing: the first, middle or last third of each file, one after the other.

    So splits share no sample, were there one file alone. All are brought to the same power.

    Args:
        noise: the folder of noise.
        split: training takes first thirds, validation middle ones, test last ones.
        seed: draws the files, where there are more than `FILES`.
        seconds: how long it must be at least; what is shorter goes round.
        folder: of the corpus.

    Raises:
        PipelineError: there is no file, one cannot be read, or all are silent.
    """
    from pipeline.corpora.media import files as media
    from pipeline.corpora.noise.mixing import root_mean_square
    from pipeline.corpora.recorded.recording import read_sound

    target = folder / babble_file(split)
    if target.exists():
        return
    chosen = chosen_files(noise, seed)
    most = NOISE_SECONDS * SAMPLE_RATE // len(chosen)
    parts = []
    for path in chosen:
        try:
            sound = read_sound(path)
        except Unusable as error:
            if error.reason == SILENCE:
                continue
            why = f"{error.reason} ({error.detail})" if error.detail else error.reason
            raise PipelineError(path, why, "mend it, or remove it from the folder of noise") from None
        part = np.array_split(sound, len(SPLITS))[SPLITS.index(split)][:most]
        if part.any():
            parts.append(part / root_mean_square(part))
    if not parts:
        raise PipelineError(noise, "holds silence alone", "name a folder of noise as corpus.noise.folder, or null")
    together = np.concatenate(parts)
    needed = int(np.ceil(seconds * SAMPLE_RATE))
    together = np.resize(together, max(len(together), needed))
    media.write_audio(target, together * LEVEL)
