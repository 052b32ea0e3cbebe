"""Whether teachers whose probabilities are learned from have the student's vocabulary."""

from __future__ import annotations

from typing import Any

from actors.urls import local_copy
from judging.errors import ConfigurationError
from orchestrator.config import RunConfig

_MEND = (
    "name a teacher of the same family, or leave distill.logits out and distil what the teacher "
    "writes as traces"
)


def check_teachers(config: RunConfig, tokenizer: Any) -> None:
    """`tokenizer` is the student's.

    Raises:
        ConfigurationError: a teacher of `distill.logits` cannot be read, or gives other ids to the
            student's tokens.
    """
    logits = [phase.settings.logits for phase in config.phases if phase.kind == "distill"]
    for path in dict.fromkeys(each.teacher for each in logits if each is not None):
        if path != "policy":
            check_vocabulary(path, tokenizer.get_vocab(), _vocabulary(config, path))


def check_vocabulary(path: str, student: dict[str, int], teacher: dict[str, int]) -> None:
    """Raises ConfigurationError for the first token of the student that the teacher does not have,
    or has under another id."""
    for token, number in sorted(student.items(), key=lambda entry: entry[1]):
        if teacher.get(token) != number:
            other = f"has id {teacher[token]}" if token in teacher else "is unknown"
            raise ConfigurationError(
                f"distill.logits.teacher ({path}) has another vocabulary than the model that is "
                f"trained: its token {token!r}, id {number}, {other} there; {_MEND}"
            )


def _vocabulary(config: RunConfig, path: str) -> dict[str, int]:
    from transformers import AutoTokenizer

    try:
        folder = local_copy(path, weights=False)
        trusted = config.model.trust_remote_code
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted).get_vocab()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"distill.logits.teacher ({path}) has no tokenizer that can be read: {error}; name a "
            "model folder, an id of the Hugging Face hub, or policy for the weights that the phase "
            "begins with"
        ) from error
