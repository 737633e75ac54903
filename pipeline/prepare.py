"""Stage `prepare`: the corpus on disk, as `manifest.jsonl` and media that people can play.

The output folder is kept between runs (DVC does not delete it), so the stage itself looks after it: media of other
settings are removed, what is whole stays, what is missing or damaged is made. `prepare.json` says which settings the
media were made by and is written before them; `manifest.jsonl` is written after all of them. A run that is killed at
any moment is continued by the next one.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.common.code import code_digest
from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, file_sha256, read_json, require_space, write_json
from pipeline.common.progress import progress
from pipeline.config import Corpus, Params
from pipeline.corpora.manifest import REMEDY, Utterance, read_manifest, write_manifest
from pipeline.corpora.plan import SPLITS, Plan, babble_file, babble_splits, plan_corpus

SETTINGS = "prepare.json"
MANIFEST = "manifest.jsonl"
MEDIA = ("babble", *SPLITS)
"""The folders of the corpus; nothing outside them is ever removed."""
FILE_BYTES = 90_000
"""What a wav or an mp4 of some two seconds takes at most, more or less."""
FEW = 24
"""So many utterances are made sooner by one process than it takes to start others."""


def prepare(params: Params, workers: int | None = None) -> Path:
    """Bring the corpus folder to what `params.corpus` says.

    Args:
        params: all parameters; only the section `corpus` counts.
        workers: processes; None takes as many as there are cores. The result does not depend on it.

    Returns:
        The folder, in which `manifest.jsonl` is whole.

    Raises:
        PipelineError: the folder holds something else, the sentences or the voices cannot be had, or the disk is full.
    """
    corpus, folder = params.corpus, Path(params.corpus.out)
    plans = plan_corpus(corpus)
    _settle(folder, corpus, plans)
    babble = babble_splits(corpus)
    expected = {folder / path for plan in plans for path in plan.files} | {folder / babble_file(s) for s in babble}
    _remove_others(folder, expected)
    known = _verified(folder)
    made = {plan.id: [known[name] for name in plan.wavs] for plan in plans if known.keys() >= plan.wavs.keys()}
    todo = [plan for plan in plans if plan.id not in made]
    missing = sum(not path.exists() for path in expected)
    if not todo and not missing:
        return folder
    require_space(folder, missing * FILE_BYTES, "the corpus")
    for plan, lines in _make(corpus, folder, babble, todo, len(plans), workers):
        made[plan.id] = lines
    write_manifest(folder, _in_order(plans, made))
    return folder


def _settle(folder: Path, corpus: Corpus, plans: list[Plan]) -> None:
    """Leave `prepare.json` of these settings in the folder; where it had another, remove the media first."""
    settings = _settings(corpus, plans)
    if not (folder / SETTINGS).exists():
        if folder.exists() and any(path.name != ".gitignore" for path in folder.iterdir()):
            raise PipelineError(folder, f"holds files, but no {SETTINGS}", "name an empty folder as corpus.out")
    elif _recorded(folder) != settings["digest"]:
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in MEDIA:
            if (folder / name).exists():
                shutil.rmtree(folder / name)
    else:
        return
    write_json(folder / SETTINGS, settings)


def _recorded(folder: Path) -> str | None:
    settings = read_json(folder / SETTINGS, "remove the folder, it will be made again")
    return settings.get("digest") if isinstance(settings, dict) else None


def _settings(corpus: Corpus, plans: list[Plan]) -> dict[str, Any]:
    """What the media follow from, with its digest, and which voice each speaker has."""
    file = corpus.synthetic.sentences
    causes = {
        "corpus": corpus.model_dump(mode="json", exclude={"out", "root"}),
        "sentences": file_sha256(file) if file else None,
        "code": code_digest("pipeline.corpora.synthetic"),
        "espeak": version("espeakng-loader"),
    }
    return causes | {"digest": digest(causes), "voices": {plan.speaker: plan.voice for plan in plans}}


def _remove_others(folder: Path, expected: set[Path]) -> None:
    """Remove files that do not belong, such as what a killed writer left half-written."""
    for name in MEDIA:
        for path in (folder / name).rglob("*"):
            if path.is_file() and path not in expected:
                path.unlink()


def _verified(folder: Path) -> dict[str, Utterance]:
    """The lines of the last manifest whose media are as it says, by id. A damaged file is removed."""
    try:
        lines = read_manifest(folder)
    except PipelineError:
        return {}
    sound: dict[str, Utterance] = {}
    hashes: dict[str, str | None] = {}
    for line in lines:
        intact = True
        for path, expected in ((line.audio, line.audio_sha256), (line.video, line.video_sha256)):
            if path not in hashes:
                hashes[path] = file_sha256(folder / path) if (folder / path).is_file() else None
            if hashes[path] != expected:
                (folder / path).unlink(missing_ok=True)
                intact = False
        if intact:
            sound[line.id] = line
    return sound


def _in_order(plans: list[Plan], made: dict[str, list[Utterance]]) -> Iterator[Utterance]:
    """Split by split: the utterances themselves, then the whole split at each further ratio."""
    for split in SPLITS:
        lines = [made[plan.id] for plan in plans if plan.split == split]
        for condition in zip(*lines, strict=True):
            yield from condition


def _make(
    corpus: Corpus, folder: Path, babble: list[str], todo: list[Plan], total: int, workers: int | None
) -> Iterator[tuple[Plan, list[Utterance]]]:
    # Heavy, and not needed by a run that has nothing to do.
    from pipeline.corpora.synthetic import make_babble, make_utterance

    if workers is None:
        workers = 1 if len(todo) <= FEW else _cores()
    with _Workers(workers) as pool, progress(total, "prepare", "utterance", total - len(todo)) as bar:
        for _ in pool.results(make_babble, [(corpus, split, folder) for split in babble]):
            pass
        for (plan, _), lines in pool.results(make_utterance, [(plan, folder) for plan in todo]):
            bar.update()
            yield plan, lines


def _cores() -> int:
    # What a container or a scheduler allows may be less than what the machine has; not every system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Workers:
    """A pool of processes that ends with its owner, or this very process where one is enough."""

    def __init__(self, count: int) -> None:
        self.pool = None
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(count, context, initializer=_follow_owner)

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def results(self, function: Callable, jobs: list[tuple]) -> Iterator[tuple[tuple, Any]]:
        """Each job with what `function(*job)` returns, as they come to an end."""
        if self.pool is None:
            yield from ((job, function(*job)) for job in jobs)
            return
        try:
            futures: dict[Future, tuple] = {self.pool.submit(function, *job): job for job in jobs}
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        except BrokenProcessPool:
            raise PipelineError("pipeline.prepare", "a worker process was killed (out of memory?)", REMEDY) from None


def _follow_owner() -> None:
    """In a worker: leave `Ctrl-C` to the owner, and end when the owner does, even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(owner: Any) -> None:
    owner.join()
    os._exit(1)


def main() -> None:
    """Make the corpus of the parameters."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    run_command(lambda: prepare(params_of(arguments)))


if __name__ == "__main__":
    main()
