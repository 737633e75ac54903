"""A recorded corpus as stage `prepare` sees it: clips in files, brought to wavs and videos of the mouth."""

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, file_sha256
from pipeline.config import Corpus
from pipeline.corpora.clip import Clip, Format
from pipeline.corpora.formats.tree import missing
from pipeline.corpora.prepared import ROOT
from pipeline.corpora.reader import FileInfo, Listing, PreparedClip, Unusable, reasons, root_of
from pipeline.corpora.synthetic.plan import SPLITS, babble_file

READER, BABBLE = "pipeline.corpora.recorded.reader", "pipeline.corpora.noise.babble"
TRANSCRIPTS = "pipeline.corpora.formats.transcripts"


class Recorded:
    """A corpus of some format.

    Three things are told apart, since looking for mouths takes hours: what makes sound and picture out of a file, what
    makes noise, and all the rest, such as splits and texts. When one changes, no more is made again than follows.
    """

    complete = False

    def __init__(self, form: type[Format], corpus: Corpus) -> None:
        self.corpus, self.form = corpus, form(corpus)

    def settings(self) -> dict[str, Any]:
        """See `Reader.settings`."""
        corpus, form = self.corpus, self.form
        module = type(form).__module__
        # Not the root: it says where the corpus lies, not what it is.
        common = {"kind", "seed", "video", "longest_seconds", "noise"}
        values = corpus.model_dump(mode="json", include=common | set(form.keys))
        lists = [[path.name, file_sha256(path)] for path in self.form.lists()]
        cuts = {key: values[key] for key in form.cuts}
        media = {"kind": corpus.kind, "cuts": cuts, "code": code_digest("pipeline.corpora.recorded.recording")}
        chosen = {key: value for key, value in values.items() if key not in ("video", "longest_seconds")}
        noise = {"corpus": chosen, "lists": lists, "code": code_digest(BABBLE, READER, module)}
        if corpus.noise.folder is not None:
            from pipeline.corpora.noise.folder import noise_settings

            noise["folder"] = noise_settings(corpus.noise.folder)
        causes = {
            "corpus": values,
            "lists": lists,
            "media": digest(media),
            "noise": digest(noise),
            "code": code_digest(READER, TRANSCRIPTS, module),
        }
        return causes | {"digest": digest(causes), ROOT: corpus.root}

    def stale(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """See `Reader.stale`."""
        if before.get("media") != now["media"]:
            return ["babble", *SPLITS]
        if before.get("noise") != now["noise"]:
            return ["babble", *(f"{split}/**/*dB.wav" for split in SPLITS)]
        return []

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        found = self.form.listing()
        once = list(dict.fromkeys(found.clips))
        skipped = [
            Unusable("listed twice").skip(c.path, c.split) for c in (Counter(found.clips) - Counter(once)).elements()
        ]
        counts, named = Counter(clip.id for clip in once), Counter(clip.path for clip in once)
        clips = [clip for clip in once if counts[clip.id] == named[clip.path] == 1]
        twins = [clip for clip in once if counts[clip.id] > 1]
        unsure = [clip for clip in once if counts[clip.id] == 1 < named[clip.path]]
        skipped += [Unusable("listed with different texts or splits").skip(clip.path, clip.split) for clip in unsure]
        skipped += [Unusable("another clip has its name", clip.id).skip(clip.path, clip.split) for clip in twins]
        skipped = found.skipped + skipped
        for split in SPLITS:
            if not any(clip.split == split for clip in clips):
                why = f"there is no whole clip of {split} in it{reasons(skipped)}"
                raise PipelineError(root_of(self.corpus), why, "check corpus.root")
        return Listing(clips, skipped, found.extra)

    def sources(self, clip: Clip) -> tuple[Path, ...]:
        """See `Reader.sources`."""
        video = clip.video if clip.video != clip.audio else None
        return tuple(path for path in (clip.audio, video, clip.transcript) if path is not None)

    def room(self, clips: list[Clip]) -> int:
        """As much as the files that it is made of, but for those that are probably linked."""
        noise = self.corpus.noise
        noisy = {
            "train": noise.train_share, "validation": len(noise.validation_snrs), "test": len(noise.test_snrs)
        }  # fmt: skip
        sizes = ((clip, clip.audio.stat().st_size) for clip in clips if missing(clip.audio) is None)
        return int(sum(size * ((clip.audio.suffix != ".wav") + noisy[clip.split]) for clip, size in sizes))

    def noise(self, split: str, clips: list[Clip]) -> Any:
        """See `Reader.noise`."""
        if self.corpus.noise.folder is not None:
            return None
        from pipeline.corpora.noise.babble import Speech, talkers

        training = [Speech(clip.speaker, clip.id, clip.audio) for clip in clips if clip.split == "train"]
        return talkers(self.corpus, split, training)

    def make_noise(self, split: str, recipe: Any, folder: Path) -> None:
        """See `Reader.make_noise`."""
        from pipeline.corpora.noise.babble import SECONDS, make_babble
        from pipeline.corpora.noise.folder import make_noise

        target = folder / babble_file(split)
        if self.corpus.noise.folder is not None:
            seconds = max(SECONDS, self.corpus.longest_seconds)
            make_noise(self.corpus.noise.folder, split, self.corpus.seed, seconds, folder)
        elif not target.exists():
            make_babble(self.corpus, split, recipe, target)

    def make(self, clip: Clip, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
        """See `Reader.make`."""
        from pipeline.corpora.recorded.making import make_lines

        try:
            pieces = self.form.pieces(clip)
            return PreparedClip(tuple(make_lines(self.corpus, clip, pieces, folder, known)))
        except Unusable as error:
            return PreparedClip(skipped=error.skip(clip.path, clip.split, clip.id))
