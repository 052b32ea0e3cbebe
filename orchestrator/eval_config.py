"""What an evaluation is told: the judge, how it answers, and what makes its judgments the same.

Judgments go into a folder that is named by all that they depend on, so that a command that is given
again goes on where it ended, and one that asks for something else begins anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.urls import is_url
from evaluation.items import Benchmark
from evaluation.verdicts import Protocol
from judging.errors import ConfigurationError
from judging.prompts import TEMPLATES
from orchestrator.config import RunConfig
from orchestrator.config_loading import config_from_tree
from orchestrator.facts import model_folder, read_json
from orchestrator.preflight import check_model_folder
from orchestrator.trained_by import run_sections_of

IDENTITY_FILE = "evaluation.json"
# Of the run whose checkpoint is evaluated: as it was trained, so it is asked.
_OF_RUN = ("model", "judge", "rollout", "placement", "deadlines")
_PROMPT_KEY = "data.max_prompt_tokens"
_MOST_PROMPT_TOKENS = 24_576  # where it is not given: engines keep room for the longest
_WEIGHTS_AND_TOKENIZER = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """Which judgments there are to be."""

    benchmarks: tuple[Benchmark, ...]
    data: Path | None  # folder of the benchmarks' files; None: the Hugging Face hub
    protocol: Protocol = "both"
    votes: int = 1  # on each presentation
    temperature: float = 0.0  # 0: greedy
    seed: int = 1
    limit: int | None = None  # of each benchmark's items, drawn by seed
    endpoint: str | None = None  # None: engines of our own
    concurrency: int = 32  # requests to the endpoint at a time


def judge_config(model: str, overrides: Sequence[str], *, is_here: bool) -> RunConfig:
    """The configuration of the judge; overrides come last.

    Raises:
        ConfigurationError: as `load_config`; or the model `is_here`, and is a folder without its
            files or without room for a prompt.
    """
    own = run_sections_of(model)
    tree = {name: own[name] for name in _OF_RUN if name in own}
    of_model = {"path": model, "make": None, "revision": None}
    tree["model"] = {**tree.get("model", {}), **of_model}
    tree |= {"data": {"path": "benchmarks"}, "phases": ["evaluate"]}
    config = config_from_tree(tree, overrides)
    if not is_here or any(text.startswith(f"{_PROMPT_KEY}=") for text in overrides):
        return config
    tokens = _prompt_tokens(model, config)
    return config_from_tree(tree, [*overrides, f"{_PROMPT_KEY}={tokens}"])


def _prompt_tokens(model: str, config: RunConfig) -> int:
    """What the model's positions leave for a prompt."""
    if Path(model).is_dir():
        check_model_folder(Path(model))
    elif model.startswith((".", "/")):
        raise ConfigurationError(f"{model}: no such folder: correct the path")
    folder = None if is_url(model) else model_folder(model, config.model.revision)
    positions = read_json(folder / "config.json").get("max_position_embeddings") if folder else None
    if not isinstance(positions, int):
        return _MOST_PROMPT_TOKENS
    if positions <= config.completion_tokens:
        raise ConfigurationError(
            f"rollout.max_new_tokens ({config.completion_tokens}) leaves no room for a prompt in "
            f"the {positions} positions of {model}: lower it"
        )
    return min(positions - config.completion_tokens, _MOST_PROMPT_TOKENS)


def identity_of(model: str, config: RunConfig, settings: EvalSettings) -> dict[str, Any]:
    """All that a judgment depends on, but for its presentation and its vote."""
    built_in = TEMPLATES / f"{config.judge.template}.jinja"
    source = built_in if built_in.is_file() else Path(config.judge.template)
    return {
        "model": model,
        "endpoint": settings.endpoint,
        "revision": config.model.revision,
        "files": None if settings.endpoint else fingerprint(model, config.model.revision),
        "dtype": config.model.dtype,
        "template": config.judge.template,
        "template_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "strict_tail": config.judge.strict_tail,
        "temperature": settings.temperature,
        "max_new_tokens": config.rollout.max_new_tokens,
        "seed": settings.seed,
    }


def fingerprint(model: str, revision: str | None) -> str | None:
    """Of a model's files on this machine by name, size and time; None if they are elsewhere.

    Hashing what is in them would take minutes for a large model.
    """
    folder = None if is_url(model) else model_folder(model, revision)
    if folder is None:
        return None
    files = sorted({file for kind in _WEIGHTS_AND_TOKENIZER for file in folder.glob(kind)})
    known = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def folder_of(identity: Mapping[str, Any], below: Path) -> Path:
    """Where the judgments of this identity go."""
    parts = [part for part in re.split(r"[^A-Za-z0-9._-]+", str(identity["model"])) if part]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return below / f"{'-'.join(parts[-3:]) or 'model'}-{digest}"


def check_identity(identity: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigurationError if `folder` holds judgments of another kind; says in what."""
    path = folder / IDENTITY_FILE
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text("utf-8"))["identity"]
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{path} does not say what the judgments beside it are of: choose another --output"
        ) from None
    differences = "".join(
        f"\n- {name}: {there.get(name)!r} there, {value!r} now"
        for name, value in identity.items()
        if there.get(name) != value
    )
    if differences:
        raise ConfigurationError(
            f"{folder} holds judgments that were made differently: choose another --output"
            f"{differences}"
        )
