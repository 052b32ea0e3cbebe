"""How many requests a second a synthesis gets done, and what memory it takes.

    python benchmarks/synthesis_speed.py [--pairs 20000] [--in-flight 256] [--latency-ms 50]
    python benchmarks/synthesis_speed.py --pairs 10000 100000

Against benchmarks/teacher_stub.py, which shares the cores. Useful work: rendered, journalled before
and after, answered, verified, decided. Beside it the stub's own limit: the same requests by a bare
aiohttp client that does nothing with the answers. `asking_s` is from the first request to the last,
`phase_s` is with the courier's start and the data set's writing. Peak memory is the driver's and
its courier's, growth that of both while nine tenths of the requests are asked; CPU time of a
request is theirs from their start to their end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import teacher_pairs
import yaml
from synthesis_kills import configuration, stub
from teacher_stub import MODEL

from judging.prompts import load_template
from judging.readers import read_pairs
from judging.records import Presentation

ROOT = Path(__file__).parent.parent
_SAMPLED_EVERY_S = 0.5
MIB = 2**20


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="gavel-speed-") as made:
        for count in options.pairs:
            folder = Path(made) / str(count)
            folder.mkdir()
            pairs = folder / "pairs.jsonl"
            teacher_pairs.write(pairs, count)
            with stub("--latency-ms", f"{options.latency_ms}", "--wrong", "0") as base_url:
                bare = asyncio.run(_bare(base_url, pairs, min(count, 10_000), options.in_flight))
                found = _synthesis(base_url, pairs, folder, options.in_flight)
            print(json.dumps({"pairs": count, "stub_alone_per_s": round(bare), **found}))


async def _bare(base_url: str, pairs: Path, count: int, in_flight: int) -> float:
    """Requests a second that the stub and a client without further work make together."""
    template = load_template("compact")
    bodies = iter(
        [
            {
                "model": MODEL,
                "messages": [
                    {"role": message.role, "content": message.content}
                    for message in template.render(Presentation(pair, "chosen_first"))
                ],
            }
            for _, pair in zip(range(count), read_pairs(pairs), strict=False)
        ]
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

        async def work() -> None:
            for body in bodies:
                async with session.post(f"{base_url}/chat/completions", json=body) as response:
                    await response.read()

        began_s = time.monotonic()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        return count / (time.monotonic() - began_s)


def _synthesis(base_url: str, pairs: Path, folder: Path, in_flight: int) -> dict[str, Any]:
    tree = configuration(base_url, MODEL, pairs, folder)
    tree["synthesize"]["passes"] = [{"teacher": "first"}]
    tree["synthesize"]["teachers"]["first"]["max_in_flight"] = in_flight
    config = folder / "speed.yaml"
    config.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "orchestrator", "run", str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        peak = _Peak(process.pid)
        if process.wait() != 0:
            raise SystemExit("the run failed")
    events = [json.loads(line) for line in (folder / "kills" / "events.jsonl").open()]
    at_s = {event["event"]: event["at_s"] for event in events}
    with sqlite3.connect(folder / "kills" / "synthesis" / "0" / "ledger.sqlite") as ledger:
        first_s, last_s = ledger.execute("SELECT MIN(at_s), MAX(at_s) FROM requests").fetchone()
    seconds = last_s - first_s
    summary = json.loads((folder / "kills" / "synthesis" / "0" / "summary.json").read_text())
    return {
        "requests_per_s": round(summary["answers"] / seconds),
        "asking_s": round(seconds, 1),
        "phase_s": round(at_s["synthesized"] - at_s["phase_begun"], 1),
        "driver_peak_mib": round(peak.driver / MIB),
        "courier_peak_mib": round(peak.courier / MIB),
        "growth_mib": round(peak.growth(first_s + 0.1 * seconds, last_s) / MIB),
        "driver_cpu_ms": round(1000 * peak.driver_cpu_s / summary["answers"], 3),
        "courier_cpu_ms": round(1000 * peak.courier_cpu_s / summary["answers"], 3),
    }


class _Peak:
    """Of the driver and the courier that it starts, while they live."""

    def __init__(self, pid: int) -> None:
        self.driver = self.courier = 0
        self.driver_cpu_s = self.courier_cpu_s = 0.0
        self._both: list[tuple[float, int]] = []  # bytes at a time
        self._process = psutil.Process(pid)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        try:
            while True:
                self.driver = max(self.driver, self._process.memory_info().rss)
                self.driver_cpu_s = sum(self._process.cpu_times()[:2])
                both = self._process.memory_info().rss
                for child in self._process.children():
                    if "synthesis.courier" in " ".join(child.cmdline()):
                        self.courier = max(self.courier, child.memory_info().rss)
                        self.courier_cpu_s = sum(child.cpu_times()[:2])
                        both += child.memory_info().rss
                self._both.append((time.time(), both))
                time.sleep(_SAMPLED_EVERY_S)
        except psutil.Error:  # it has ended
            pass

    def growth(self, from_s: float, to_s: float) -> int:
        """Bytes, of both together between two times."""
        between = [size for at_s, size in self._both if from_s <= at_s <= to_s]
        return between[-1] - between[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[20_000])
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
