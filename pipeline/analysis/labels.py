"""What the tokens of an utterance are, as people say it."""

from collections.abc import Iterator, Sequence

from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.roles import Role


def token_labels(model: AudioVisualLLM, roles: Sequence[int], response: Sequence[int]) -> list[str]:
    """For each real token its role, and of words the piece of text: `audio`, `response ' blue'`.

    Args:
        model: whose prompt and tokenizer they are of.
        roles: of the real tokens of one sequence, as `Role`.
        response: token ids of the transcript.
    """
    texts: dict[int, Iterator[int]] = {Role.PROMPT: iter(model.prompt), Role.RESPONSE: iter(response)}
    return [
        f"{Role(role).label} {model.tokenizer.decode([next(texts[role])])!r}" if role in texts else Role(role).label
        for role in roles
    ]
