"""How the courier reaches a service, and what it does while its driver is stopped."""

import asyncio
import json
import os
import ssl
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import certifi
import httpx2
import pytest
from openai import AsyncOpenAI
from synthesis_samples import sample_request

from judging.errors import ConfigurationError
from synthesis import couriers
from synthesis.courier import Courier, connect, proxy_of
from synthesis.couriers import Couriers, undelivered
from synthesis.endpoint import Endpoint
from synthesis.settings import Teacher

pytestmark = pytest.mark.integration
ANSWERED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@asynccontextmanager
async def serving(answer):
    """The port of a server that gives `answer(request)`, where that is not None."""

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        found = await answer(head + await reader.readexactly(length))
        writer.write(found)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def settings_of(base_url, folder=Path("nowhere"), **changes):
    fields = {"teacher": "strong", "folder": str(folder), "base_url": base_url}
    return {**fields, "api_key_env": None, "trust_env": False, **changes}


async def carried(settings):
    """What comes of one request."""
    courier, said = Courier(settings, None), []
    courier._url, courier._session = connect(settings)
    courier._say = said.append
    async with courier._session:
        await courier._carry({"id": 0, "key": "key", "body": {}, "timeout_s": 10.0})
    return said[0]


# ---- as the openai client, which asks first whether all is well ----------------------------------


@pytest.mark.parametrize(
    "custom", ["", "authorization: Bearer of-a-gateway\nX-Team: judges\ncontent-type: text/json"]
)
async def test_headers_are_what_the_client_sends(monkeypatch, custom):
    monkeypatch.setenv("A_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", custom)
    sent = httpx2.Headers()

    def answer(request):
        sent.update(request.headers)
        return httpx2.Response(200, json={})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    async with AsyncOpenAI(base_url="http://h/v1", api_key="sk-1", http_client=http) as client:
        await client.post("/chat/completions", cast_to=httpx2.Response, body={})
    _, session = connect(settings_of("http://h/v1", api_key_env="A_KEY"))
    async with session:
        names = [name for name in session.headers if not name.lower().startswith("x-stainless")]
        assert {"Authorization", "Content-Type", "User-Agent"} <= {name.title() for name in names}
        assert {name: session.headers.getall(name) for name in names} == {
            name: [sent[name]] for name in names
        }


async def test_certificates_are_trusted_that_the_client_trusts(monkeypatch, tmp_path):
    """Those of the system, among which may be an organisation's own."""
    own = tmp_path / "own.pem"
    end = "-----END CERTIFICATE-----\n"
    own.write_text(Path(certifi.where()).read_text().partition(end)[0] + end)
    paths = ssl.get_default_verify_paths()._replace(openssl_cafile=str(own), openssl_capath="")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    _, session = connect(settings_of("https://h/v1"))
    async with session:
        assert len(session.connector._ssl.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("https://a.org/v1", {"https_proxy": "proxy:1"}, "http://proxy:1"),
        ("http://10.1.2.3/v1", {"no_proxy": "10.0.0.0/8"}, None),
        ("http://11.1.2.3/v1", {"no_proxy": "10.0.0.0/8"}, "http://proxy:2"),
        ("http://[fd00::1]:8000/v1", {"no_proxy": "b.org, fd00::/8"}, None),
        ("http://host:8000/v1", {"no_proxy": "host:8000"}, None),
        ("http://host:8001/v1", {"no_proxy": "host:8000"}, "http://proxy:2"),
        ("http://a.b.org/v1", {"no_proxy": "*.b.org"}, None),
        ("http://a.b.org/v1", {"no_proxy": "c.org,*"}, None),
    ],
)
def test_proxies_are_read_as_the_client_reads_them(monkeypatch, url, variables, expected):
    for name, value in {"http_proxy": "http://proxy:2", **variables}.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(httpx2.URL(url)) == expected


async def test_a_proxy_that_is_not_to_be_used_may_be_of_any_kind(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")

    async def answer(request):
        return ANSWERED % (2, b"{}")

    async with serving(answer) as port:
        found = await carried(settings_of(f"http://127.0.0.1:{port}/v1"))
    assert found["status"] == 200


# ---- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", ["http://user:hunter2@127.0.0.1:{}", "http://user:hunter2@[::{}"])
async def test_no_error_repeats_the_password_of_a_proxy(monkeypatch, proxy):
    async def answer(request):
        return b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"

    async with serving(answer) as port:
        monkeypatch.setenv("https_proxy", proxy.format(port))
        found = await carried(settings_of("https://api.example.org/v1", trust_env=True))
    assert found["error"].startswith("the connection failed: ")
    assert "hunter2" not in found["error"]
    assert found["is_in_doubt"] is False  # the proxy let nothing through


@pytest.mark.parametrize("status", [b"302 Found", b"307 Temporary Redirect"])
async def test_neither_prompt_nor_key_goes_where_a_service_redirects_to(tmp_path, status):
    asked = []

    async def other(request):
        asked.append(request)
        return ANSWERED % (2, b"{}")

    async with serving(other) as elsewhere:

        async def answer(request):
            there = b"http://127.0.0.1:%d/v1/chat/completions" % elsewhere
            return b"HTTP/1.1 %s\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, there)

        async with serving(answer) as port:
            url = f"http://127.0.0.1:{port}/v1"
            teacher = Teacher(uses="openai", model="m", base_url=url)
            service = Endpoint("strong", teacher, folder=tmp_path, key_variable=None)
            with pytest.raises(ConfigurationError, match=rf"{elsewhere}.*correct base_url"):
                await asyncio.wait_for(service.answer(sample_request()), 30)
            await service.close()
    assert asked == []


# ---- drivers that are stopped, and couriers that come after others -------------------------------


async def test_a_driver_that_was_stopped_finds_what_came_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(couriers, "_LATE_S", 1.0)

    async def answer(request):
        return ANSWERED % (2, b"{}")

    async with serving(answer) as port:
        url = f"http://127.0.0.1:{port}/v1"
        carrying = Couriers(settings_of(url, tmp_path))
        await asyncio.wait_for(carrying.post("first", {}, 10.0), 30)
        said = carrying._process._transport.get_pipe_transport(1)
        said.pause_reading()
        second = asyncio.create_task(carrying.post("second", {}, 0.5))
        await asyncio.sleep(0.3)  # until it is answered
        said.resume_reading()
        time.sleep(2.0)  # as SIGSTOP does to it
        assert (await asyncio.wait_for(second, 10))["status"] == 200
        await carrying.close()


async def test_deadlines_do_not_pass_while_the_driver_does_not_read(tmp_path):
    large = b"x" * 1_000_000  # more than a pipe holds

    async def answer(request):
        is_late = b'"late"' in request
        await asyncio.sleep(1.0 if is_late else 0.0)
        return ANSWERED % (len(large), large)

    async with serving(answer) as port:
        courier = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "synthesis.courier"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            limit=1000,  # so that little is read ahead
        )
        told = [settings_of(f"http://127.0.0.1:{port}/v1", tmp_path)]
        told += [
            {"id": number, "key": f"{number}", "body": {"is": when}, "timeout_s": 3.0}
            for number, when in enumerate(["soon", "late"])
        ]
        courier.stdin.write(b"".join(json.dumps(each).encode() + b"\n" for each in told))
        await asyncio.sleep(8.0)  # it starts, gets both, and is not heard
        courier.stdin.close()
        lines = (await asyncio.wait_for(courier.stdout.read(), 20)).splitlines()
        await courier.wait()
    found = {row["key"] for _, entries in undelivered(tmp_path) for row in entries}
    assert found == {"0", "1"}, lines[-1][:100]


async def test_a_courier_is_told_its_settings_first(tmp_path, monkeypatch):
    async def answer(request):
        return ANSWERED % (2, b"{}")

    async with serving(answer) as port:
        carrying = Couriers(settings_of(f"http://127.0.0.1:{port}/v1", tmp_path))
        start = asyncio.create_subprocess_exec

        async def started(*arguments, **options):
            process = await start(*arguments, **options)
            carrying.written("an answer of the courier that died")
            return process

        monkeypatch.setattr(asyncio, "create_subprocess_exec", started)
        found = await asyncio.wait_for(carrying.post("key", {}, 10.0), 30)
        assert found["status"] == 200
        await carrying.close()


def test_no_courier_writes_over_what_another_left(tmp_path):
    """Processes of two containers may have the same number."""
    for key in ("first", "second"):
        courier = Courier(settings_of(None, tmp_path), None)
        courier._unwritten[key] = "{}"
        courier._leave()
    assert {row["key"] for _, rows in undelivered(tmp_path) for row in rows} == {"first", "second"}
