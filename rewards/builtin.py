"""The built-in rewards, by name. They are functions of the request alone, and take no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from judging.errors import ConfigurationError
from rewards.consistency import Consistency
from rewards.coverage import RubricCoverage
from rewards.format import Format
from rewards.length import Overlong
from rewards.pure import PureReward
from rewards.quotes import Quotes
from rewards.verdict import VerdictReward

BUILTINS: Mapping[str, Callable[..., PureReward]] = {
    "verdict": VerdictReward,
    "strict_tail": lambda: VerdictReward(strict_tail=True),
    "format": Format,
    "consistency": Consistency,
    "quotes": Quotes,
    "overlong": Overlong,
    "coverage": RubricCoverage,
}


def make_builtin(name: str, options: Mapping[str, Any]) -> PureReward:
    """Raises ConfigurationError for options that it does not take."""
    try:
        return BUILTINS[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"reward 'builtin:{name}': options: {error}") from None
