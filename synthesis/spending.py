"""What each teacher was asked and paid, as programs and people are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from synthesis.budget import price_of
from synthesis.ledger import NUSD
from synthesis.records import Spending
from synthesis.settings import Price

_COLUMNS = {
    "teacher": "teacher",
    "model": "model",
    "answers": "answers",
    "from cache": "from_cache",
    "in doubt": "in_doubt",
    "input tokens": "input_tokens",
    "output tokens": "output_tokens",
    "tokens estimated": "estimated",
    "USD": "cost_usd",
}
_IF_ANY = {"in_doubt", "estimated"}


def spending_tree(
    spending: Sequence[Spending], prices: Mapping[str, Price] | None
) -> dict[str, Any]:
    """Of all teachers and of each, for JSON; a cost that nobody knows is None."""
    teachers = []
    for each in spending:
        tree = asdict(each)
        cost_nusd = tree.pop("cost_nusd")
        is_known = cost_nusd > 0 or price_of(prices, each.model) is not None
        teachers.append(tree | {"cost_usd": cost_nusd / NUSD if is_known else None})
    is_any_known = prices is not None or any(tree["cost_usd"] is not None for tree in teachers)
    cost_usd = sum(each.cost_nusd for each in spending) / NUSD
    return {
        "answers": sum(tree["answers"] for tree in teachers),
        "from_cache": sum(tree["from_cache"] for tree in teachers),
        "cost_usd": cost_usd if is_any_known else None,
        "teachers": teachers,
    }


def teacher_table(
    teachers: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of each teacher of a `spending_tree`."""
    shown = {
        heading: key
        for heading, key in _COLUMNS.items()
        if key not in _IF_ANY or any(each[key] for each in teachers)
    }
    return list(shown), [[_cell(each[key], key) for key in shown.values()] for each in teachers]


def _cell(value: Any, key: str) -> str:
    if key == "cost_usd":
        return "no prices" if value is None else f"{value:.4f}"
    return value if isinstance(value, str) else f"{value:,}"
