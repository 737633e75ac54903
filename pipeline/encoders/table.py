"""The encoders that there are. A new one is a file beside this, a line here, and its name in `pipeline.config`."""

from pipeline.encoders.avhubert import AVHuBERT
from pipeline.encoders.dct import MouthDCT
from pipeline.encoders.protocol import Encoder
from pipeline.encoders.self_supervised import SelfSupervised
from pipeline.encoders.whisper import Whisper

ENCODERS: dict[str, type[Encoder]] = {
    "whisper": Whisper,
    "dct": MouthDCT,
    "avhubert": AVHuBERT,
    "self_supervised": SelfSupervised,
}
