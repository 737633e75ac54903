"""The tree that auto_avsr and Llama-AVSR prepare: `<dataset>/<dataset>_video_seg16s/<part>/<speaker>/<clip>.mp4`, a wav
beside each, transcripts in `<dataset>_text_seg16s`, and `labels/*.csv` that say which clips a split has.

Label files have no header: `dataset,path,frames,token ids`, or `dataset,path,frames,text`, or, in Llama-AVSR,
`dataset,path,frames,token ids,text`. Token ids of a vocabulary that is not there say nothing; the text is then in the
transcript. The upstream projects validate on the test list; where there is no list for it, validation is held out of
training by speaker here.
"""

import re
from pathlib import Path, PurePosixPath

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus, Section
from pipeline.corpora.clip import Clip, Piece
from pipeline.corpora.formats.lists import UNREADABLE_LINE, list_lines, require_undamaged
from pipeline.corpora.formats.lrs import HELD_OUT, clip_id, is_pretrain, moved
from pipeline.corpora.formats.transcripts import lrs_text, plain_text, read_text
from pipeline.corpora.formats.tree import missing, unusable_name
from pipeline.corpora.held_out import hold_out
from pipeline.corpora.reader import Listing, SkippedClip, Unusable, root_of
from pipeline.corpora.synthetic.plan import SPLITS

ROW = "a row is dataset,path,frames,token ids or dataset,path,frames,token ids,text"
TOKEN_IDS = re.compile(r"[\d\s]*|_")
NAMES = {"train": r"train|trainval", "validation": r"val|valid|validation|dev", "test": r"test"}
"""What a label file of a split has in its name, as a word between underscores."""


class AutoAVSR:
    """An auto_avsr tree."""

    keys = ("auto_avsr", "held_out")
    cuts = ()

    class Settings(Section):
        """Label files of an auto_avsr tree, by their name in `labels` or as a path; null finds the one of the split."""

        train: str | None = None
        validation: str | None = None
        """Where there is none, speakers of the training labels are held out."""
        test: str | None = None

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.root = Path(root_of(corpus))

    def lists(self) -> list[Path]:
        """See `Format.lists`: the label files that are used."""
        return list(self._labels().values())

    def _labels(self) -> dict[str, Path]:
        """The label file of each split that has one."""
        folder, found = self.root / "labels", {}
        if not folder.is_dir():
            raise PipelineError(self.root, "has no folder labels", "name the root of an auto_avsr tree as corpus.root")
        for split in SPLITS:
            named = getattr(self.corpus.auto_avsr, split)
            if named is not None:
                found[split] = folder / named
                if not found[split].is_file():
                    raise PipelineError(f"corpus.auto_avsr.{split}", f"there is no {found[split]}", "name a label file")
                continue
            word = re.compile(rf"(^|_)({NAMES[split]})(_|\.)")
            fitting = sorted(path for path in folder.glob("*.csv") if word.search(path.name))
            if len(fitting) > 1 or (not fitting and split != "validation"):
                names = ", ".join(path.name for path in fitting) or "none"
                raise PipelineError(folder, f"label files of {split}: {names}", f"name one: corpus.auto_avsr.{split}")
            if fitting:
                found[split] = fitting[0]
        return found

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        labels = self._labels()
        clips: list[Clip] = []
        skipped: list[SkippedClip] = []
        for split, path in labels.items():
            clips += self._listed(split, path, skipped)
        _refuse_shared(clips, labels)
        if "validation" not in labels:
            clips = self._with_validation(clips, skipped)
        there = []
        for clip in clips:
            # The transcript is looked for when it is read: most label files have the text.
            fault = missing(clip.video if self.corpus.video and clip.video else clip.audio)
            if fault is None:
                there.append(clip)
            else:
                skipped.append(fault.skip(clip.path, clip.split))
        return Listing(there, skipped)

    def _listed(self, split: str, path: Path, skipped: list[SkippedClip]) -> list[Clip]:
        """The clips of a label file; rows of another form are skipped, unless all are."""
        clips, first = [], None
        for number, row in list_lines(path):
            try:
                clips.append(self._clip(split, row))
            except Unusable as error:
                skipped.append(error.skip(f"{path.name}, line {number}", split))
                first = first or PipelineError(f"{path}:{number}", f"{row[:80]!r}", ROW)
        if not clips:
            raise first or PipelineError(path, "there is no row in it", ROW)
        return clips

    def _clip(self, split: str, row: str) -> Clip:
        """Raises:
        Unusable: the row has another form.
        """
        require_undamaged(row)
        fields = [field.strip() for field in row.split(",", 4)]
        if len(fields) == 5 and not TOKEN_IDS.fullmatch(fields[3]):
            # A text with a comma in it.
            fields[3:] = [row.split(",", 3)[3].strip()]
        if len(fields) < 4 or not re.fullmatch("[0-9]{1,9}", fields[2]) or len(Path(fields[1]).parts) < 3:
            raise Unusable(UNREADABLE_LINE, f"{row[:80]!r}; {ROW}")
        names = [*PurePosixPath(fields[0]).parts, *PurePosixPath(fields[1]).parts]
        if (fault := unusable_name(names)) is not None:
            raise fault
        dataset, relative, frames, last = fields[0], fields[1], int(fields[2]), fields[-1]
        if len(fields) == 4 and TOKEN_IDS.fullmatch(last):
            last = ""
        video = self.root / dataset / relative
        kind, part, speaker = Path(relative).parts[0], Path(relative).parts[-3], Path(relative).parts[-2]
        transcript = self.root / dataset / kind.replace("_video_", "_text_") / Path(relative).relative_to(kind)
        audio = video.with_suffix(".wav")
        return Clip(
            clip_id(split, part, speaker, video.stem), split, speaker, video if missing(audio) else audio, video,
            f"{dataset}/{relative}", None if last.strip() else transcript.with_suffix(".txt"),
            lrs_text(last.strip('"')) or None, frames,
        )  # fmt: skip

    def _with_validation(self, clips: list[Clip], skipped: list[SkippedClip]) -> list[Clip]:
        training = [clip for clip in clips if clip.split == "train"]
        # As for LRS3 itself: what is held out are short clips, where there are some, and not pieces of long ones.
        short = [clip for clip in training if not is_pretrain(clip)]
        held_out = hold_out(self.corpus, "validation", [clip.speaker for clip in short or training])
        kept = []
        for clip in clips:
            if clip.split != "train" or clip.speaker not in held_out:
                kept.append(clip)
            elif short and is_pretrain(clip):
                skipped.append(SkippedClip(clip.path, clip.split, HELD_OUT))
            else:
                kept.append(moved(clip, "validation"))
        return kept

    def pieces(self, clip: Clip) -> list[Piece]:
        """See `Format.pieces`."""
        text = clip.text
        if not text:
            assert clip.transcript is not None
            text = lrs_text(read_text(clip.transcript))
        if not plain_text(text):
            raise Unusable("empty transcript")
        return [Piece(text)]


def _refuse_shared(clips: list[Clip], labels: dict[str, Path]) -> None:
    splits: dict[str, str] = {}
    for clip in clips:
        other = splits.setdefault(clip.path, clip.split)
        if other != clip.split:
            raise PipelineError(
                labels[clip.split],
                f"{clip.path} stands in {labels[other].name} too",
                f"{clip.split} and {other} must share no clip; without a list, validation is held out of training",
            )
