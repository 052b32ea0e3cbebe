"""A server over the fake engine, in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def server_here():
    """Its port on loopback; its token is sesame."""
    script = Path(__file__).parent / "served.py"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "GAVEL_SERVE_TOKEN": "sesame"}
    command = [sys.executable, str(script), "0", "0", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
