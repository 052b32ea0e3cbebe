"""Steps that the journal commits in a second, and the bytes that it keeps of each.

    python benchmarks/journal_commits.py [--commits 5000] [--uids 128] [--metrics 40] [--json FILE]

Commits with `--uids` uids of pairs and `--metrics` metrics, one after the other as a driver makes
them, to the private server of a run: on the disk before each answer (appendfsync always). The disk
is that of the temporary directory (TMPDIR), whose bare fsync is measured beside it. The append-only
file is as it grows: Redis writes it anew when it has doubled, which is off here. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.journal import RunJournal
from orchestrator.journal_records import StepCommit
from orchestrator.metrics import METRICS
from orchestrator.store import open_store
from orchestrator.store_client import Client

RUN = "benchmark"


def commits(count: int, uids: int, metrics: int) -> list[StepCommit]:
    rng = random.Random(0)
    names = list(METRICS)[:metrics]
    return [
        StepCommit(
            phase=0,
            kind="reinforce",
            step=step,
            weight_version=step,
            consumed=tuple(f"{rng.getrandbits(64):016x}" for _ in range(uids)),
            drawn=step * uids,
            metrics={name: rng.random() for name in names},
            batch_hash=f"{rng.getrandbits(256):064x}",
            committed_at_s=1.7e9 + step,
        )
        for step in range(1, count + 1)
    ]


def measure(count: int, uids: int, metrics: int) -> dict[str, Any]:
    with TemporaryDirectory(prefix="gavel-") as folder:
        fsync_s = _fsync_s(Path(folder))
        with open_store(None, Path(folder) / RUN) as store:
            store.client.config_set("auto-aof-rewrite-percentage", 0)
            journal = RunJournal(store.client, RUN)
            journal.begin_run("", {}, 0)
            journal.begin_phase(0, "reinforce", count)
            to_commit = commits(count, uids, metrics)
            memory, log = _memory_bytes(store.client), _log_bytes(Path(folder))
            took_s: list[float] = []
            for commit in to_commit:
                began_s = time.perf_counter()
                journal.commit_step(commit)
                took_s.append(time.perf_counter() - began_s)
            assert store.client.hlen(store.client.key(RUN, "commits:0")) == count
            return {
                "commits_per_s": round(count / sum(took_s), 1),
                "commit_ms": {
                    "median": round(1e3 * median(took_s), 3),
                    "p99": round(1e3 * quantiles(took_s, n=100)[-1], 3),
                },
                "fsync_ms": round(1e3 * fsync_s, 3),
                "memory_bytes_per_step": round((_memory_bytes(store.client) - memory) / count),
                "log_bytes_per_step": round((_log_bytes(Path(folder)) - log) / count),
                "commits": count,
                "uids": uids,
                "metrics": len(to_commit[0].metrics),
                "redis": store.client.info("server")["redis_version"],
            }


def _memory_bytes(client: Client) -> int:
    info: Any = client.info("memory")
    return info["used_memory"]


def _log_bytes(folder: Path) -> int:
    """Of the append-only file, which Redis 7 keeps in several."""
    return sum(file.stat().st_size for file in (folder / RUN / "journal").rglob("appendonly*"))


def _fsync_s(folder: Path, times: int = 200) -> float:
    """The median of appending 8 KiB and waiting for the disk."""
    took_s: list[float] = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(times):
            began_s = time.perf_counter()
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            took_s.append(time.perf_counter() - began_s)
    return median(took_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=5000)
    parser.add_argument("--uids", type=int, default=128, help="in one commit")
    parser.add_argument("--metrics", type=int, default=40, help="in one commit")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    text = json.dumps(measure(options.commits, options.uids, options.metrics), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
