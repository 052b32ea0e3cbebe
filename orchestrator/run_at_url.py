"""A run's directory at a URL: what is kept there, and the folder of this node that it works in.

Batches, checkpoints and the model that was made are there alone, and there before the journal tells
of them. The rest is written in a folder of the cache and copied; a driver on another node begins
with what it finds at the URL. The journal is in the store at `store.url`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from actors.sealed_folder import MANIFEST, find_damage
from actors.urls import Place, UrlFolder, local_copy, push
from judging.errors import DataError, InfrastructureError
from orchestrator.background import in_background
from orchestrator.disk import atomic_writer, writing
from orchestrator.rundir import P, RunDirectory
from orchestrator.store import only_driver

T = TypeVar("T")

ANSWER_S = 300.0  # for the files of one commit, or what changed since the last checkpoint
CHECK_S = 3600.0  # to read a checkpoint
_READ = ("config.yaml", "summary.json", "metrics.jsonl")
_OF_SYNTHESIS = re.compile(r"synthesis/\d+/(summary\.json|dataset/.)")
_ELSEWHERE = ("journal", "batches", "checkpoints", "model")  # not copied with the rest


@dataclass(frozen=True)
class RunAtUrl(RunDirectory):
    """`path` is the folder of this node. All that reaches for the URL has a deadline, and raises
    InfrastructureError."""

    url: str
    _known: dict[str, tuple[int, int]] = field(default_factory=dict)  # size, time of what is there

    @property
    def where(self) -> str:
        return self.url

    def place(self, relative: str) -> Place:
        return (self._there / relative).url

    async def in_background(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.wrap_future(in_background(lambda: work(*arguments, **named)))

    @property
    def _there(self) -> UrlFolder:
        return UrlFolder(self.url)

    def _reached(self, what: str, work: Callable[[], T], timeout_s: float = ANSWER_S) -> T:
        try:
            return by_deadline(f"{self.url}: {what}", work, timeout_s)
        except OSError as error:
            raise InfrastructureError(
                f"{self.url}: {what}: {error}; what is committed is kept: mend this, and go on "
                "with --resume"
            ) from error

    # ---- what is there before the journal tells of it --------------------------------------------

    def write_config(self, config_yaml: str) -> None:
        super().write_config(config_yaml)
        content = self.config.read_bytes()
        self._reached("writing config.yaml", lambda: self._there.put("config.yaml", content))

    def write_batch(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        folder, name = self._there / "batches", self._batch(digest).name
        self._reached(f"writing batch {name}", lambda: folder.put(name, data))
        return digest

    def read_batch(self, digest: str) -> bytes:
        folder, name = self._there / "batches", self._batch(digest).name
        data = self._reached(f"reading batch {name}", lambda: read_if_there(folder, name))
        if data is None:
            raise DataError(f"{folder.url}/{name} is missing")
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataError(
                f"{folder.url}/{name} is damaged: its content does not have the SHA-256 of its name"
            )
        return data

    def drop_batches(self, keep: Container[str]) -> None:
        folder = self._there / "batches"

        def drop() -> None:
            for name in folder.children():
                if name.partition(".")[0] not in keep:
                    folder.remove(name)

        self._reached("removing old batches", drop)

    @asynccontextmanager
    async def checkpoint(self, step: int) -> AsyncIterator[Place]:
        """A URL to fill, which learner rank 0 does, with the manifest last."""
        yield self.place(self.checkpoint_name(step))

    def checkpoint_damage(self, path: str) -> str | None:
        folder = self._there / path
        return self._reached(f"checking {path}", lambda: find_damage(folder), CHECK_S)

    def set_aside(self, path: str) -> str | None:
        aside_path = str(PurePosixPath(path).with_name(f"damaged-{PurePosixPath(path).name}"))
        folder, target = self._there / path, self._there / aside_path
        if not self._reached(f"looking for {path}", folder.children):
            return None

        def move() -> None:
            target.remove_all()  # of an earlier time
            folder.move(target.url)

        with suppress(InfrastructureError):  # it is not used, wherever it lies
            self._reached(f"moving {path} away", move, CHECK_S)
            return aside_path
        return None

    def hide_checkpoint(self, path: str) -> None:
        self._reached(f"removing {path}", (self._there / path).remove_all)

    def clean(self, batches: Container[str], checkpoints: Container[str]) -> None:
        found = self._reached("listing checkpoints", (self._there / "checkpoints").children)
        for name in found:
            if name.startswith("step-") and f"checkpoints/{name}" not in checkpoints:
                self.hide_checkpoint(f"checkpoints/{name}")
        super().clean(batches, checkpoints)

    def share_model(self, folder: Path) -> str:
        there = self._there / "model"

        def share() -> None:
            if MANIFEST not in there.find():
                push(folder, there.url)

        self._reached("writing the model", share)
        return there.url

    # ---- what is copied --------------------------------------------------------------------------

    def mirror(self, say: Callable[[str], object]) -> None:
        try:
            self._reached("copying what changed", self._copy_changed)
        except InfrastructureError as error:
            say(f"metrics, traces and reports are not copied, until the next checkpoint: {error}")

    def _copy_changed(self) -> None:
        here = dict(self._copied())
        for name, stamp in here.items():
            if self._known.get(name) != stamp:
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    self._there.put(name, self.path / name)
                    self._known[name] = stamp
        for name in self._known.keys() - here.keys():
            self._there.remove(name)
            del self._known[name]

    def _copied(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(self.path.rglob("*")):
            relative = path.relative_to(self.path)
            is_copied = relative.parts[0] not in _ELSEWHERE and not path.name.startswith(".")
            with suppress(FileNotFoundError):
                if is_copied and path.is_file():
                    yield relative.as_posix(), self._stamp(path)

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_size, status.st_mtime_ns

    def take_over(self) -> None:
        """Brings this node's folder to what an earlier driver left at the URL.

        Raises:
            ConfigurationError: a driver of this node has the run open.
        """
        journal = self.path / "journal"
        with writing(journal):
            journal.mkdir(parents=True, exist_ok=True)
        with only_driver(journal):
            found = self._reached("looking for the run", self._there.find)
            if self.config.name not in found:  # new, whatever there was in this cache
                self._clear()
                return
            if self.summary.name not in found:
                self.summary.unlink(missing_ok=True)
            self._reached("reading the run", lambda: self._pull(found))

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.is_dir() and path.name != "journal":
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file():
                path.unlink(missing_ok=True)

    def _pull(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        shutil.rmtree(self.path / "benchmarks", ignore_errors=True)  # of weights taken back since
        for name in _needed(found):
            path, size_bytes = self.path / name, int(found[name]["size"])
            here_bytes = path.stat().st_size if path.exists() else -1
            # This node may have measured more than it came to copy.
            if path == self.metrics and here_bytes >= size_bytes:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(path, "wb") as file:
                file.write(self._there.read(name))
            self._known[name] = self._stamp(path)
        model = self.path / "model"
        if f"model/{MANIFEST}" in found and not model.exists():
            partial = self.path / ".model.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(local_copy((self._there / "model").url), partial)
            os.replace(partial, model)


def by_deadline(what: str, work: Callable[[], T], timeout_s: float = ANSWER_S) -> T:
    """What `work` answers. Raises InfrastructureError if it does not in time."""
    try:
        return in_background(work).result(timeout_s)
    except TimeoutError:
        raise InfrastructureError(f"{what}: no answer within {timeout_s:.0f} s") from None


def read_if_there(folder: UrlFolder, name: str) -> bytes | None:
    with suppress(FileNotFoundError):
        return folder.read(name)
    return None


def _needed(found: Iterable[str]) -> Iterator[str]:
    """Of the files at a URL: what a driver reads, and each phase's last traces for the report."""
    last = {name.rpartition("/")[0]: name for name in sorted(found) if name.startswith("traces/")}
    yield from last.values()
    for name in found:
        is_open_work = name.startswith("open/") and name.endswith(".safetensors")
        is_kept = name.startswith(("benchmarks/", "teacher/")) or _OF_SYNTHESIS.match(name)
        if is_open_work or is_kept or name in _READ:
            yield name
