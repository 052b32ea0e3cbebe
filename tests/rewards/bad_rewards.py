"""Rewards that do what they should not, for the tests of the host and of `gavel rewards check`."""

import asyncio
import os
import signal
import time

from rewards import RewardResult, RewardSpec, reward


@reward
def good(request):
    return float(len(request.response) % 2)


@reward
async def good_async(request):
    await asyncio.sleep(0)
    return 0.5


@reward
def by_number(request):
    return int(request.id.rpartition("#")[2]) / 1000


@reward
def sees_secrets(request):
    return float(any(os.environ.get(n) for n in ("RAY_AUTH_TOKEN", "GAVEL_STORE_PASSWORD")))


@reward
async def sleeps(request):
    await asyncio.sleep(3600)
    return 0.0


@reward
def spins(request):
    while True:
        pass


@reward
def spins_at_three(request):
    while request.id.endswith("#3"):
        pass
    return 1.0


@reward
def raises(request):
    raise LookupError("no such thing")


@reward
def nan(request):
    return float("nan")


@reward
def infinite(request):
    return float("inf")


@reward
def text(request):
    return "0.7"


@reward
def nothing(request):
    return None


@reward
def too_high(request):
    return 7.0


@reward
def prints(request):
    print('{"result": {"id": "x", "score": 1.0}}')  # looks like an answer
    return 1.0


@reward
def killed(request):
    os.kill(os.getpid(), signal.SIGKILL)


@reward
def eats_memory(request):
    hoard = []
    while True:
        hoard.append(bytearray(2**24))


@reward
def slow(request):
    time.sleep(0.2)
    return 0.0


class Scores:
    """A reward by the protocol; what `score` answers is given as an option."""

    def __init__(self, answer="right", **spec):
        self._answer, self._spec = answer, spec

    def spec(self):
        return RewardSpec(**{"name": "scores", **self._spec})

    async def score(self, batch):
        right = [RewardResult(request.id, score=0.5) for request in batch]
        match self._answer:
            case "right":
                return right
            case "reversed":
                return right[::-1]
            case "too few":
                return right[:-1]
            case "doubled":
                return [*right, right[0]]
            case "wrong ids":
                return [RewardResult(f"x{n}", score=0.5) for n in range(len(batch))]
            case "numbers":
                return [0.5 for _ in batch]
            case "a string":
                return "0.5"
            case "raises":
                raise RuntimeError("the whole batch")
            case "none":
                return None
            case "score and error":
                return [RewardResult(request.id, "error", 1.0) for request in batch]

    async def close(self):
        pass


class NoProtocol:
    pass


class FromTheFuture(Scores):
    def spec(self):
        return RewardSpec("future", api_version=99)


NOT_A_REWARD = 3
