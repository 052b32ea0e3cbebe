"""Rewards that are named Ray actors, started by their authors in this job or another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rewards.backend import CallFailed
from rewards.protocol import RewardRequest, RewardSpec
from rewards.settings import CallSettings
from rewards.wire import WireError, request_to_json, spec_from_json


class NamedActorBackend:
    """`ray://namespace/name`. An actor whose `spec` answers a `RewardSpec` is given
    `RewardRequest`s; one that answers a dict is given dicts, and needs nothing of Gavel.

    An actor that is gone is looked up again, so that one which its author restarts is found.
    """

    def __init__(self, namespace: str, name: str, settings: CallSettings) -> None:
        self._namespace, self._name, self._settings = namespace, name, settings
        self._actor: Any = None
        self._takes_records = True

    @property
    def lanes(self) -> int:
        return self._settings.concurrency

    async def open(self, timeout_s: float) -> RewardSpec:
        return await self._connect(min(timeout_s, self._settings.call_timeout_s))

    async def score(
        self, lane: int, batch: Sequence[RewardRequest], timeout_s: float
    ) -> Sequence[Any]:
        if self._actor is None:
            await self._connect(timeout_s)
        requests = list(batch) if self._takes_records else [request_to_json(r) for r in batch]
        answer = await self._ask(self._actor, "score", timeout_s, requests)
        if not isinstance(answer, Sequence) or isinstance(answer, str):
            raise CallFailed("fault", f"score answered a {type(answer).__name__}, not a list")
        return answer

    async def _connect(self, timeout_s: float) -> RewardSpec:
        import ray

        where = f"no Ray actor {self._name!r} in namespace {self._namespace!r}"
        try:
            # Asks the cluster's head and blocks meanwhile.
            actor = await asyncio.wait_for(
                asyncio.to_thread(ray.get_actor, self._name, self._namespace), timeout_s
            )
        except ValueError:
            raise CallFailed("transient", f"{where}: start it, detached or kept alive") from None
        except TimeoutError:
            raise CallFailed("transient", f"{where} was found within {timeout_s:g} s") from None
        if missing := [name for name in ("spec", "score") if not hasattr(actor, name)]:
            raise CallFailed("fault", f"the actor has no method {' or '.join(missing)}")
        try:
            answer = await self._ask(actor, "spec", timeout_s)
        except CallFailed as failure:  # it may be starting still
            kind = "transient" if failure.kind == "timeout" else failure.kind
            raise CallFailed(kind, str(failure)) from None
        try:
            spec = spec_from_json(answer)
        except WireError as error:
            raise CallFailed("fault", str(error)) from None
        self._takes_records = isinstance(answer, RewardSpec)
        self._actor = actor
        return spec

    async def _ask(self, actor: Any, method: str, timeout_s: float, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayError

        call = getattr(actor, method).remote(*arguments)
        try:
            return await asyncio.wait_for(call, timeout_s)
        except TimeoutError:
            ray.cancel(call, force=False)
            raise CallFailed("timeout", f"{method}: no answer within {timeout_s:g} s") from None
        except RayActorError as error:
            self._actor = None
            raise CallFailed("transient", f"the actor is gone: {_first_line(error)}") from None
        except RayError as error:
            raise CallFailed("fault", f"{method} raised: {_last_line(error)}") from None

    async def close(self) -> None:
        """The actor is its author's; it lives on."""
        self._actor = None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]
