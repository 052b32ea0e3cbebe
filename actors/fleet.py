"""The rollout fleet: N rollout workers behind one `generate`, which outlives their deaths.

A worker that dies, hangs or answers garbage is taken out, what it was writing goes to others, and
it is started again within its budget. It then takes no work until it holds the current weights.
The logic of health is in `actors.health`; here is what it takes in Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from actors.answers import flaw_of, flaw_of_top_tokens
from actors.engine import Answers, Engine, call, kill
from actors.environment import engine_environment
from actors.health import EngineHealth, Health
from actors.load import Loads
from actors.placement import Placement
from actors.rollout import EngineSpec, GenerationRequest, worker_class
from actors.settings import Deadlines, PauseMode
from actors.waiting import last_line, within
from judging.errors import InfrastructureError
from judging.records import Rollout
from learning.windows import TopTokens, TrainSample

T = TypeVar("T")

HEARTBEAT_S = 2.0  # between two looks at an engine; a dead one shows at once where it has work
TRIES = 3  # of one request, each on an engine that then fails, before the request is to blame


class RolloutFleet:
    """Life: construct, `start`, `generate` at will, `stop`; and `start` again."""

    def __init__(
        self,
        spec: EngineSpec,
        deadlines: Deadlines,
        placement: Placement,
        *,
        tell: Callable[[str], object] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._deadlines, self._placement = spec, deadlines, placement
        self._tell, self._clock = tell, clock
        self.engines: list[Engine] = []
        self._restarted = 0  # of the engines before the last `stop`
        self._loads = Loads()
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[Any]] = set()
        # Sends the current weights to an engine that was started again; the publisher's.
        self.bring_up: Callable[[Engine], Awaitable[None]] = _nothing

    @property
    def processes_per_engine(self) -> int:
        """Processes of one engine that hold weights: its tensor-parallel workers."""
        return self._spec.settings.tensor_parallel

    @property
    def restarts(self) -> int:
        """How many engines were started again so far."""
        return self._restarted + sum(engine.health.restarts for engine in self.engines)

    @property
    def working(self) -> int:
        """How many engines take work."""
        return len(self._loads)

    def up(self) -> list[Engine]:
        """The engines that weights are sent to."""
        return [engine for engine in self.engines if engine.is_up]

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the workers side by side; returns when all can generate."""
        self.engines = [self._place(number) for number in range(self._spec.settings.workers)]
        starts = asyncio.gather(*(self._start_first(engine) for engine in self.engines))
        await within(self._deadlines.start_s, "starting the rollout workers", starts)
        for engine in self.engines:  # as long as nothing was published, the model's own are current
            await self.has_weights(engine, engine.actor)
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Ends the engines."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stops = asyncio.gather(*(engine.actor.stop.remote() for engine in self.up()))
        try:
            await within(self._deadlines.stop_s, "stopping the rollout workers", stops)
        finally:
            for engine in self.engines:  # others may take their places
                kill(engine.actor)
            self._restarted = self.restarts
            self.engines, self._loads = [], Loads()

    def of_model(self, path: str) -> RolloutFleet:
        """A fleet of another model, for the places of this one while it is stopped."""
        spec = replace(self._spec, model_path=path, revision=None)
        return RolloutFleet(
            spec, self._deadlines, self._placement, tell=self._tell, clock=self._clock
        )

    async def add(self) -> int:
        """One more worker, which joins while the run goes on; its number."""
        engine = self._place(len(self.engines))
        self.engines.append(engine)
        self._spawn(self._bring_back(engine))
        return engine.number

    # ---- generation ------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> list[Rollout]:
        """The samples of one request, from the worker with the least to do.

        Raises:
            InfrastructureError: `TRIES` workers failed on it, or there is none for `start_s`.
            DataError: the request itself cannot be answered.
        """
        return await self._by_any(request.presentation_uid, lambda to: self._ask(to, request))

    async def top_tokens(self, uid: str, sample: TrainSample, k: int) -> TopTokens:
        """The `k` likeliest tokens at each place of the completion, from a worker as above.

        Raises as `generate`.
        """
        return await self._by_any(uid, lambda to: self._ask_top_tokens(to, sample, k))

    async def _by_any(self, uid: str, ask: Callable[[Engine], Awaitable[T]]) -> T:
        failures: list[str] = []
        while len(failures) < TRIES:
            engine = await self._least_busy()
            actor = engine.actor
            try:
                return await ask(engine)
            except InfrastructureError as error:
                failures.append(str(error))
                await self.take_out(engine, str(error), actor=actor)
        raise InfrastructureError(
            f"{uid}: {TRIES} rollout workers failed on it; the last: {failures[-1]}"
        )

    async def _ask(self, engine: Engine, request: GenerationRequest) -> list[Rollout]:
        what = f"rollout worker {engine.number}, {request.samples} samples of one prompt"
        self._load(engine, 1, request.samples)
        try:
            asked = engine.actor.generate.remote([request])
            (rollouts,) = await within(self._deadlines.generate_s, what, asked)
        finally:
            self._load(engine, -1, -request.samples)
        if flaw := flaw_of(request, rollouts):
            raise InfrastructureError(f"{what}: its answer is garbage: {flaw}")
        return rollouts

    async def _ask_top_tokens(self, engine: Engine, sample: TrainSample, k: int) -> TopTokens:
        what = f"rollout worker {engine.number}, the likeliest tokens of {sample.tokens}"
        self._load(engine, 1, 1)
        try:
            asked = engine.actor.top_tokens.remote(sample, k)
            top = await within(self._deadlines.generate_s, what, asked)
        finally:
            self._load(engine, -1, -1)
        if flaw := flaw_of_top_tokens(sample, k, top):
            raise InfrastructureError(f"{what}: its answer is garbage: {flaw}")
        return top

    async def _least_busy(self) -> Engine:
        number = self._free()
        if number is None:
            number = await self._next_free()
        return self.engines[number]

    async def _next_free(self) -> int:
        began_s, timeout_s = self._clock(), self._deadlines.start_s
        while (number := self._free()) is None:
            try:
                async with self._changed, asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: self._free() is not None)
            except TimeoutError:
                waited_s = self._clock() - began_s
                # One that waits for weights may wait for the learners' step besides, one that is
                # being started again for a node.
                states = {engine.health.state for engine in self.engines}
                longer_s = self._deadlines.train_s if Health.STALE in states else 0.0
                if Health.RESTARTING in states:
                    longer_s = max(longer_s, self._deadlines.placement_s)
                if waited_s > timeout_s + longer_s or not longer_s:
                    raise InfrastructureError(f"{self._lack()}, after {waited_s:.0f} s") from None
        return number

    def _free(self) -> int | None:
        if len(self._loads) < self._spec.settings.min_workers:
            left = sum(not engine.is_out for engine in self.engines)
            if left < self._spec.settings.min_workers:
                raise InfrastructureError(self._lack())
            return None
        return self._loads.least()

    def _lack(self) -> str:
        states = ", ".join(
            f"worker {engine.number} is {engine.health.state}"
            + (f" ({engine.health.reason})" if engine.health.reason else "")
            for engine in self.engines
            if not engine.health.takes_work
        )
        return (
            f"{len(self._loads)} rollout workers take work, fewer than rollout.min_workers "
            f"({self._spec.settings.min_workers}): {states}"
        )

    def _load(self, engine: Engine, requests: int, samples: int) -> None:
        engine.requests += requests
        engine.samples += samples
        if engine.health.takes_work:
            self._loads.set(engine.number, engine.samples)

    # ---- health ----------------------------------------------------------------------------------

    async def take_out(self, engine: Engine, reason: str, *, actor: Any) -> None:
        """Ends `actor`, the engine's, and starts another in its place if it may.

        Nothing if another one is in its place already: many requests tell of one death.
        """
        if engine.actor is not actor:
            return
        reason = reason.splitlines()[0]
        engine.health.failed(reason)
        engine.actor = None
        self._tell(f"rollout worker {engine.number} is taken out: {reason}")
        kill(actor)  # what it was writing fails at once, and goes to others
        await self._refresh(engine)
        if not engine.comes_back:  # else it is tried again
            self._spawn(self._bring_back(engine))

    async def has_weights(self, engine: Engine, actor: Any) -> None:
        """`actor`, the engine's, has taken the current weights and generates again."""
        if engine.actor is not actor:
            return
        engine.health.resumed(self._clock())
        if engine.health.state is Health.STALE:
            engine.health.current(self._clock())
        await self._refresh(engine)

    async def pause(self, engines: Sequence[Engine], mode: PauseMode) -> Answers:
        """Makes the engines wait for weights; until `has_weights` no progress is asked of them."""
        is_drained = mode == "drain"
        timeout_s = self._deadlines.generate_s if is_drained else self._deadlines.hang_s
        answers = await self.ask(dict.fromkeys(engines, (mode,)), "pause", timeout_s=timeout_s)
        for engine in engines:
            engine.health.paused(self._clock())
        return answers

    async def ask(
        self, arguments: Mapping[Engine, Sequence[Any]], method: str, *, timeout_s: float
    ) -> Answers:
        """What each engine answers, or its error, which is nobody else's matter."""
        calls = [
            call(engine, method, its, timeout_s=timeout_s) for engine, its in arguments.items()
        ]
        return dict(zip(arguments, await asyncio.gather(*calls), strict=True))

    async def _bring_back(self, engine: Engine) -> None:
        engine.comes_back = True
        try:
            await self._start_again(engine)
        finally:
            engine.comes_back = False
        await self._refresh(engine)  # who waits for it is told

    async def _start_again(self, engine: Engine) -> None:
        health = engine.health
        while health.may_restart or health.state is Health.RESTARTING:
            if health.state is Health.DEAD:
                health.restarting()
            try:
                # Before the deadline of the start: a node may have to come back.
                await self._placement.options("rollout", engine.number)
                started = self._start(engine)
                what = f"starting rollout worker {engine.number} again"
                await within(self._deadlines.start_s, what, started)
                await self.bring_up(engine)
            except InfrastructureError as error:
                if health.state is not Health.DEAD:
                    kill(engine.actor)
                    health.failed(str(error).splitlines()[0])
                continue
            if engine.health.takes_work:
                again = " again" if health.restarts else ""
                self._tell(f"rollout worker {engine.number} takes work{again}")
            return
        self._tell(
            f"rollout worker {engine.number} stays out: it was started again "
            f"{engine.health.restarts} times (rollout.max_restarts); gavel workers add adds one"
        )

    async def _refresh(self, engine: Engine) -> None:
        if engine.health.takes_work:
            self._loads.set(engine.number, engine.samples)
        else:
            self._loads.remove(engine.number)
        async with self._changed:
            self._changed.notify_all()

    async def _watch(self) -> None:
        while True:
            slept_s = self._clock()
            await asyncio.sleep(HEARTBEAT_S)
            late_s = self._clock() - slept_s - HEARTBEAT_S
            for engine in self.engines:  # what was not looked at is no silence
                engine.health.excuse(self._clock(), late_s)
            await asyncio.gather(*(self.look_at(engine) for engine in self.up()))

    async def look_at(self, engine: Engine) -> None:
        """Takes the engine out if it is dead, or has hung for too long."""
        from ray.exceptions import RayError

        if not engine.is_up:
            return
        actor, now_s = engine.actor, self._clock
        try:
            progress = await asyncio.wait_for(actor.progress.remote(), HEARTBEAT_S)
        except TimeoutError:
            if engine.actor is actor:
                engine.health.unanswered(now_s())
        except RayError as error:
            await self.take_out(engine, f"it died: {last_line(error)}", actor=actor)
        else:
            if engine.actor is actor:
                engine.health.observed(now_s(), progress, engine.requests)
        if engine.actor is actor and engine.health.state is Health.DEAD:
            await self.take_out(engine, str(engine.health.reason), actor=actor)
        await self._refresh(engine)

    # ---- Ray -------------------------------------------------------------------------------------

    def _place(self, number: int) -> Engine:
        hang_s, restarts = self._deadlines.hang_s, self._spec.settings.max_restarts
        health = EngineHealth(self._clock(), hang_s=hang_s, max_restarts=restarts)
        return Engine(number, health)

    async def _start_first(self, engine: Engine) -> None:
        """Once more if it dies meanwhile; but what a worker itself raises, it would raise again."""
        from ray.exceptions import RayActorError

        while engine.health.state is not Health.STALE:
            try:
                await self._start(engine)
            except RayActorError as error:
                engine.health.failed(last_line(error))
                if not engine.health.may_restart:
                    raise
                self._tell(f"rollout worker {engine.number} died while it started: once more")
                engine.health.restarting()

    async def _start(self, engine: Engine) -> None:
        engine.actor = await self._actor(engine.number)
        await engine.actor.start.remote()
        engine.health.started(self._clock())

    async def _actor(self, number: int) -> Any:
        import ray

        settings = self._spec.settings
        actor = ray.remote(worker_class(settings.worker)).options(
            **await self._placement.options("rollout", number),
            max_concurrency=100_000,  # the engine queues; Ray must not
            runtime_env={"env_vars": engine_environment(settings)},
        )
        return actor.remote(self._spec)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(f"a task of the rollout fleet failed: {error!r}")


async def _nothing(engine: Engine) -> None:
    return None
