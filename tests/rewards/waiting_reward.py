"""A reward that takes its time while a file is there, for tests that act meanwhile."""

import asyncio
import os
from pathlib import Path

from rewards import reward

WAIT_S = 2.0


@reward
async def waits(request):
    if Path(os.environ["WAITS_WHILE"]).exists():
        await asyncio.sleep(WAIT_S)
    return 0.0
