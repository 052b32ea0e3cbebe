"""Jobs of a cluster from outside: what is said when it is silent, refuses or has no place."""

import asyncio
import http.server
import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands_here import gavel
from fake_dashboard import TOKEN, fake_dashboard, silent_listener
from rich.console import Console

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator import console, following
from orchestrator.config_loading import load_config
from orchestrator.console import Lines, StampedLines
from orchestrator.dashboard import Dashboard
from orchestrator.following import BarsLog, follow
from orchestrator.jobs import Jobs, make_job
from orchestrator.progress_lines import LABELS, ProgressLine, read_line
from orchestrator.submission_package import Package, measure_package
from orchestrator.vitals import Vitals

ROOT = Path(__file__).parents[2]
SUBMIT = ("submit", "configs/quickstart.yaml", "run.dir=/shared", "run.id=far")
COMMANDS = (SUBMIT, ("logs", "far"), ("stop", "far"), ("status", "far"))


@pytest.fixture(scope="module")
def server():
    with fake_dashboard() as fake:
        yield fake


@pytest.fixture
def dashboard(server, monkeypatch):
    server.__dict__.update(jobs={}, nodes=[], actors=[], submitted=[], log="", streams=0, breaks=0)
    be_someone(monkeypatch, {"Authorization": f"Bearer {TOKEN}"})
    return server


def be_someone(monkeypatch, bearer: dict[str, str]) -> None:
    """This process has the token of the whole session, which Ray reads once."""
    monkeypatch.setattr(
        "ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled", lambda _: bearer
    )
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere.invalid:1")
    monkeypatch.chdir(ROOT)


class Seen:
    """A view of a log that keeps what it is shown."""

    def __init__(self) -> None:
        self.text, self.said, self.has_ended = "", [], False

    def show(self, text):
        self.text += text

    def say(self, line):
        self.said.append(line)

    def end(self):
        self.has_ended = True


# ---- a cluster that does not do it ---------------------------------------------------------------


def test_a_dashboard_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    began_s = time.monotonic()
    with silent_listener() as url, pytest.raises(InfrastructureError) as error:
        Jobs(url, answer_s=0.2)
    assert time.monotonic() - began_s < 10
    assert str(error.value) == (
        f"the Ray dashboard at {url} was silent for 0.2 s when it was asked which Ray it runs"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("bearer", [{"Authorization": f"Bearer {'0' * 64}"}, {}])
def test_a_token_that_is_wrong_or_missing_is_one_line(server, monkeypatch, command, bearer):
    be_someone(monkeypatch, bearer)
    status, output, errors = gavel(*command, "--address", server.url)
    assert (status, output) == (1, "")
    assert errors == (
        f"gavel: the Ray cluster at {server.url} refuses this token: set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_dashboard_that_is_not_there_is_one_line(monkeypatch, command):
    be_someone(monkeypatch, {})
    status, output, errors = gavel(*command, "--address", "http://127.0.0.1:9")
    assert (status, output) == (1, "")
    assert errors == (
        "gavel: the Ray dashboard at http://127.0.0.1:9 does not answer: there was no connection "
        "to it to ask which Ray it runs\n"
    )


def test_what_is_no_dashboard_is_told(free_port):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"no": "ray"}')

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", free_port), Page) as page:
        threading.Thread(target=page.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(InfrastructureError, match="does not tell which Ray it runs"):
            Jobs(f"http://127.0.0.1:{free_port}")
        page.shutdown()


def test_of_a_traceback_on_the_cluster_the_last_line_is_told(dashboard):
    text = """Request failed with status code 500: the agent answers
Traceback (most recent call last):
  File "job_agent.py", line 45, in submit_job
ValueError: Job with submission_id gavel-far-1 already exists.
.
"""

    def refuse(_):
        raise RuntimeError(text)

    with pytest.raises(
        InfrastructureError, match=r"takes it: ValueError: Job .* already exists\.$"
    ):
        Dashboard(dashboard.url).ask("whether it takes it", refuse)


# ---- submitting ----------------------------------------------------------------------------------


def job(tmp_path):
    (tmp_path / "run.yaml").write_text(f"extends: {ROOT}/configs/quickstart.yaml\n")
    config = load_config(tmp_path / "run.yaml", ["run.id=far", "run.dir=/shared"])
    return make_job(config, tmp_path / "run.yaml", ["run.dir=/shared"], tmp_path)


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([{"CPU": 4.0}], None),
        ([{"CPU": 4.0}, {"driver": 1.0, "memory": 1e9}], {"driver": 1}),
    ],
)
def test_a_driver_asks_for_a_place_of_its_own_where_there_is_one(dashboard, tmp_path, nodes, asked):
    dashboard.nodes = nodes
    assert Jobs(dashboard.url).submit(job(tmp_path)) == "gavel-far-1"
    (submitted,) = dashboard.submitted
    assert submitted.get("entrypoint_resources") == asked
    assert submitted["metadata"]["gavel_run"] == "far"


def test_the_address_that_is_given_wins_over_rays_own_variables(dashboard, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert Jobs(dashboard.url).address == dashboard.url


def test_a_run_has_one_job_at_a_time(dashboard, tmp_path):
    dashboard.add("far", status="PENDING")
    with pytest.raises(ConfigurationError, match=r"job gavel-far-1 is pending at .* already"):
        Jobs(dashboard.url).submit(job(tmp_path))
    dashboard.add("far", status="FAILED")
    assert Jobs(dashboard.url).submit(job(tmp_path)) == "gavel-far-2"


# ---- the package ---------------------------------------------------------------------------------


def test_the_package_is_the_one_that_ray_makes_and_small(tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    path = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(ROOT), path, include_gitignore=True, excludes=excludes)
    package = measure_package(ROOT)
    assert package.packed_bytes == path.stat().st_size
    assert package.packed_bytes < 5_000_000
    assert package.files > 100
    assert {"orchestrator/", "configs/", "README.md"} <= package.bytes_of.keys()
    assert package.warnings() == []


def test_a_working_directory_that_is_large_or_holds_runs_is_warned_of(tmp_path):
    (tmp_path / ".rayignore").write_text("left-out/\n")
    for name in ("data", "runs", "left-out", "empty"):
        (tmp_path / name).mkdir()
    for name in ("data/pairs", "left-out/model"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(120_000_000)
    (tmp_path / "runs" / "log").write_bytes(b"x" * 500_000)
    (tmp_path / "gone").symlink_to("nowhere")
    package = measure_package(tmp_path)
    assert package.files == 3
    large, runs = package.warnings()
    assert large.startswith("120.5 MB travel with the job; the largest parts are data/ 120.0 MB, ")
    assert runs == "runs/ (0.5 MB) travels with the job: name it in .rayignore"
    assert Package(1, 10, {"a": 10}).warnings() == []


def test_a_dry_run_says_what_would_be_submitted_and_asks_no_cluster(monkeypatch):
    be_someone(monkeypatch, {})
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    status, shown, errors = gavel(*SUBMIT, "--dry-run")
    assert (status, errors) == (0, "")
    for part in (
        "python -m orchestrator run configs/quickstart.yaml run.dir=/shared run.id=far",
        "RAY_JOB_STOP_WAIT_TIME_S=160",
        "gavel_run=far",
        "orchestrator/",
        " MB, ",
    ):
        assert part in shown
    status, _, errors = gavel(*SUBMIT)
    assert status == 2
    assert "no cluster is named" in errors


# ---- following -----------------------------------------------------------------------------------


def test_a_stream_that_breaks_is_taken_up_where_it_was(dashboard):
    dashboard.log = "".join(f"line {number}\n" for number in range(50))
    dashboard.breaks = 2
    job_id = dashboard.add("far", status="SUCCEEDED")
    states = iter(["RUNNING", "RUNNING", "RUNNING", "SUCCEEDED"])

    class Going(Jobs):
        def state(self, job_id):
            dashboard.jobs[job_id]["status"] = next(states)
            return super().state(job_id)

    seen = Seen()
    assert follow(Going(dashboard.url), job_id, seen) == 0
    assert seen.text == dashboard.log
    assert dashboard.streams == 3
    assert seen.has_ended


def test_a_stream_that_is_silent_is_opened_anew(dashboard, monkeypatch):
    monkeypatch.setattr(following, "SILENCE_S", 0.2)
    jobs = Jobs(dashboard.url)
    job_id = dashboard.add("far", status="SUCCEEDED")

    async def cut_off(job_id):
        yield "one\n"
        await asyncio.sleep(60)

    dashboard.log = "one\ntwo\n"
    whole = jobs.tail
    calls = []

    def tail(job_id):
        calls.append(job_id)
        if len(calls) == 1:
            dashboard.jobs[job_id]["status"] = "RUNNING"
            return cut_off(job_id)
        dashboard.jobs[job_id]["status"] = "SUCCEEDED"
        return whole(job_id)

    monkeypatch.setattr(jobs, "tail", tail)
    seen = Seen()
    assert follow(jobs, job_id, seen) == 0
    assert seen.text == "one\ntwo\n"


def test_a_job_without_a_place_says_what_it_waits_for(dashboard, monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    job_id = dashboard.add("far", status="PENDING")
    dashboard.nodes = [{"CPU": 4.0, "driver": 1.0}]
    dashboard.actors = [
        supervisor("gavel-far-1", "PENDING_CREATION", {"driver": 1.0}),
        supervisor("gavel-near-3", "ALIVE", {"driver": 1.0}),
        supervisor("gavel-gone-1", "DEAD", {"driver": 1.0}),
        {"name": "", "class_name": "Learner", "state": "ALIVE", "required_resources": {"CPU": 1.0}},
    ]
    seen, times = Seen(), iter(range(0, 1000, 2))

    class Going(Jobs):
        polls = 0

        def state(self, job_id):
            self.polls += 1
            if self.polls == 6:
                dashboard.jobs[job_id] |= {"status": "FAILED", "message": "no place was free"}
            return super().state(job_id)

    assert follow(Going(dashboard.url), job_id, seen, clock=lambda: next(times)) == 1
    assert seen.said == [
        "the job gavel-far-1 has not begun yet: it asks for 1 driver (the cluster has 1, taken by "
        "gavel-near-3)",
        "Ray ended the job gavel-far-1: no place was free",
    ]


def supervisor(job_id: str, state: str, needs: dict[str, float]) -> dict:
    name = f"_ray_internal_job_actor_{job_id}"
    return {
        "name": name,
        "class_name": "JobSupervisor",
        "state": state,
        "required_resources": needs,
    }


def test_a_run_that_fails_gives_its_own_status_and_ray_is_not_quoted(dashboard):
    job_id = dashboard.add("far", status="FAILED", driver_exit_code=2, message="exited with 2")
    seen = Seen()
    assert follow(Jobs(dashboard.url), job_id, seen) == 2
    assert seen.said == []


def test_a_pending_job_that_is_stopped_says_when_it_will(dashboard):
    job_id = dashboard.add("far", status="PENDING")
    with pytest.raises(InfrastructureError, match="pending after 0 s; it ends as soon as it begin"):
        Jobs(dashboard.url).stop(job_id, timeout_s=0.0)
    assert dashboard.is_told_to_stop


# ---- the progress of a log -----------------------------------------------------------------------


@pytest.mark.parametrize("total_steps", [20, None])
@pytest.mark.parametrize("headline", ["loss 0.5", "reward +0.5  accuracy 0.7  tokens/s 1.2e+04"])
@pytest.mark.parametrize("left", ["", "3 min 05 s left"])
def test_a_line_of_progress_is_read_back_as_it_was_printed(total_steps, headline, left):
    out, vitals = io.StringIO(), Vitals("first")
    printed: Any = StampedLines(out, vitals)
    lines = Lines(Console(file=printed, width=300), iter(range(9)).__next__, is_stamped=True)
    vitals.change(phase="distill", step=0, total_steps=total_steps)
    lines.begin("distill", total_steps)
    vitals.change(step=7)
    lines.step(7, headline, left)
    begun, step = out.getvalue().splitlines()
    assert read_line(begun) == ProgressLine("distill", 0, total_steps)
    assert read_line(step) == ProgressLine("distill", 7, total_steps, headline, left)


def test_the_headline_has_the_labels_by_which_it_is_read():
    assert set(LABELS) == set(console._HEADLINES.values())


@pytest.mark.parametrize("start", ["", "first - -  ", "first distill 7/20  ", "first distill 7  "])
@pytest.mark.parametrize("line", ["", "run far done in 12 s; see /x", "| distill 1/2 |", "a b 1/2"])
def test_any_other_line_is_shown_without_its_start(start, line):
    assert read_line(start + line) == line


def test_in_a_terminal_a_log_is_shown_as_bars():
    out = io.StringIO()
    view = BarsLog(Console(file=out, width=100, force_terminal=True, color_system=None))
    text = "far - -  starting\nfar distill 0/3  begins\nfar distill 1/3  loss 0.5  4 s left\n"
    text += "far distill 3/3  loss 0.25\nfar evaluate -  evaluated\n"
    text += "far reinforce 1  reward +0.5\n\x1b[2Jbad\nno end"
    for start in range(0, len(text), 7):
        view.show(text[start : start + 7])
    view.end()
    shown = out.getvalue()
    assert shown.index("starting") < shown.index("evaluated") < shown.rindex("no end")
    assert "3/3 loss 0.25" in shown
    assert "1/? reward +0.5" in shown
    assert "begins" not in shown
    assert "\x1b[2J" not in shown
