"""Disk usage of trials and features by sweep, and removal of those that no sweep uses.

A sweep is a file of `experiments/`, or the last run that a folder of `results/sweeps/` records: one with `--set` or of
a file elsewhere, too; a run with `--only` adds to that record. Trials and features that another version of the code
made, with the configuration and data of a sweep, are kept, unless --other-code is given. Without --yes nothing is
removed. A trial that is running or being reproduced is kept, and so are the features that it reads.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

from pipeline.common.command import load_params_for_command, parser, run_command
from pipeline.common.digests import canonical, digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import (
    exclusive,
    finish_removal,
    folders_with,
    interrupted_writes,
    remove_folder,
    removed_folders,
)
from pipeline.common.formatting import size_text
from pipeline.common.modality import streams
from pipeline.common.verified import read_sealed
from pipeline.config import Params, Stream, load_params
from pipeline.corpora.manifest import read_manifest
from pipeline.encoders.resumable import PARTIAL
from pipeline.encoders.store import INDEX, feature_groups, grouped, media_sha256
from pipeline.sweeping.inputs import distinct_inputs
from pipeline.sweeping.plan import read_digests
from pipeline.sweeping.results import RESULTS
from pipeline.sweeping.search.suggestions import suggested_params, trials_and_suggestions
from pipeline.sweeping.specification import Specification
from pipeline.sweeping.status import TRIALS_FILE, recorded_trials
from pipeline.sweeping.sweep_file import SeededPoint, Sweep, load_sweep
from pipeline.sweeping.worker_precision import precision_variants
from pipeline.trials.folder import LEASE_FILE, Trial, trials_in
from pipeline.trials.identity import FOLDER_DIGITS, configuration, trial_name
from pipeline.trials.provenance import sessions

EXPERIMENTS = Path("experiments")
TRIAL, FEATURES, LEFTOVER = "trial", "features", "leftover"
UNUSED, OTHER_CODE = "no sweep", ", other code"
_DAY = 86_400.0
_Data = dict[str, str]
"""As in an identity, with the content of features in place of their digest, which includes the code of the encoder."""
_StoredData = dict[str, str | None]
"""The same of a stored trial; None for features that are not stored."""
_StoredContent = tuple[str | None, str | None]
"""Of stored features, `_content` and `_media`; None if their index is damaged or belongs to others."""
_NO_CONTENT: _StoredContent = None, None


@dataclass(frozen=True)
class StoredFolder:
    """A folder of a trial or of features, or what remains of one."""

    kind: str
    """`trial`, `features`, or the `leftover` of one of these or of weights, whose writing or removal was
    interrupted."""
    folder: Path
    name: str
    """Name of the trial; empty for features."""
    size: int
    """Bytes."""
    days: float
    """Since the last write to it."""
    users: tuple[str, ...]
    """Names of sweeps, and `params.yaml`."""
    is_of_other_code: bool = False
    """Whether it differs by its code from what its users make now or ran last."""
    lock: Path | None = None
    """What a process locks (see `exclusive`) that writes to it."""


def stored_folders(params: Params, sweeps: Sequence[Sweep]) -> list[StoredFolder]:
    """All trials of `train.runs` and all features of `features.out`, with their users.

    These are the sweeps, `params.yaml`, and the last run of each folder of `results/sweeps`. A user has its trials and
    features, those that differ from them only in the code or in what precision `auto` means on a machine, and the
    features that its trials have read. If it lacks inputs, identities are unknown; then it counts as the user of every
    trial with one of its configurations, and of all features of the media of its corpus, if that exists.
    """
    usages = [usage for sweep in (_sweep_of("params.yaml", params), *sweeps) for usage in _usages(sweep)]
    usages += [_Usage.of_record(folder) for folder in folders_with(RESULTS, TRIALS_FILE)]
    contents = {folder.name: _stored_content(folder) for folder in folders_with(params.features.out, INDEX)}
    readers: dict[str, list[StoredFolder]] = defaultdict(list)
    result = []
    for trial in trials_in(params.train.runs):
        users = _users(trial, usages, contents)
        stored = StoredFolder(
            TRIAL,
            trial.folder,
            trial_name(trial.identity_parts()["configuration"]),
            *_size_and_age(trial.folder),
            _names(users),
            bool(users) and all(usage.is_known and not usage.makes_trial(trial) for usage in users),
        )
        result.append(stored)
        for name in _features_read(trial):
            readers[name].append(stored)
    for name, content in contents.items():
        folder, read_by = Path(params.features.out) / name, readers[name]
        users = [usage for usage in usages if usage.has_features(name, *content)]
        names = dict.fromkeys([*_names(users), *(user for reader in read_by for user in reader.users)])
        is_made = any(not usage.is_known or usage.makes_features(name) for usage in users)
        is_made |= any(reader.users and not reader.is_of_other_code for reader in read_by)
        stored = StoredFolder(FEATURES, folder, "", *_size_and_age(folder), tuple(names), bool(names) and not is_made)
        result.append(stored)
    for folder in (*removed_folders(params.train.runs), *removed_folders(params.features.out)):
        result.append(StoredFolder(LEFTOVER, folder, "", *_size_and_age(folder), ()))
    for folder in _unfinished_features(Path(params.features.out)):
        made = folder.with_name(folder.name.removesuffix(PARTIAL))
        users = [usage for usage in usages if not usage.is_known or usage.makes_features(made.name)]
        result.append(StoredFolder(LEFTOVER, folder, "", *_size_and_age(folder), _names(users), lock=made))
    out = Path(params.weights.out)
    return result + [
        StoredFolder(LEFTOVER, folder, "", *_size_and_age(folder), (), lock=out)
        for folder in interrupted_writes(out)
        if folder.is_dir()
    ]


def _unfinished_features(out: Path) -> list[Path]:
    """Groups without an index: one that a sweep makes is resumed, or encoded again."""
    finished = folders_with(out, INDEX)
    return sorted(f for f in out.glob("[!.]*") if f.is_dir() and f not in finished)


def _sweep_of(name: str, params: Params) -> Sweep:
    """A sweep of one trial."""
    return Sweep(Specification(name=name), params, (SeededPoint({}, params),))


def _usages(sweep: Sweep) -> list["_Usage"]:
    """What a sweep makes on any machine."""
    return [_Usage.of_sweep(variant) for variant in precision_variants(sweep)]


class _Usage:
    """Trials and features that a sweep makes with the present code, and those that differ from them by code alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_known = True
        """Whether its inputs are there. Otherwise it has every trial of its configurations."""
        self._identities: set[str] = set()
        self._data: dict[str, list[_Data]] = defaultdict(list)
        """Of its trials, by canonical configuration."""
        self._features: dict[str, str] = {}
        """Content by name of the folder."""
        self._media: set[str] = set()
        """See `_media`: those of its corpora, if its inputs are not there and it reads cached features."""
        self._data_of_inputs: dict[str, _Data] = {}

    @classmethod
    def of_sweep(cls, sweep: Sweep) -> Self:
        usage = cls(sweep.specification.name)
        all_params = list(suggested_params(sweep)) if sweep.space else [point.params for point in sweep.seeded_points]
        try:
            usage._identities = {planned.identity for planned in trials_and_suggestions(sweep)[0]}
            for params in distinct_inputs(sweep):
                usage._read_data(params)
            for params in all_params:
                usage._add(params)
        except PipelineError:
            usage.is_known = False
            usage._data |= {canonical(configuration(params)): [] for params in all_params}
            for params in distinct_inputs(sweep):
                # Without its corpus it has no features.
                with contextlib.suppress(PipelineError):
                    usage._add_media(params)
        return usage

    @classmethod
    def of_record(cls, folder: Path) -> Self:
        """What a sweep last ran, from its folder of results: also with `--set`, or from a file elsewhere."""
        usage = cls(folder.name)
        recorded = recorded_trials(folder)
        usage._identities = set(recorded)
        for params in filter(None, recorded.values()):
            # Without the inputs, its trials are known by their identities alone.
            with contextlib.suppress(PipelineError):
                usage._add(params)
        return usage

    def _add(self, params: Params) -> None:
        self._data[canonical(configuration(params))].append(self._read_data(params))

    def _read_data(self, params: Params) -> _Data:
        """The data of a training, the same for trials with equal inputs; its features are added."""
        inputs = params.model_dump(mode="json", include={"corpus", "features"})
        key = canonical([inputs, params.model.modality, params.model.llm.weights])
        if key not in self._data_of_inputs:
            contents: dict[str, str] = {}
            for stream in _cached_streams(params):
                for group in feature_groups(params, stream, read_manifest(params.corpus.out)):
                    contents[group.digest] = _content(stream, group.identity, group.media)
                    self._features[group.folder.name] = contents[group.digest]
            data, _ = read_digests(params)
            self._data_of_inputs[key] = {name: contents.get(value, value) for name, value in data.items()}
        return self._data_of_inputs[key]

    def _add_media(self, params: Params) -> None:
        for stream in _cached_streams(params):
            for utterances in grouped(stream, read_manifest(params.corpus.out)).values():
                self._media.add(_media(stream, {media_sha256(stream, utterance) for utterance in utterances}))

    def makes_trial(self, trial: Trial) -> bool:
        """Whether this is a trial of the present code, or one that ran last."""
        return trial.identity in self._identities

    def has_trial(self, settings: dict[str, Any], data: _StoredData) -> bool:
        """Whether a trial of this configuration and data is one of the sweep, of whatever code."""
        key = canonical(settings)
        return key in self._data and (not self.is_known or any(_is_same(known, data) for known in self._data[key]))

    @property
    def features(self) -> set[str]:
        """The folders of the features of the present code."""
        return set(self._features)

    def makes_features(self, name: str) -> bool:
        """Whether these are features of the present code, or of what ran last."""
        return name in self._features

    def has_features(self, name: str, content: str | None, media: str | None) -> bool:
        """Whether the folder `name`, with this `content` (see `_content`) and `media` (see `_media`), has features of
        the sweep, of whatever code."""
        return self.makes_features(name) or content in self._features.values() or media in self._media


def _cached_streams(params: Params) -> tuple[Stream, ...]:
    """The streams whose features a trial reads."""
    return streams(params.model.modality) if params.features.mode == "cached" else ()


def _users(trial: Trial, usages: Sequence[_Usage], contents: Mapping[str, _StoredContent]) -> list[_Usage]:
    """The sweeps that use a trial, given the content of all stored features by folder."""
    parts = trial.identity_parts()
    kinds = get_args(Stream)
    data = {
        name: contents.get(value[:FOLDER_DIGITS], _NO_CONTENT)[0] if name.partition("/")[0] in kinds else value
        for name, value in parts["data"].items()
    }
    users = [u for u in usages if u.makes_trial(trial) or u.has_trial(parts["configuration"], data)]
    if not users:
        # An earlier version had fewer keys, and did what they set by default now.
        with contextlib.suppress(PipelineError):
            settings = configuration(load_params(trial.config))
            users = [usage for usage in usages if usage.has_trial(settings, data)]
    return users


def _is_same(data: _Data, stored: _StoredData) -> bool:
    """Whether data are the same; features that are no longer stored, or were never cached, count as the same."""
    return data.keys() == stored.keys() and all(value in (None, data[name]) for name, value in stored.items())


def _content(stream: str, encoder: dict[str, Any], media: Iterable[str]) -> str:
    """Digest of what features depend on apart from code: encoder and media."""
    return digest([stream, encoder, sorted(media)])


def _media(stream: str, media: Iterable[str]) -> str:
    """Digest of the media that features are of."""
    return digest([stream, sorted(media)])


def _stored_content(folder: Path) -> _StoredContent:
    try:
        index, _ = read_sealed(folder / INDEX, "")
        stream, media = index["stream"], index["media"]
        is_own = index["digest"].startswith(folder.name)
        return (_content(stream, index["encoder"], media), _media(stream, media)) if is_own else _NO_CONTENT
    except (PipelineError, KeyError):
        return _NO_CONTENT


def _features_read(trial: Trial) -> set[str]:
    """The folders of features that a trial has read, or that its training reads."""
    names = {value[:FOLDER_DIGITS] for value in trial.identity_parts()["data"].values()}
    # Without a record, those of its evaluation are unknown.
    with contextlib.suppress(PipelineError):
        names |= {Path(path).parent.name for session in sessions(trial) for path in session.get("inputs", ())}
    return names


def _features_of(trial: Trial) -> set[str]:
    """The folders of features that a trial has read or will read."""
    names = _features_read(trial)
    with contextlib.suppress(PipelineError):
        for usage in _usages(_sweep_of("config.yaml", load_params(trial.config))):
            names |= usage.features
    return names


def _names(usages: Iterable[_Usage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(usage.name for usage in usages))


def _size_and_age(folder: Path) -> tuple[int, float]:
    stats = []
    for file in folder.rglob("*"):
        # A training removes checkpoints meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if file.is_file() and not file.name.startswith(LEASE_FILE):
                stats.append(file.stat())
    newest = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
    return sum(stat.st_size for stat in stats), (time.time() - newest) / _DAY


def unused(folders: Sequence[StoredFolder], older: float = 0, other_code: bool = False) -> list[StoredFolder]:
    """Folders that no sweep uses, and on demand those of `other_code`, unchanged for `older` days."""
    return [
        folder
        for folder in folders
        if (not folder.users or (other_code and folder.is_of_other_code)) and folder.days >= older
    ]


def usage_lines(folders: Sequence[StoredFolder], chosen: Sequence[StoredFolder]) -> list[str]:
    """A line for each user and kind, and one for each of the chosen folders."""
    users = {user for folder in folders for user in _shown_users(folder)}
    lines = []
    for user in sorted(users, key=lambda user: (user == UNUSED, user)):
        for kind in (TRIAL, FEATURES, LEFTOVER):
            used = [folder for folder in folders if folder.kind == kind and user in _shown_users(folder)]
            if used:
                days = [folder.days for folder in used]
                ages = _age(days[0]) if len(used) == 1 else f"{_age(min(days))} to {_age(max(days))}"
                lines.append(f"{user:20} {len(used):4} {kind:8} {_megabytes(used):>10}  {ages} old")
    lines.append(f"{'in all':20} {len(folders):4} {'':8} {_megabytes(folders):>10}")
    if chosen:
        lines += ["", "not used:"]
        lines += [f"  {f.folder}  {f.name or f.kind:40} {_megabytes([f]):>10}  {_age(f.days)} old" for f in chosen]
    return lines


def _shown_users(folder: StoredFolder) -> tuple[str, ...]:
    return tuple(f"{user}{OTHER_CODE * folder.is_of_other_code}" for user in folder.users) or (UNUSED,)


def _megabytes(folders: Sequence[StoredFolder]) -> str:
    return size_text(sum(folder.size for folder in folders))


def _age(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} hours"


def remove(chosen: Sequence[StoredFolder], runs: str) -> Iterator[str]:
    """Remove folders; a trial of `runs` that is running or being reproduced is kept, with the features that it reads,
    and so is what a process is writing. One line each. What a kill leaves of a folder is removed next time."""
    readers = {name: trial.folder for trial in trials_in(runs) if _is_in_use(trial) for name in _features_of(trial)}
    for stored in chosen:
        try:
            if stored.lock:
                remedy = f"to remove {stored.folder}, run the same command again after that"
                with exclusive(stored.lock, remedy, patience=0):
                    finish_removal(stored.folder)
            elif stored.kind == LEFTOVER:
                finish_removal(stored.folder)
            elif stored.kind == FEATURES:
                if stored.folder.name in readers:
                    yield f"kept: {stored.folder}: is read by {readers[stored.folder.name]}, which is running"
                    continue
                remove_folder(stored.folder)
            else:
                trial = Trial(stored.folder)
                with trial.lease(), trial.reproduction_lease():
                    remove_folder(stored.folder)
            yield f"removed: {stored.folder}"
        except PipelineError as error:
            yield f"kept: {error}"


def _is_in_use(trial: Trial) -> bool:
    """Whether a process runs or reproduces a trial."""
    return any(lease.holder() for lease in (trial.lease(), trial.reproduction_lease()))


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--yes", action="store_true", help="remove the trials and features that no sweep uses")
    options.add_argument(
        "--other-code",
        action="store_true",
        help="count as unused what differs by its code alone from what a sweep makes now or ran last",
    )
    options.add_argument(
        "--older", type=float, default=0, metavar="DAYS", help="only those unchanged for this number of days"
    )
    arguments = options.parse_args()
    params = load_params_for_command(arguments)
    sweeps = [load_sweep(file, arguments.params, arguments.set) for file in sorted(EXPERIMENTS.rglob("*.yaml"))]
    folders = stored_folders(params, sweeps)
    chosen = unused(folders, arguments.older, arguments.other_code)
    print("\n".join(usage_lines(folders, chosen)))
    if arguments.yes:
        for line in remove(chosen, params.train.runs):
            print(line)
    elif chosen:
        print("remove them: the same command with --yes")


if __name__ == "__main__":
    run_command(main)
