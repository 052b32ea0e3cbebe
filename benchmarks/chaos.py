"""A run that is disturbed at random: parts are killed or frozen, and nothing may be lost.

    python benchmarks/chaos.py [--faults 30] [--steps 150] [--seed 1] [--runs DIR] [--json FILE]

Runs a shortened quickstart with engines that answer the same to the same (benchmarks/stand_in.py),
and kills or freezes rollout workers, learners, verifiers, the store, the driver and Ray's own
processes at random moments; a driver that ended is started again. Then an undisturbed run of the
same configuration.
Checked at the end: each committed step is there once, no pair is missing or trained on twice, and
replaying the committed batches from the first checkpoint gives the weights of both runs, bit for
bit.
Prints how long it took from each fault to the next committed step.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import chaos_checks
import psutil

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
SHORT = (
    "phases=[distill, reinforce]",
    "data.generate.reinforce_pairs=2000",
    "data.generate.heldout_pairs=8",
    "distill.max_steps=12",
    "reinforce.prompts_per_step=8",
    "reinforce.mini_batch_prompts=4",
    "rollout.worker=benchmarks.stand_in:StandInWorker",
    "rollout.max_restarts=1000",
    "learner.max_restarts=1000",
    "verifier.max_restarts=1000",
    "deadlines.hang_s=10",
    "checkpoint.every_steps=5",
    "checkpoint.keep=1000",
    "output.samples=0",
    "output.tensorboard=false",
)
KILL, FREEZE = signal.SIGKILL, signal.SIGSTOP


@dataclass(frozen=True, slots=True)
class Kind:
    """What is done to which process, by a part of its command line; "" is the driver."""

    name: str
    process: str
    signal: signal.Signals

    @property
    def ends_driver(self) -> bool:
        return not self.process or self.name in ("raylet killed", "head killed")


KINDS = (
    Kind("rollout worker killed", "ray::StandInWorker", KILL),
    Kind("rollout worker frozen", "ray::StandInWorker", FREEZE),
    Kind("learner killed", "ray::Learner", KILL),
    Kind("verifier killed", "ray::Verifier", KILL),
    Kind("store killed", "redis-server", KILL),
    Kind("driver killed", "", KILL),
    Kind("driver asked to end", "", signal.SIGTERM),
    Kind("raylet killed", "raylet/raylet --", KILL),
    Kind("head killed", "gcs/gcs_server --", KILL),
)


class Disturbed:
    """A run with its driver, which is started again whenever it ended."""

    def __init__(self, runs: Path, name: str, steps: int) -> None:
        self.path, self._log = runs / name, runs / f"{name}.log"
        own = (f"run.dir={runs}", f"run.id={name}", f"reinforce.max_steps={steps}")
        command = [sys.executable, "-m", "orchestrator", "run", str(CONFIG), *SHORT, *own]
        self._command = command
        self.drivers = 0
        self._may_end = False  # after a fault that the driver does not outlive
        self._driver: subprocess.Popen[bytes] | None = None

    def is_done(self) -> bool:
        """Starts a driver where there is none."""
        if self._driver is not None and (status := self._driver.poll()) is not None:
            if self._says_done():  # it may have been killed on its way out
                return True
            if not self._may_end:
                raise SystemExit(f"the driver ended with status {status}: see {self._log}")
            self._driver = None
        if self._driver is None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._driver = subprocess.Popen(
                    self._command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
                )
            self.drivers += 1
            self._may_end = False
        return False

    def _says_done(self) -> bool:
        path = self.path / "summary.json"
        return path.exists() and json.loads(path.read_text())["status"] == "done"

    def finish(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_done():
            if time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"{self.path.name}: not done after {timeout_s:.0f} s")
            time.sleep(0.2)

    def disturb(self, kind: Kind, chance: random.Random) -> bool:
        """Whether there was such a process."""
        assert self._driver is not None
        if not kind.process:
            self._driver.send_signal(kind.signal)
            self._may_end = True
            return True
        try:
            family = psutil.Process(self._driver.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        found = [process for process in family if kind.process in _title(process)]
        if not found:
            return False
        chance.choice(found).send_signal(kind.signal)
        self._may_end = self._may_end or kind.ends_driver
        return True

    def steps(self) -> list[dict[str, Any]]:
        """The committed policy steps, as `metrics.jsonl` has them."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if row.get("phase_index") == 1]

    def stop(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()


def _title(process: psutil.Process) -> str:
    try:
        if process.status() == psutil.STATUS_STOPPED:
            return ""
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@dataclass(slots=True)
class Fault:
    kind: Kind
    at_s: float  # wall clock, Unix time
    step: int  # the last one committed before it


def disturb(
    run: Disturbed, kinds: Sequence[Kind], chance: random.Random, *, pause_s: tuple[float, float]
) -> list[Fault]:
    """Each fault once policy steps go on again after the one before, and some time later."""
    faults: list[Fault] = []
    last = 0
    for kind in kinds:
        deadline = time.monotonic() + 300
        while len(run.steps()) <= last:
            if run.is_done():
                return faults
            if time.monotonic() > deadline:
                raise SystemExit(f"no step in 300 s after {faults[-1] if faults else 'the start'}")
            time.sleep(0.1)
        time.sleep(chance.uniform(*pause_s))
        if run.is_done():
            return faults
        while True:
            last = len(run.steps())
            fault = Fault(kind, time.time(), last)
            if run.disturb(kind, chance):
                break
            if run.is_done():
                return faults
            time.sleep(0.2)  # it is being started again
        faults.append(fault)
        last += kind.signal == signal.SIGTERM  # which ends its step before
        print(f"{time.strftime('%X')}  {kind.name}, after step {last}", flush=True)
    return faults


def recovery_s(run: Disturbed, faults: Sequence[Fault]) -> dict[str, list[float]]:
    """Of each kind, the seconds from each fault to the next committed step."""
    rows = run.steps()
    found: defaultdict[str, list[float]] = defaultdict(list)
    for fault in faults:
        step = fault.step + (fault.kind.signal == signal.SIGTERM)  # which ends its step before
        if step < len(rows):
            found[fault.kind.name].append(rows[step]["at_s"] - fault.at_s)
    return dict(found)


def chaos(
    runs: Path, kinds: Sequence[Kind], steps: int, seed: int, *, pause_s: tuple[float, float]
) -> dict[str, Any]:
    """Runs it all; raises SystemExit with what was found wrong."""
    chance = random.Random(seed)
    disturbed = Disturbed(runs, "disturbed", steps)
    try:
        faults = disturb(disturbed, kinds, chance, pause_s=pause_s)
        disturbed.finish(timeout_s=900)
        calm = Disturbed(runs, "undisturbed", steps)
        calm.finish(timeout_s=1800)
    finally:
        disturbed.stop()
    checked = chaos_checks.check(disturbed.path, calm.path, steps)
    return {
        "faults": len(faults),
        "drivers": disturbed.drivers,
        "recovery_s": recovery_s(disturbed, faults),
        "step_s": median(row["time/step_s"] for row in calm.steps()),
        **checked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=150, help="of reinforcement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/chaos"), help="where the runs go")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(options.faults)]
    chance.shuffle(kinds)
    result = chaos(options.runs, kinds, options.steps, options.seed, pause_s=(0.0, 6.0))
    for name, seconds in result["recovery_s"].items():
        told = f"median {median(seconds):.1f} s, longest {max(seconds):.1f} s"
        print(f"{name:24} {len(seconds):3} times: to the next step {told}")
    print(f"a step undisturbed: {result['step_s']:.1f} s; drivers: {result['drivers']}")
    print(f"steps {result['steps']}, pairs {result['pairs']}, all trained on once")
    print(f"tensors {result['tensors']}: bit-equal to the replay and to the undisturbed run")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
