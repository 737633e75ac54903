"""The tree of auto_avsr and Llama-AVSR: `<dataset>/<dataset>_video_seg16s/<part>/<speaker>/<clip>.mp4` with a wav of
the same name, transcripts in `<dataset>_text_seg16s`, and `labels/*.csv` that list the clips of a split.

Label files have no header: `dataset,path,frames,token ids`, or `dataset,path,frames,text`, or, in Llama-AVSR,
`dataset,path,frames,token ids,text`. With token ids alone the text is read from the transcript. The upstream projects
validate on the test list; here, without a validation list, speakers of the training list are held out.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipeline.common.errors import PipelineError
from pipeline.config import Section
from pipeline.corpora.formats.lists import UNREADABLE_LINE, list_lines, require_undamaged
from pipeline.corpora.formats.lrs import clip_id, hold_out_validation, is_complete
from pipeline.corpora.formats.transcripts import lrs_text, read_transcript_text
from pipeline.corpora.formats.tree import file_fault, name_fault
from pipeline.corpora.reader import Listing, SkippedClip, Unusable
from pipeline.corpora.recorded.corpus import RecordedClip, RecordedCorpus
from pipeline.corpora.recorded.pieces import Piece
from pipeline.corpora.splits import SPLITS

ROW = "a row is dataset,path,frames,token ids or dataset,path,frames,token ids,text or dataset,path,frames,text"
TOKEN_IDS = re.compile(r"[\d\s]*|_")
NAMES = {"train": r"train|trainval", "validation": r"val|valid|validation|dev", "test": r"test"}
"""Words in the name of a label file, between underscores, by split."""


class AutoAVSR(RecordedCorpus):
    """An auto_avsr tree."""

    keys = ("auto_avsr", "held_out")

    class Settings(Section):
        """Label files of an auto_avsr tree: a name in `labels` or a path; null finds the file of the split by its
        name."""

        train: str | None = None
        validation: str | None = None
        """Without one, speakers of the training labels are held out."""
        test: str | None = None

    def lists(self) -> list[Path]:
        return list(self._labels().values())

    def _labels(self) -> dict[str, Path]:
        """The label file of each split that has one."""
        folder, labels = self.root / "labels", {}
        if not folder.is_dir():
            raise PipelineError(self.root, "has no folder labels", "set corpus.root to the root of an auto_avsr tree")
        for split in SPLITS:
            named = getattr(self.corpus.auto_avsr, split)
            if named is not None:
                labels[split] = folder / named
                if not labels[split].is_file():
                    where = f"corpus.auto_avsr.{split}"
                    raise PipelineError(where, f"there is no {labels[split]}", "set it to a label file")
                continue
            word = re.compile(rf"(^|_)({NAMES[split]})(_|\.)")
            matches = sorted(path for path in folder.glob("*.csv") if word.search(path.name))
            if len(matches) > 1 or (not matches and split != "validation"):
                names = ", ".join(path.name for path in matches) or "none"
                raise PipelineError(folder, f"label files of {split}: {names}", f"set corpus.auto_avsr.{split} to one")
            if matches:
                labels[split] = matches[0]
        return labels

    def find_clips(self) -> Listing:
        labels = self._labels()
        listed: list[RecordedClip] = []
        skipped: list[SkippedClip] = []
        for split, path in labels.items():
            listed += self._listed(split, path, skipped)
        _refuse_shared(listed, labels)
        if "validation" not in labels:
            listed = hold_out_validation(self.corpus, listed, skipped)
        kind = "video" if self.corpus.video else "audio"
        complete = (clip for clip in listed if is_complete(clip, skipped, getattr(clip, kind), clip.transcript))
        return Listing(list(complete), skipped)

    def _listed(self, split: str, path: Path, skipped: list[SkippedClip]) -> list[RecordedClip]:
        """The clips of a label file; invalid rows are skipped, unless all are invalid."""
        clips, first = [], None
        rows = list(list_lines(path))
        has_ids = _has_token_ids(row for _, row in rows)
        for number, row in rows:
            try:
                clips.append(self._clip(split, row, has_ids))
            except Unusable as error:
                skipped.append(error.skip(f"{path.name}, line {number}", split))
                first = first or PipelineError(f"{path}:{number}", f"{row[:80]!r}", ROW)
        if not clips:
            raise first or PipelineError(path, "has no rows", ROW)
        return clips

    def _clip(self, split: str, row: str, has_ids: bool) -> RecordedClip:
        """The clip of a row of a label file, such as `lrs3,lrs3_video_seg16s/trainval/0Fi83BHQsMA/00002.mp4,45,412 77`.
        Unusable if the row is damaged or incomplete, or a name in it is invalid."""
        require_undamaged(row)
        # A text may contain commas.
        fields = [field.strip() for field in row.split(",", 4 if has_ids else 3)]
        is_complete_row = len(fields) > 3 and (not has_ids or TOKEN_IDS.fullmatch(fields[3]))
        if not is_complete_row or not re.fullmatch("[0-9]{1,9}", fields[2]) or len(Path(fields[1]).parts) < 3:
            raise Unusable(UNREADABLE_LINE, f"{row[:80]!r}; {ROW}")
        names = [*PurePosixPath(fields[0]).parts, *PurePosixPath(fields[1]).parts]
        if (fault := name_fault(names)) is not None:
            raise fault
        dataset, relative = fields[0], Path(fields[1])
        text = "".join(fields[4:]) if has_ids else fields[3]
        media_folder, (part, speaker) = relative.parts[0], relative.parts[-3:-1]
        video = self.root / dataset / relative
        audio = video.with_suffix(".wav")
        transcript = (
            self.root / dataset / media_folder.replace("_video_", "_text_") / relative.relative_to(media_folder)
        )
        return RecordedClip(
            id=clip_id(split, part, speaker, video.stem),
            split=split,
            speaker=speaker,
            audio=video if file_fault(audio) else audio,
            video=video,
            path=f"{dataset}/{fields[1]}",
            transcript=None if text.strip() else transcript.with_suffix(".txt"),
            text=lrs_text(text.strip('"')) or None,
            frames=int(fields[2]),
        )

    def pieces(self, clip: RecordedClip) -> list[Piece]:
        return [Piece(clip.text or lrs_text(read_transcript_text(Path(str(clip.transcript)))))]


def _refuse_shared(clips: list[RecordedClip], labels: dict[str, Path]) -> None:
    splits: dict[str, str] = {}
    for clip in clips:
        split = splits.setdefault(clip.path, clip.split)
        if split != clip.split:
            raise PipelineError(
                labels[clip.split],
                f"{clip.path} is also in {labels[split].name}",
                f"{clip.split} and {split} must share no clip; without a list, validation is held out of training",
            )


def _has_token_ids(rows: Iterable[str]) -> bool:
    """Whether the fourth field of most rows of a label file has token ids. One row does not tell: a text may be a
    number, or begin with one, as in `10,000 people`."""
    fields = [row.split(",", 4)[3].strip() for row in rows if row.count(",") > 2]
    return 2 * sum(TOKEN_IDS.fullmatch(field) is not None for field in fields) > len(fields)
