"""A reward that takes a second, for tests that act meanwhile."""

import asyncio

from rewards import reward


@reward
async def one_second(request):
    await asyncio.sleep(1.0)
    return 0.5
