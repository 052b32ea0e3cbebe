"""What was asked, answered and decided, in one SQLite file that outlives the process.

A request is written down before it is sent and its answer when it comes, by the request's key;
what an answer cost is counted from here. Writes of many tasks go into one transaction, which is on
the disk before any of them goes on.

A run's own file belongs to one process at a time. A cache is a file of the same form that several
runs write.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

from judging.errors import ConfigurationError, DataError, InfrastructureError
from synthesis.records import Answer, Attempt, Outcome, Spending, State, Undecided, Usage

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

NUSD = 1_000_000_000  # nano-dollars of a dollar: sums of whole numbers are exact
_BUSY_S = 60.0  # while another run writes the cache
_TOGETHER = 512  # writes of one transaction, at most
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    key TEXT PRIMARY KEY,
    teacher TEXT NOT NULL,
    model TEXT NOT NULL,
    tries INTEGER NOT NULL,
    is_open INTEGER NOT NULL,        -- sent, and nothing known of what became of it
    text TEXT,                       -- NULL: not answered
    is_truncated INTEGER,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    usage_is_estimate INTEGER NOT NULL DEFAULT 0,
    cost_nusd INTEGER NOT NULL DEFAULT 0,
    is_from_cache INTEGER NOT NULL DEFAULT 0,
    at_s REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY,             -- a name of our own until the service has given one
    teacher TEXT NOT NULL,
    is_open INTEGER NOT NULL,
    content TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
    pair_uid TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS templates (name TEXT PRIMARY KEY, version TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decided_by (settings TEXT NOT NULL);
"""

_UNDECIDED = (
    "FROM requests WHERE text IS NOT NULL AND key NOT IN "
    "(SELECT json_extract(value, '$.key') FROM outcomes, json_each(outcomes.attempts))"
)


class Ledger:
    """Life: `with Ledger(path) as ledger`, in an event loop's thread for what is awaited."""

    def __init__(self, path: Path, *, is_shared: bool = False) -> None:
        self.path, self._is_shared = path, is_shared
        self._queue: SimpleQueue[tuple[Work[Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="ledger", daemon=True)
        self._lock = threading.Lock()  # of the connection
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __enter__(self) -> Self:
        """Raises ConfigurationError where another process has the file, DataError where it is no
        ledger, InfrastructureError where the disk does not take it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_S if self._is_shared else 1.0, check_same_thread=False
            )
            self._connection.isolation_level = None
            for statement in self._pragmas():
                self._connection.execute(statement)
            self._connection.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise self._told(error) from error
        self._thread.start()
        return self

    def _pragmas(self) -> tuple[str, ...]:
        if self._is_shared:
            return ("PRAGMA journal_mode=TRUNCATE", "PRAGMA synchronous=FULL")
        # One process alone, which needs no shared memory: it works on network file systems too.
        return (
            "PRAGMA locking_mode=EXCLUSIVE",
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    # ---- requests --------------------------------------------------------------------------------

    async def find(self, key: str) -> Answer | None:
        """The answer to a request, if there is one."""
        return await self._do(lambda connection: _find(connection, key))

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """While others wait who want the same request answered."""
        async with self._asking.setdefault(key, asyncio.Lock()):
            yield

    async def begin(self, key: str, teacher: str, model: str) -> None:
        """A try of a request is about to be sent."""
        statement = (
            "INSERT INTO requests (key, teacher, model, tries, is_open, at_s) "
            "VALUES (?, ?, ?, 1, 1, ?) "
            "ON CONFLICT (key) DO UPDATE SET tries = tries + 1, is_open = 1"
        )
        await self._write(statement, (key, teacher, model, time.time()))

    async def failed(self, key: str) -> None:
        """The try that was sent is known to have brought nothing."""
        await self._write("UPDATE requests SET is_open = 0 WHERE key = ?", (key,))

    async def answered(
        self,
        key: str,
        teacher: str,
        model: str,
        answer: Answer,
        *,
        cost_nusd: int,
        is_from_cache: bool,
    ) -> None:
        """The answer is there; the first one stands."""
        usage = answer.usage
        statement = (
            "INSERT INTO requests (key, teacher, model, tries, is_open, text, is_truncated, "
            "input_tokens, cached_input_tokens, output_tokens, usage_is_estimate, cost_nusd, "
            "is_from_cache, at_s) VALUES (?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET is_open = 0, text = excluded.text, "
            "is_truncated = excluded.is_truncated, input_tokens = excluded.input_tokens, "
            "cached_input_tokens = excluded.cached_input_tokens, "
            "output_tokens = excluded.output_tokens, "
            "usage_is_estimate = excluded.usage_is_estimate, cost_nusd = excluded.cost_nusd, "
            "is_from_cache = excluded.is_from_cache WHERE text IS NULL"
        )
        row = (
            *(key, teacher, model, answer.text, answer.is_truncated),
            *(usage.input_tokens, usage.cached_input_tokens, usage.output_tokens),
            *(answer.usage_is_estimate, cost_nusd, is_from_cache, time.time()),
        )
        await self._write(statement, row)

    def spending(self) -> list[Spending]:
        statement = (
            "SELECT teacher, model, COUNT(*) FILTER (WHERE text IS NOT NULL AND NOT is_from_cache),"
            " SUM(tries), SUM(input_tokens * (1 - is_from_cache)), "
            "SUM(output_tokens * (1 - is_from_cache)), SUM(cost_nusd), SUM(usage_is_estimate), "
            "SUM(is_from_cache), COUNT(*) FILTER (WHERE is_open AND text IS NULL) "
            "FROM requests GROUP BY teacher, model ORDER BY teacher, model"
        )
        return [Spending(*row) for row in self._read(statement)]

    # ---- batches ---------------------------------------------------------------------------------

    async def keep_batch(
        self,
        batch_id: str,
        teacher: str,
        content: Mapping[str, Any],
        *,
        instead_of: str | None = None,
    ) -> None:
        """A batch that is open, under the name that the service gave it `instead_of` ours."""

        def write(connection: sqlite3.Connection) -> None:
            if instead_of is not None:
                connection.execute("DELETE FROM batches WHERE id = ?", (instead_of,))
            row = (batch_id, teacher, json.dumps(content))
            connection.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, 1, ?)", row)

        await self._do(write)

    async def end_batch(self, batch_id: str) -> None:
        await self._write("UPDATE batches SET is_open = 0 WHERE id = ?", (batch_id,))

    def open_batches(self, teacher: str) -> list[tuple[str, dict[str, Any]]]:
        statement = "SELECT id, content FROM batches WHERE is_open AND teacher = ?"
        return [(name, json.loads(content)) for name, content in self._read(statement, (teacher,))]

    # ---- outcomes --------------------------------------------------------------------------------

    async def decide(self, outcome: Outcome) -> None:
        """What came of a pair; the first one stands."""
        attempts = json.dumps([asdict(attempt) for attempt in outcome.attempts])
        row = (outcome.pair_uid, outcome.source, outcome.state, attempts)
        await self._write("INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?)", row)

    def reopen_unanswered(self) -> int:
        """Takes back the outcomes of pairs, not kept, with unanswered requests; how many."""
        unanswered = """attempts LIKE '%"is_unanswered": true%'"""
        (reopened,) = self._change(f"DELETE FROM outcomes WHERE state != 'kept' AND {unanswered}")
        return reopened

    def decide_by(self, settings: str) -> int:
        """Takes back the outcomes that were decided by settings of another hash; how many.

        Answers stay. Raises ConfigurationError while batches are open that were asked by these.
        """
        before = list(self._read("SELECT settings FROM decided_by"))
        if before == [(settings,)]:
            return 0
        if before and list(self._read("SELECT id FROM batches WHERE is_open")):
            raise ConfigurationError(
                f"{self.path}: batches that were asked with other settings are not answered yet, "
                "and would be paid for in vain: set these settings back until the batches have "
                "ended, or begin another run"
            )
        changed = self._change(
            f"DELETE FROM outcomes WHERE {bool(before)}",  # not those of whom it was not written
            "DELETE FROM decided_by",
            "INSERT INTO decided_by VALUES (:settings)",
            settings=settings,
        )
        return changed[0]

    def _change(self, *statements: str, **values: str) -> list[int]:
        """How many rows each has changed."""
        try:
            with self._lock:
                return [self._connection.execute(each, values).rowcount for each in statements]
        except sqlite3.Error as error:
            raise self._told(error) from error

    def decided(self) -> set[str]:
        """The uids of the pairs with an outcome."""
        return {uid for (uid,) in self._read("SELECT pair_uid FROM outcomes")}

    def outcomes(self) -> Iterator[Outcome]:
        """All of them, by uid."""
        return map(_outcome, self._read("SELECT * FROM outcomes ORDER BY pair_uid"))

    def outcome(self, pair_uid: str) -> Outcome | None:
        rows = list(self._read("SELECT * FROM outcomes WHERE pair_uid = ?", (pair_uid,)))
        return _outcome(rows[0]) if rows else None

    def undecided(self) -> Iterator[Undecided]:
        """The answers that belong to no outcome, the earliest first."""
        statement = f"SELECT teacher, model, text, is_from_cache {_UNDECIDED} ORDER BY at_s, key"
        return (Undecided(*row) for row in self._read(statement))

    def undecided_counts(self) -> tuple[int, int]:
        """How many of these were paid for, and how many came from the cache."""
        statement = f"SELECT COUNT(*), COALESCE(SUM(is_from_cache), 0) {_UNDECIDED}"
        ((count, from_cache),) = self._read(statement)
        return count - from_cache, from_cache

    def model_of(self, key: str) -> str:
        """Of a request that was sent."""
        (row,) = self._read("SELECT model FROM requests WHERE key = ?", (key,))
        return row[0]

    def text_of(self, key: str) -> str:
        """Of a request that was answered."""
        (row,) = self._read("SELECT text FROM requests WHERE key = ?", (key,))
        return row[0]

    # ---- templates -------------------------------------------------------------------------------

    def check_templates(self, versions: Mapping[str, str]) -> None:
        """Raises ConfigurationError if the answers here are to another version of a template."""
        known = dict(self._read("SELECT name, version FROM templates"))
        for name, version in versions.items():
            if known.get(name, version) != version:
                raise ConfigurationError(
                    f"synthesize.cache: {self.path} holds answers to version {known[name]} of the "
                    f"template {name}, which is now {version}, so that all of them would be asked "
                    "and paid for again: put the template back, name it differently, or name "
                    "another folder"
                )
        with self._lock:
            self._connection.executemany(
                "INSERT OR IGNORE INTO templates VALUES (?, ?)", list(versions.items())
            )

    # ---- the file --------------------------------------------------------------------------------

    def _read(self, statement: str, values: tuple[Any, ...] = ()) -> Iterator[Any]:
        """Rows, some at a time, so that others may write in between."""
        try:
            with self._lock:
                cursor = self._connection.execute(statement, values)
            while True:
                with self._lock:
                    rows = cursor.fetchmany(_TOGETHER)
                if not rows:
                    return
                yield from rows
        except sqlite3.Error as error:
            raise self._told(error) from error

    async def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        await self._do(lambda connection: connection.execute(statement, values))

    async def _do(self, work: Work[T]) -> T:
        """What `work` answers, once it is on the disk."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put((work, done))
        return await done

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            together = [self._queue.get()]
            while len(together) < _TOGETHER and not self._queue.empty():
                together.append(self._queue.get())
            is_open = None not in together
            entries = [entry for entry in together if entry is not None]
            if entries:
                self._commit(entries)

    def _commit(self, entries: list[tuple[Work[Any], asyncio.Future[Any]]]) -> None:
        loop = entries[0][1].get_loop()
        results: list[Any] = []
        try:
            with self._lock:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    results = [work(self._connection) for work, _ in entries]
                    self._connection.execute("COMMIT")
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
        except Exception as error:  # whatever it is, those who wait must learn of it
            results = [self._told(error)] * len(entries)
        if not loop.is_closed():
            waiting = [future for _, future in entries]
            loop.call_soon_threadsafe(_resolve, waiting, results)

    def _told(self, error: Exception) -> Exception:
        text = str(error)
        if "locked" in text:
            return ConfigurationError(
                f"{self.path}: another process writes it: wait for that, or end it"
            )
        if "not a database" in text or "malformed" in text:
            return DataError(
                f"{self.path}: not a ledger of answers, or spoilt ({text}): put it back from a "
                "copy, or move it away; what it held is then asked and paid for again"
            )
        return InfrastructureError(
            f"cannot write {self.path}: {text}; what is in it is kept: mend this, and go on"
        )


def _find(connection: sqlite3.Connection, key: str) -> Answer | None:
    row = connection.execute(
        "SELECT text, is_truncated, input_tokens, cached_input_tokens, output_tokens, "
        "usage_is_estimate FROM requests WHERE key = ? AND text IS NOT NULL",
        (key,),
    ).fetchone()
    if row is None:
        return None
    text, is_truncated, *tokens, is_estimate = row
    return Answer(text, bool(is_truncated), Usage(*tokens), bool(is_estimate))


def _outcome(row: tuple[str, str, State, str]) -> Outcome:
    uid, source, state, attempts = row
    found = (
        Attempt(**each | {"rejections": tuple(each["rejections"])}) for each in json.loads(attempts)
    )
    return Outcome(uid, source, state, tuple(found))


def _resolve(waiting: list[asyncio.Future[Any]], results: list[Any]) -> None:
    for future, result in zip(waiting, results, strict=True):
        if future.cancelled():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
