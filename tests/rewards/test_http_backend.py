"""Rewards behind HTTP, on a real server on loopback."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from reward_requests import requests

from rewards import http
from rewards.backend import CallFailed
from rewards.host import RewardHost
from rewards.http import HttpBackend
from rewards.settings import CallSettings

SETTINGS = CallSettings(
    timeout_s=3.0, call_timeout_s=0.5, retries=2, backoff_s=0.05, breaker_failures=3
)
SPEC = {"name": "remote", "api_version": 1, "range": [0, 1], "max_batch": 8}


class Handler(BaseHTTPRequestHandler):
    """Answers as the first part of the path says."""

    def do_GET(self):
        self.server.seen.append(dict(self.headers))
        self._send(200, json.dumps({**SPEC, **self.server.spec}))

    def do_POST(self):
        self.server.calls += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        results = [{"id": request["id"], "score": 0.5} for request in body["requests"]]
        self.server.answer(self, results)

    def _send(self, status, text, **headers):
        data = text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def right(handler, results):
    handler._send(200, json.dumps({"results": results}))


@contextmanager
def serving(answer=right, **spec):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.spec, server.seen, server.calls = answer, spec, [], 0
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/score"
    finally:
        server.shutdown()
        server.server_close()


def run(url, count=3, *, token=None, settings=SETTINGS):
    async def ask():
        host = RewardHost(HttpBackend(url, token, settings), settings)
        await host.open()
        try:
            began = time.monotonic()
            results = await host.score(requests(count))
            return results, time.monotonic() - began
        finally:
            await host.close()

    return asyncio.run(ask())


def test_scores_come_back_in_order_and_the_token_goes_along():
    with serving() as (server, url):
        results, _ = run(url, 20, token="secret")
    assert [(result.status, result.score) for result in results] == [("ok", 0.5)] * 20
    assert server.calls == 3
    assert server.seen[0]["Authorization"] == "Bearer secret"


def never(handler, results):
    time.sleep(2.0)


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (lambda h, _: h._send(500, "oops"), "error", "HTTP status 500"),
        (lambda h, _: h._send(404, "oops"), "error", "HTTP status 404"),
        (lambda h, _: h._send(200, "<html>"), "error", "no JSON"),
        (lambda h, _: h._send(200, "[]"), "error", "no list of results"),
        (lambda h, _: h._send(200, '{"results": 3}'), "error", "no list of results"),
        (lambda h, r: h._send(200, json.dumps({"results": r[1:]})), "error", "no result"),
        (lambda h, _: h._send(302, "", Location="http://127.0.0.1:1/"), "error", "status 302"),
        (lambda h, _: h.connection.close(), "error", "Error"),
        (never, "timeout", "no answer within 0.5 s"),
    ],
)
def test_a_server_gone_wrong_is_a_typed_failure_in_time(answer, status, message):
    with serving(answer) as (_, url):
        results, waited_s = run(url, 1)
    ((result),) = results
    assert (result.status, result.score) == (status, None)
    assert message in result.error
    assert waited_s < SETTINGS.timeout_s + 5


def test_nan_is_no_score():
    def answer(handler, results):
        handler._send(200, json.dumps({"results": [{**results[0], "score": float("nan")}]}))

    with serving(answer) as (_, url):
        (result,), _ = run(url, 1)
    assert (result.status, result.score) == ("error", None)


def test_a_busy_server_is_asked_again():
    def busy_once(handler, results):
        if handler.server.calls == 1:
            handler._send(503, "later")
        else:
            right(handler, results)

    with serving(busy_once) as (server, url):
        results, _ = run(url)
    assert {result.status for result in results} == {"ok"}
    assert server.calls == 2


def test_an_endless_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 1000)
    with serving(lambda h, _: h._send(200, " " * 5000)) as (_, url):
        ((result,), _) = run(url, 1)
    assert "its answer is over 1,000 bytes" in result.error


@pytest.mark.parametrize(
    ("spec", "message"),
    [({"api_version": 2}, "api_version 2"), ({"name": ""}, "no name"), ({"range": 3}, "range")],
)
def test_a_spec_that_is_none_is_refused(spec, message):
    with serving(**spec) as (_, url), pytest.raises(CallFailed, match=message):
        run(url)


def test_no_server_is_refused_with_what_happened():
    with pytest.raises(CallFailed, match="ConnectError"):
        run("http://127.0.0.1:9/score")
