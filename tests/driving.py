"""Runs of `gavel run` that tests start, and end by SIGKILL where they want."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def gavel_run(config: Path | str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "run", str(config), *arguments]


def drive(command: list[str], timeout_s: float = 400.0) -> str:
    """What a run that ends well has printed."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def kill_when(command: list[str], is_reached: Callable[[], bool], what: str) -> str:
    """Ends the driver by SIGKILL as soon as the run is where it should die; what it printed.

    Nothing that it started may live on, but for two agents of Ray, which spend another minute on
    telling the cluster of its end.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 300
    while not is_reached():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, f"{what}: not within 300 s"
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    family = [child for child in family if not _is_agent(child)]
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, f"{what}: {alive}"
    return process.communicate(timeout=60)[0]


def _is_agent(process: psutil.Process) -> bool:
    names = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "/agent.py", "/agent/main.py")
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return any(name in command for name in names)
