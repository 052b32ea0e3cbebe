"""A Python reward in a process of its own: `python -m rewards.child`, started by `rewards.process`.

Reads a first line that says what to load and under which limits, answers the spec, then reads
batches and answers each result as soon as there is one. Lines are JSON. What the reward prints goes
to the error output, and the process ends with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rewards.function import FunctionReward
from rewards.protocol import RewardRequest
from rewards.wire import (
    WireError,
    request_from_json,
    result_from_json,
    result_to_json,
    spec_to_json,
)

_PR_SET_PDEATHSIG = 1


def main() -> None:
    answers = _take_standard_output()
    order = json.loads(sys.stdin.readline())
    _limit(order["memory_mib"], order["cpus"], order["parent"])
    try:
        reward = load(order["module"], order["attribute"], order["options"])
        spec = reward.spec()
    except Exception as error:
        _write(answers, {"refused": f"{type(error).__name__}: {error}"})
        return
    _write(answers, {"spec": spec_to_json(spec) if _is_dataclass(spec) else spec})
    asyncio.run(_serve(reward, answers))


def load(module: str, attribute: str, options: Mapping[str, Any]) -> Any:
    """The reward that `import:module:attribute` names; a class or factory is called.

    Raises:
        ImportError, AttributeError: there is no such thing.
        TypeError: it is no reward, or does not take the options.
    """
    found = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    if inspect.isclass(found) or (options and callable(found)):
        found = found(**options)
    missing = [name for name in ("spec", "score") if not callable(getattr(found, name, None))]
    if missing:
        raise TypeError(
            f"{module}:{attribute} is a {type(found).__name__} without {' and '.join(missing)}: "
            "decorate a function with @reward, or give a class with spec, score and close"
        )
    return found


async def _serve(reward: Any, answers: TextIO) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        batch = [request_from_json(value) for value in json.loads(line)]
        try:
            await _score(reward, batch, answers)
        except Exception as error:
            _write(answers, {"failed": f"{type(error).__name__}: {error}"})
        else:
            _write(answers, {"done": True})
    if callable(close := getattr(reward, "close", None)):
        ended = close()
        if inspect.isawaitable(ended):
            await ended


async def _score(reward: Any, batch: Sequence[RewardRequest], answers: TextIO) -> None:
    if isinstance(reward, FunctionReward):

        async def one(request: RewardRequest) -> None:
            _answer(answers, await reward.score_one(request))

        await asyncio.gather(*(one(request) for request in batch))
        return
    results = reward.score(batch)
    if inspect.isawaitable(results):
        results = await results
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise TypeError(f"score answered a {type(results).__name__}, not a list of results")
    for result in results:
        _answer(answers, result)


def _answer(answers: TextIO, result: Any) -> None:
    """Passes a result on; one that JSON cannot carry goes as the text of what is wrong with it."""
    try:
        _write(answers, {"result": result_to_json(result_from_json(result))})
    except WireError as error:
        name = result.get("id") if isinstance(result, Mapping) else getattr(result, "id", None)
        problem = {"id": name if isinstance(name, str) else None, "problem": str(error)}
        _write(answers, problem)


def _write(answers: TextIO, value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _is_dataclass(value: Any) -> bool:
    return hasattr(value, "__dataclass_fields__")


def _take_standard_output() -> TextIO:
    """Keeps the answers' pipe to ourselves: what the reward prints must not mix with them."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _limit(memory_mib: int, cpus: int, parent: int) -> None:
    # Of data, not of address space: libraries reserve far more addresses than they use.
    limit = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    available = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(available)
    chosen = [available[(first + place) % len(available)] for place in range(cpus)]
    os.sched_setaffinity(0, chosen)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


if __name__ == "__main__":
    main()
