"""The preStop hook of Ray's pods, against a head that is made up."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration  # for the time they take

SCRIPT = Path(__file__).parents[2] / "cluster" / "wait_for_jobs.py"


def test_a_pod_waits_for_the_jobs_of_its_cluster():
    answers = [[{"status": "RUNNING"}], [{"status": "STOPPED"}, {"status": "SUCCEEDED"}]]
    asked = []

    class Head(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[len(asked) - 1]).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Head) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert wait_for_jobs(server.server_port).returncode == 0
        server.shutdown()
    assert asked == [("/api/jobs/", "Bearer told")] * 2


def test_a_pod_does_not_wait_for_a_head_that_is_gone():
    began_s = time.monotonic()
    assert wait_for_jobs(1).returncode == 0
    assert time.monotonic() - began_s < 20


def wait_for_jobs(port):
    variables = {
        "RAY_ADDRESS": "127.0.0.1:6379",
        "RAY_AUTH_TOKEN": "told",
        "GAVEL_DASHBOARD_PORT": str(port),
    }
    command = [sys.executable, str(SCRIPT), "60"]
    return subprocess.run(command, env=variables, timeout=50, check=False)
