"""A synthesis whose driver is killed again and again: nothing may be lost, or paid for twice.

    python benchmarks/synthesis_kills.py [--pairs 5000] [--kills 10] [--seed 1]
    python benchmarks/synthesis_kills.py --base-url http://127.0.0.1:8000/v1 --model NAME

Two passes over quickstart pairs against a service that misbehaves (benchmarks/teacher_stub.py) or,
with --base-url, one that is there, such as `vllm serve`, whose own metrics are read. The driver is
sent SIGKILL at random moments and begun again. Checked at the end: each pair has one outcome, no
request was answered twice, and answers, tokens and dollars counted are the service's own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import teacher_pairs
import yaml
from teacher_stub import MODEL

ROOT = Path(__file__).parent.parent
PRICE = {"input_usd_per_million": 3.0, "output_usd_per_million": 15.0}
DEADLINE_S = 900.0


def configuration(base_url: str, model: str, pairs: Path, runs: Path) -> dict[str, Any]:
    teacher = {"uses": "openai", "base_url": base_url, "model": model, "max_new_tokens": 128}
    return {
        "run": {"id": "kills", "dir": str(runs)},
        "phases": ["synthesize"],
        "judge": {"template": "compact"},
        "data": {
            "path": str(pairs),
            "distill_fraction": 1.0,
            "heldout_fraction": 0.0,
            "overlap": "ignore",
        },
        "output": {"tensorboard": False},
        "synthesize": {
            "teachers": {"first": teacher, "second": dict(teacher)},
            "passes": [
                {"teacher": "first"},
                {"teacher": "second", "tells_verdict": True},
            ],
            "checks": {"weights": False},
            "max_nonsense": 1.0,
            "prices": {model: PRICE},
        },
    }


@contextmanager
def stub(*arguments: str) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, str(Path(__file__).with_name("teacher_stub.py")), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def stats(base_url: str) -> dict[str, Any] | None:
    """What the service has answered, in words of the stub; None if it does not tell."""
    server = base_url.removesuffix("/v1")
    try:
        with urllib.request.urlopen(f"{server}/stats", timeout=10) as answer:
            return json.load(answer)
    except OSError:
        pass
    try:
        with urllib.request.urlopen(f"{server}/metrics", timeout=10) as answer:
            return _vllm_stats(answer.read().decode())
    except OSError:
        return None


def _vllm_stats(metrics: str) -> dict[str, Any]:
    """From vLLM's Prometheus metrics, summed over labels."""
    sums = {"request_success": 0.0, "prompt_tokens": 0.0, "generation_tokens": 0.0}
    for line in metrics.splitlines():
        for name in sums:
            is_wanted = 'reason="abort"' not in line and 'reason="error"' not in line
            if line.startswith(f"vllm:{name}_total") and is_wanted:
                sums[name] += float(line.split()[-1])
    answered, inputs, outputs = (round(number) for number in sums.values())
    return {"answered": answered, "input_tokens": inputs, "output_tokens": outputs}


def drive(config: Path, kills: int, seed: int, least_s: float, most_s: float) -> list[float]:
    """Runs to the end, killed so often on the way; how long each driver lived."""
    rng, lived = random.Random(seed), []
    command = [sys.executable, "-m", "orchestrator", "run", str(config)]
    began_s = time.monotonic()
    while True:
        is_killed = len(lived) < kills
        born_s = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, env=os.environ, text=True) as process:
            try:
                left_s = DEADLINE_S - (born_s - began_s)
                process.wait(rng.uniform(least_s, most_s) if is_killed else left_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        lived.append(time.monotonic() - born_s)
        if process.returncode == 0:
            return lived
        if not is_killed or process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the driver ended with status {process.returncode}")


def findings(folder: Path, pairs: int, served: dict[str, Any] | None) -> dict[str, Any]:
    """What must hold, as (what was found, what it must be)."""
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        ask = lambda statement: ledger.execute(statement).fetchone()  # noqa: E731
        outcomes, distinct = ask("SELECT COUNT(*), COUNT(DISTINCT pair_uid) FROM outcomes")
        answers, inputs, outputs, nusd = ask(
            "SELECT COUNT(*), SUM(input_tokens), SUM(output_tokens), SUM(cost_nusd) "
            "FROM requests WHERE text IS NOT NULL"
        )
    found: dict[str, Any] = {
        "outcomes": (outcomes, pairs),
        "pairs with one": (distinct, pairs),
    }
    if served is None:
        return found
    tokens = served["input_tokens"], served["output_tokens"]
    usd = (
        tokens[0] * PRICE["input_usd_per_million"] + tokens[1] * PRICE["output_usd_per_million"]
    ) / 1e6
    return found | {
        "requests answered twice": (served.get("answered_twice", served["answered"] - answers), 0),
        "answers": (answers, served["answered"]),
        "input tokens": (inputs, tokens[0]),
        "output tokens": (outputs, tokens[1]),
        "USD": (round(nusd / 1e9, 6), round(usd, 6)),
    }


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="gavel-kills-") as made:
        config = Path(made) / "kills.yaml"
        if options.base_url:
            found = _measure(options, config, options.base_url)
        else:
            with stub("--trouble", f"{options.trouble}") as base_url:
                found = _measure(options, config, base_url)
    width = max(map(len, found))
    for name, (value, wanted) in found.items():
        print(f"{name:{width}}  {value:>14}  {'' if value == wanted else f'MUST BE {wanted}'}")
    if any(value != wanted for value, wanted in found.values()):
        raise SystemExit("something was lost, or paid for twice")


def _measure(options: argparse.Namespace, config: Path, base_url: str) -> dict[str, Any]:
    pairs = config.with_name("pairs.jsonl")
    teacher_pairs.write(pairs, options.pairs)
    tree = configuration(base_url, options.model, pairs, config.parent)
    config.write_text(yaml.safe_dump(tree))
    before = stats(base_url)
    lived = drive(config, options.kills, options.seed, options.least_s, options.most_s)
    served = _since(before, stats(base_url))
    folder = config.parent / "kills" / "synthesis" / "0"
    print((folder / "summary.json").read_text())
    print(f"drivers lived {', '.join(f'{each:.1f}' for each in lived)} s; service: {served}")
    return findings(folder, options.pairs, served)


def _since(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    counts = ("answered", "input_tokens", "output_tokens")
    return after | {name: after[name] - before[name] for name in counts}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trouble", type=float, default=0.25, help="share of requests")
    parser.add_argument("--least-s", type=float, default=2.0, help="that a driver lives")
    parser.add_argument("--most-s", type=float, default=6.0)
    parser.add_argument("--base-url", help="of a service that is there")
    parser.add_argument("--model", default=MODEL)
    return parser.parse_args()


if __name__ == "__main__":
    main()
