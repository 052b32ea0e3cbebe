"""What a synthesis may cost: spent, and set apart for what is in flight.

Before a request is sent its highest possible cost is set apart, so that what is spent never
exceeds `max_cost_usd`, however many are in flight.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal

from judging.records import Message
from synthesis.ledger import NUSD
from synthesis.records import Spent, Usage
from synthesis.settings import Price

_MESSAGE_TOKENS = 16  # that a chat template adds to each message, at most


def cost_nusd(usage: Usage, price: Price | None, *, is_batch: bool) -> int:
    """In nano-dollars, rounded up; 0 without a price."""
    if price is None:
        return 0
    cached_price = price.cached_input_usd_per_million
    if cached_price is None:
        cached_price = price.input_usd_per_million
    fresh = usage.input_tokens - usage.cached_input_tokens
    usd_million = (
        fresh * _exactly(price.input_usd_per_million)
        + usage.cached_input_tokens * _exactly(cached_price)
        + usage.output_tokens * _exactly(price.output_usd_per_million)
    )
    share = 1 - _exactly(price.batch_discount) if is_batch else 1
    return math.ceil(usd_million * share * (NUSD // 10**6))


def _exactly(price: float) -> Decimal:
    """As it was written."""
    return Decimal(str(price))


def most_usage(messages: Sequence[Message], max_new_tokens: int) -> Usage:
    """The most that a request can come to: no tokenizer makes more tokens of a text than it has
    bytes."""
    size = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
    return Usage(size + _MESSAGE_TOKENS * (1 + len(messages)), 0, max_new_tokens)


class Budget:
    """Of one phase, over all its drivers."""

    def __init__(
        self,
        max_cost_usd: float | None,
        max_requests: int | None,
        *,
        spent_nusd: int,
        requests: int,
    ) -> None:
        self._most_nusd = None if max_cost_usd is None else round(max_cost_usd * NUSD)
        self._max_cost_usd, self._max_requests = max_cost_usd, max_requests
        self.spent_nusd, self.requests = spent_nusd, requests
        self._apart_nusd = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def room(self, most_nusd: int) -> AsyncIterator[None]:
        """For one try; `spend` within it. Raises Spent if there is none, and will be none."""
        while True:
            self._check(most_nusd)
            if self._most_nusd is None:
                break
            if self.spent_nusd + self._apart_nusd + most_nusd <= self._most_nusd:
                break
            async with self._changed:
                await self._changed.wait()
        self.requests += 1
        self._apart_nusd += most_nusd
        try:
            yield
        finally:
            self._apart_nusd -= most_nusd
            if self._most_nusd is not None:
                async with self._changed:
                    self._changed.notify_all()

    def spend(self, nusd: int) -> None:
        self.spent_nusd += nusd

    def _check(self, most_nusd: int) -> None:
        if self._max_requests is not None and self.requests >= self._max_requests:
            raise Spent(f"synthesize.max_requests ({self._max_requests:,}) are sent")
        if self._most_nusd is not None and self.spent_nusd + most_nusd > self._most_nusd:
            raise Spent(
                f"${self.spent_nusd / NUSD:,.4f} of synthesize.max_cost_usd "
                f"(${self._max_cost_usd:,.4f}) are spent, and one more request may cost "
                f"${most_nusd / NUSD:,.4f}"
            )


def price_of(prices: Mapping[str, Price] | None, model: str | None) -> Price | None:
    return None if prices is None or model is None else prices.get(model)
