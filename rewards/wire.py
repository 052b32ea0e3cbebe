"""Requests and results as JSON: what goes to a reward's own process and over HTTP.

Owns the reading of what a reward answers, whoever it is: everything is checked, and what cannot be
read becomes a message, never a number. docs/reward-api.yaml describes the same objects.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast, get_args

from judging.records import Message, Quote, Reason, Trace, Verdict
from rewards.protocol import (
    API_VERSION,
    Json,
    RewardRequest,
    RewardResult,
    RewardSpec,
    Status,
    SwappedJudgment,
)


class WireError(ValueError):
    """What was read is no such object; the message says what it is instead."""


# ---- requests ------------------------------------------------------------------------------------


def request_to_json(request: RewardRequest) -> dict[str, Any]:
    return asdict(request)


def request_from_json(value: Mapping[str, Any]) -> RewardRequest:
    """Reads what `request_to_json` wrote."""
    swapped = value["swapped"]
    return RewardRequest(
        id=value["id"],
        conversation=tuple(Message(**message) for message in value["conversation"]),
        answer_a=value["answer_a"],
        answer_b=value["answer_b"],
        gold=value["gold"],
        response=value["response"],
        trace=_trace(value["trace"]),
        swapped=None
        if swapped is None
        else SwappedJudgment(swapped["gold"], swapped["response"], _trace(swapped["trace"])),
        metadata=value["metadata"],
    )


def _trace(value: Mapping[str, Any]) -> Trace:
    verdict = value["verdict"]
    reason = verdict["reason"]
    return Trace(
        **{
            **value,
            "verdict": Verdict(verdict["letter"], None if reason is None else Reason(reason)),
            "quotes": tuple(Quote(**quote) for quote in value["quotes"]),
            "summaries": tuple(Quote(**quote) for quote in value["summaries"]),
            "outline": tuple(value["outline"]),
        }
    )


# ---- specs and results ---------------------------------------------------------------------------


def spec_to_json(spec: RewardSpec) -> dict[str, Any]:
    return asdict(spec)


def spec_from_json(value: Any) -> RewardSpec:
    """Reads a spec that somebody else wrote.

    Raises:
        WireError: it is no spec, or of a newer protocol.
    """
    if isinstance(value, RewardSpec):
        value = asdict(value)
    fields = _object(value, "a spec")
    version = _number(fields.get("api_version", API_VERSION), "api_version")
    if version > API_VERSION:
        raise WireError(
            f"speaks api_version {version:g}, and this Gavel {API_VERSION}: take a newer Gavel or "
            "an older version of the reward"
        )
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        raise WireError(f"its spec has no name: {_short(value)}")
    spans = fields.get("range", (-1.0, 1.0))
    if not isinstance(spans, Sequence) or isinstance(spans, str) or len(spans) != 2:
        raise WireError(f"range must be two numbers, not {_short(spans)}")
    low, high = (_number(end, "range") for end in spans)
    max_batch = _number(fields.get("max_batch", 64), "max_batch")
    if not low < high or max_batch < 1:
        raise WireError(f"range [{low:g}, {high:g}] or max_batch {max_batch:g} is empty")
    return RewardSpec(
        name=name,
        version=str(fields.get("version", "1")),
        api_version=int(version),
        deterministic=bool(fields.get("deterministic", True)),
        max_batch=int(max_batch),
        range=(low, high),
    )


def result_to_json(result: RewardResult) -> dict[str, Any]:
    return asdict(result)


def result_from_json(value: Any) -> RewardResult:
    """Reads a result that somebody else wrote; an `error` of its own keeps its status.

    Raises:
        WireError: it is no result.
    """
    if isinstance(value, RewardResult):
        value = {name: getattr(value, name) for name in RewardResult.__slots__}
    fields = _object(value, "a result")
    if not isinstance(fields.get("id"), str):
        raise WireError(f"a result without an id: {_short(value)}")
    status = fields.get("status", "ok")
    if status not in get_args(Status):
        raise WireError(f"status must be one of {', '.join(get_args(Status))}: {_short(status)}")
    score = fields.get("score")
    if status == "ok":
        score = _number(score, "score")
    elif score is not None:
        raise WireError(f"status {status} with a score of {_short(score)}")
    components = _object(fields.get("components") or {}, "components")
    error = fields.get("error")
    return RewardResult(
        id=fields["id"],
        status=status,
        score=score,
        components={name: _number(number, name) for name, number in components.items()},
        info=_json_object(fields.get("info") or {}),
        error=None if error is None else str(error),
    )


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WireError(f"{what} must be an object, not {_short(value)}")
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise WireError(f"{what} has a key that is no text: {_short(wrong[0])}")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"{what} must be a number, not {_short(value)}")
    if not math.isfinite(value):
        raise WireError(f"{what} is {value}")
    return float(value)


def _json_object(value: Any) -> Mapping[str, Json]:
    """What may be written down with a judgment: JSON, and not much of it."""
    fields = _object(value, "info")
    return {name: _plain(part) for name, part in fields.items()}


def _plain(value: Any) -> Json:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [_plain(part) for part in cast(Sequence[Any], value)]
    return str(value)


def _short(value: Any) -> str:
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def content_key(spec: RewardSpec, request: RewardRequest) -> str:
    """Equal for requests that a deterministic reward must score equally: all but the id."""
    content = {**request_to_json(request), "id": None, "reward": [spec.name, spec.version]}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
