"""Requests that are answered together, within a day and at a lower price.

A batch is in the ledger before it is sent, by a mark of our own, then by the id that the service
gave, and until each of its answers is written down or has failed. So a driver that goes on after
another was killed finds every batch again, and sends no request that is in one of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from uuid import uuid4

from judging.errors import InfrastructureError
from synthesis.asking import TryFailed
from synthesis.batch_client import (
    BatchClient,
    Invalid,
    NoRoom,
    ServiceError,
    batch_refused,
    refuse,
    refuse_batch,
)
from synthesis.endpoint import check_model
from synthesis.ledger import Ledger
from synthesis.records import Answer, RequestFailed, TeacherRequest
from synthesis.settings import Teacher

T = TypeVar("T")

_MOST_BYTES = 100_000_000  # of the requests of one batch: half of what the services take
_NO_ROOM_S = 600.0  # before a batch is sent again that the service had no room for
_CANCEL_S = 900.0  # the services end a batch so soon once it is cancelled
_KEPT_S = 28 * 86_400.0  # for so long the services keep results


@dataclass(slots=True, eq=False)
class Entry:
    """One request, and what comes of it: a line that the client reads."""

    found: asyncio.Future[str]
    request: TeacherRequest | None  # None: of a driver before, and not asked again yet
    batch: Batch | None = None  # None: gathered
    waiting: int = 0  # calls of `answer`


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that are sent together.

    Doubtful is one that may have been sent or not; its id is then the mark, as in the ledger.
    """

    keys: tuple[str, ...]
    state: Literal["gathered", "doubtful", "sent"] = "gathered"
    id: str | None = None
    at_s: float = 0.0  # when it was sent, in Unix time
    open_keys: set[str] = field(default_factory=set)  # neither written down nor failed
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, key: str) -> None:
        self.open_keys.discard(key)
        if not self.open_keys:
            self.is_over.set()


class BatchService:
    """One teacher with `uses: openai-batch` or `anthropic-batch`. Life: `check`, `answer` and
    `written`, `close`. What is processed then goes on without us."""

    def __init__(
        self,
        name: str,
        settings: Teacher,
        client: BatchClient,
        *,
        ledger: Ledger,
        key_variable: str | None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self._name, self._settings, self._client = name, settings, client
        self._ledger, self._told = ledger, (name, client.where, key_variable)
        self._clock, self._sleep, self._most_bytes = clock, sleep, most_bytes
        self._most_requests = min(settings.batch_requests, client.most_requests)
        self._entries: dict[str, Entry] = {}  # by key
        self._gathered: dict[str, Entry] = {}  # of these, those that are in no batch yet
        self._gathered_bytes, self._came_s = 0, 0.0
        self._gathering: asyncio.Task[None] | None = None
        self._batches: dict[asyncio.Task[None], Batch] = {}
        self._ids: set[str] = set()  # that the service gave to batches of ours

    # ---- the service -----------------------------------------------------------------------------

    async def check(self) -> None:
        """Finds the batches of a driver before, too."""
        try:
            models = await self._client.models()
        except ServiceError as error:
            if error.status not in (404, 405, 501):  # it does not tell
                refuse(*self._told, error)
                raise InfrastructureError(
                    f"synthesize.teachers.{self._name}: {self._client.where} does not say which "
                    f"models it has ({error}): start it, or correct base_url"
                ) from error
        else:
            check_model(self._name, self._client.where, self._settings.model, models)
        await self._take_up()

    async def answer(self, request: TeacherRequest) -> Answer:
        entry = self._entries.get(request.key) or self._gather(request)
        entry.request = request
        entry.waiting += 1
        try:
            # Shielded: the batch goes on, and another one may wait for it.
            return self._client.read(await asyncio.shield(entry.found), request)
        except ServiceError as error:
            refuse(*self._told, error)
            self._settle(request.key, entry)
            if error.is_passing:
                raise TryFailed(f"it was not answered in its batch: {error}") from error
            raise RequestFailed(f"teacher {self._name} refused it with {error}") from error
        except (TryFailed, RequestFailed):
            self._settle(request.key, entry)
            raise
        finally:
            entry.waiting -= 1
            if not entry.waiting and self._gathered.get(request.key) is entry:
                del self._gathered[request.key], self._entries[request.key]

    def written(self, key: str) -> None:
        if entry := self._entries.get(key):
            self._settle(key, entry)

    async def close(self) -> None:
        over = [task for task, batch in self._batches.items() if batch.is_over.is_set()]
        if over:
            await asyncio.wait(over)
        tasks = [*self._batches, *([self._gathering] if self._gathering else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for entry in self._entries.values():
            entry.found.cancel()
        await self._client.close()

    def _settle(self, key: str, entry: Entry) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
            if entry.batch is not None:
                entry.batch.settle(key)

    # ---- gathering -------------------------------------------------------------------------------

    def _gather(self, request: TeacherRequest) -> Entry:
        """Raises RequestFailed for text that would spoil the whole batch."""
        try:
            size = sum(len(message.content.encode()) for message in request.messages)
        except UnicodeEncodeError as error:
            raise RequestFailed(f"teacher {self._name} cannot be sent this text: {error}") from None
        if self._gathered_bytes + size > self._most_bytes:
            self._send_off()
        self._gathered[request.key] = entry = self._enter(request.key, request)
        self._gathered_bytes += size
        self._came_s = self._clock()
        if len(self._gathered) >= self._most_requests:
            self._send_off()
        elif self._gathering is None:
            self._gathering = asyncio.create_task(self._until_quiet())
        return entry

    def _enter(self, key: str, request: TeacherRequest | None) -> Entry:
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # One that nobody waits for may fail, too.
        found.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._entries[key] = entry = Entry(found, request)
        return entry

    async def _until_quiet(self) -> None:
        while (left_s := self._came_s + self._settings.batch_gather_s - self._clock()) > 0:
            await self._sleep(left_s)
        self._gathering = None
        self._send_off()

    def _send_off(self) -> None:
        if self._gathered:
            entries, self._gathered = self._gathered, {}
            self._start(Batch(tuple(entries), open_keys=set(entries)), entries)
        self._gathered_bytes = 0

    def _start(self, batch: Batch, entries: Mapping[str, Entry]) -> None:
        for entry in entries.values():
            entry.batch = batch
        task = asyncio.create_task(self._carry(batch))
        self._batches[task] = batch
        task.add_done_callback(lambda task: self._batches.pop(task))

    async def _take_up(self) -> None:
        """The batches that are open in the ledger."""
        kept = sorted(self._ledger.open_batches(self._name), key=lambda batch: batch[1]["at_s"])
        last = {key: batch_id for batch_id, content in kept for key in content["keys"]}
        for batch_id, content in kept:
            keys = [key for key in content["keys"] if last[key] == batch_id]
            left = [key for key in keys if await self._ledger.find(key) is None]
            if not left:
                await self._ledger.end_batch(batch_id)
            elif batch_id not in self._ids and not self._entries.keys() & left:
                state = "sent" if content["is_sent"] else "doubtful"
                if state == "sent":
                    self._ids.add(batch_id)
                batch = Batch(
                    tuple(content["keys"]), state, batch_id, content["at_s"], open_keys=set(left)
                )
                self._start(batch, {key: self._enter(key, None) for key in left})

    # ---- one batch -------------------------------------------------------------------------------

    async def _carry(self, batch: Batch) -> None:
        """Until all that comes of it is written down."""
        try:
            results = await self._results(batch)
        except Invalid as error:
            self._fail_lines(batch, error)
            batch.open_keys.clear()  # nothing of it is to be had, later either
            batch.is_over.set()
        except Exception as error:  # those who wait for it get to know
            self._fail(batch, error)
        else:
            for key in batch.open_keys & results.keys():
                self._resolve(batch, key, results[key])
            self._fail(batch, TryFailed("its batch ended without an answer to it"))
        await batch.is_over.wait()
        if batch.id is not None:
            await self._ledger.end_batch(batch.id)

    async def _results(self, batch: Batch) -> Mapping[str, str]:
        until_s = self._clock() + self._settings.batch_timeout_s
        while True:
            pause_s = self._settings.batch_poll_s
            if batch.state == "doubtful":
                found = await self._look_up(batch, until_s)
                if found is not None:
                    return found
            if batch.state == "gathered":
                pause_s = await self._send(batch)
                if not batch.open_keys:
                    return {}
            if batch.state == "sent":
                try:
                    return await self._ended(batch)
                except NoRoom as error:
                    batch.state, pause_s, why = "gathered", _NO_ROOM_S, str(error)
            else:
                why = "it could not be sent"
            if self._clock() >= until_s:
                raise TryFailed(f"no answer in batch_timeout_s: {why}", is_in_doubt=True)
            await self._sleep(pause_s)

    async def _send(self, batch: Batch) -> float:
        """Makes it `sent`, or not, or `doubtful`; answers how long to wait then, in seconds."""
        asked = [entry.request for entry in self._of(batch) if entry.request is not None]
        for key in batch.open_keys - {request.key for request in asked}:
            self._settle(key, self._entries[key])  # not to be asked again, unless `answer` says so
        if not asked:
            return 0.0
        mark = uuid4().hex
        batch.keys = tuple(request.key for request in asked)
        batch.at_s = self._clock()
        await self._keep(batch, mark)
        try:
            batch_id = await self._client.submit(mark, asked)
        except ServiceError as error:
            if error.status is None or error.status >= 500:
                batch.state = "doubtful"
            else:
                await self._ledger.end_batch(mark)
            refuse_batch(*self._told, error)
            return max(self._settings.batch_poll_s, error.retry_after_s or 0.0)
        await self._keep(batch, batch_id, is_sent=True)
        return 0.0

    async def _keep(self, batch: Batch, batch_id: str, *, is_sent: bool = False) -> None:
        """In the ledger, by its mark or by its id."""
        content = {"keys": batch.keys, "at_s": batch.at_s, "is_sent": is_sent}
        if is_sent:
            self._ids.add(batch_id)
        before, batch.id = batch.id, batch_id
        await self._ledger.keep_batch(batch_id, self._name, content, instead_of=before)
        batch.state = "sent" if is_sent else batch.state

    async def _look_up(self, batch: Batch, until_s: float) -> Mapping[str, str] | None:
        """Makes it `sent` if the service has it, and `gathered` if not; its results if they show
        that it is the one."""
        assert batch.id is not None
        mark = batch.id

        async def find() -> list[str]:
            return await self._client.find(mark, batch.at_s, len(batch.keys))

        for batch_id in await self._until(until_s, find):
            if batch_id in self._ids:
                continue
            if self._client.has_marks:
                await self._keep(batch, batch_id, is_sent=True)
                return None
            found = await self._until(until_s, lambda one=batch_id: self._client.results(one))
            if found and found.keys() <= set(batch.keys):
                await self._keep(batch, batch_id, is_sent=True)
                return found
        batch.state = "gathered"
        return None

    async def _ended(self, batch: Batch) -> Mapping[str, str]:
        """Its results, once there are any. What takes too long is cancelled."""
        assert batch.id is not None
        batch_id = batch.id

        async def results() -> Mapping[str, str] | None:
            try:
                return await self._client.results(batch_id)
            except ServiceError as error:
                if error.status == 404 and self._clock() - batch.at_s > _KEPT_S:
                    return {}
                raise

        try:
            return await self._until(self._clock() + self._settings.batch_timeout_s, results)
        except TryFailed:
            with suppress(ServiceError):
                await self._client.cancel(batch_id)
            return await self._until(self._clock() + _CANCEL_S, results)

    async def _until(self, until_s: float, ask: Callable[[], Coroutine[Any, Any, T | None]]) -> T:
        """What `ask` answers once it is not None. Raises TryFailed if it is not until then."""
        while True:
            pause_s, why = self._settings.batch_poll_s, "it is not ended"
            try:
                found = await ask()
            except ServiceError as error:
                refuse_batch(*self._told, error)
                pause_s, why = max(pause_s, error.retry_after_s or 0.0), error
            else:
                if found is not None:
                    return found
            left_s = until_s - self._clock()
            if left_s <= 0:
                raise TryFailed(f"no answer in batch_timeout_s: {why}", is_in_doubt=True)
            await self._sleep(min(pause_s, left_s))

    # ---- what comes of it ------------------------------------------------------------------------

    def _of(self, batch: Batch) -> list[Entry]:
        return [
            entry
            for key in batch.keys
            if (entry := self._entries.get(key)) is not None and entry.batch is batch
        ]

    def _resolve(self, batch: Batch, key: str, result: str | Exception) -> None:
        entry = self._entries.get(key)
        if entry is None or entry.batch is not batch or entry.found.done():
            return
        if isinstance(result, str):
            entry.found.set_result(result)
        else:
            entry.found.set_exception(result)

    def _fail(self, batch: Batch, error: Exception) -> None:
        for key in set(batch.open_keys):
            self._resolve(batch, key, error)

    def _fail_lines(self, batch: Batch, error: Invalid) -> None:
        if not error.faults or any(line is None for line, _ in error.faults):
            whole = ServiceError(None, str(error) or "it does not say why")
            self._fail(batch, batch_refused(self._name, self._client.where, whole))
            return
        for line, text in error.faults:
            if line is not None and 1 <= line <= len(batch.keys):
                failure = RequestFailed(f"teacher {self._name} refused it: {text}")
                self._resolve(batch, batch.keys[line - 1], failure)
        self._fail(batch, TryFailed(f"another request spoilt its batch: {error}"))


def batch_service(
    name: str, settings: Teacher, *, key_variable: str | None, **options: Any
) -> BatchService:
    """The one that `uses` names; `options` are those of BatchService."""
    from synthesis.anthropic_batches import AnthropicBatches
    from synthesis.openai_batches import OpenAIBatches

    of_uses = {"openai-batch": OpenAIBatches, "anthropic-batch": AnthropicBatches}
    client = of_uses[settings.uses](settings, key_variable)
    return BatchService(name, settings, client, key_variable=key_variable, **options)
