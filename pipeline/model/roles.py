"""Role of each token in a sequence. Every batch carries the roles of its positions."""

from enum import IntEnum


class Role(IntEnum):
    """Role of a position, in the order of the sequence."""

    PADDING = 0
    BOS = 1
    AUDIO_START = 2
    AUDIO = 3
    AUDIO_END = 4
    VIDEO_START = 5
    VIDEO = 6
    VIDEO_END = 7
    PROMPT = 8
    RESPONSE = 9

    @property
    def label(self) -> str:
        """The name in parameters, files and figures, such as `audio_start`."""
        return self.name.lower()

    @classmethod
    def of(cls, label: str) -> "Role":
        """The role with this label."""
        return cls[label.upper()]


REAL_ROLES: tuple[Role, ...] = tuple(role for role in Role if role is not Role.PADDING)
