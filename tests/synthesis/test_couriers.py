"""The process that carries requests, against a service that misbehaves and drivers that die."""

import asyncio
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import urllib.request
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from httpx2 import URL
from synthesis_samples import PRICE, make_asker, sample_request

from judging.errors import ConfigurationError, InfrastructureError
from judging.records import Message
from synthesis import couriers
from synthesis.asking import TryFailed
from synthesis.budget import Budget
from synthesis.courier import LOCK, connect, proxy_of
from synthesis.couriers import Couriers, undelivered, wait_for_others
from synthesis.endpoint import Endpoint
from synthesis.ledger import Ledger
from synthesis.settings import Teacher

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
NOTHING = "I would rather not say."  # the stub's answer with --nonsense
STUB = ROOT / "benchmarks" / "teacher_stub.py"
PROMPT = (Message("user", "Q: Which is right?\nA: this\nB: that"),)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def stub():
    started = []

    def start(*arguments):
        command = [sys.executable, str(STUB), "--nonsense", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        started.append(process)
        return process.stdout.readline().split()[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def stats(base_url):
    with closing(urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats")) as answer:
        return json.load(answer)


def endpoint(base_url, folder, key_variable=None, **changes):
    folder.mkdir(exist_ok=True)
    fields = {"uses": "openai", "model": "stub-teacher", "base_url": base_url, "timeout_s": 20.0}
    settings = Teacher(**{**fields, **changes})
    return Endpoint("strong", settings, folder=folder, key_variable=key_variable)


@asynccontextmanager
async def opened(service):
    try:
        yield service
    finally:
        await asyncio.wait_for(service.close(), 30)


def request(key="key"):
    return sample_request(key, messages=PROMPT)


async def test_answers_come_and_what_failed_is_tried_until_it_does(stub, tmp_path):
    url = stub("--trouble", "0.5", "--latency-ms", "5")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        async with opened(endpoint(url, tmp_path)) as service:
            loop = asyncio.get_running_loop()
            settings = service._settings
            asker = make_asker(service, ledger, loop.time, settings=settings)
            work = (asker.ask(request(f"{number}")) for number in range(40))
            answers = await asyncio.wait_for(asyncio.gather(*work), 60)
        (spent,) = ledger.spending()
    assert {answer.text for answer in answers} == {NOTHING}
    served = stats(url)
    assert served["troubles"]
    assert served["answered_twice"] == 0
    assert (spent.answers, spent.output_tokens) == (40, served["output_tokens"])
    assert spent.tries == served["requests"]
    assert list(undelivered(tmp_path)) == []


async def test_no_answer_in_time_leaves_doubt_also_where_bytes_trickle(tmp_path):
    async def trickle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.05)

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with opened(endpoint(url, tmp_path, timeout_s=0.5)) as service:
        with pytest.raises(TryFailed, match=r"no answer within 0\.5 s") as caught:
            await asyncio.wait_for(service.answer(request()), 15)
    assert caught.value.is_in_doubt
    server.close()


async def test_a_connection_that_was_never_made_leaves_no_doubt_and_one_that_was_cut_does(
    tmp_path, free_port
):
    async with opened(endpoint(f"http://127.0.0.1:{free_port}/v1", tmp_path)) as service:
        with pytest.raises(TryFailed, match="the connection failed") as caught:
            await asyncio.wait_for(service.answer(request()), 30)
    assert not caught.value.is_in_doubt

    async def cut(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with opened(endpoint(url, tmp_path)) as service:
        with pytest.raises(TryFailed, match="the connection failed") as caught:
            await asyncio.wait_for(service.answer(request()), 30)
    assert caught.value.is_in_doubt
    server.close()


async def test_a_courier_that_is_killed_leaves_doubt_and_is_started_anew(stub, tmp_path):
    url = stub("--latency-ms", "700")
    async with opened(endpoint(url, tmp_path)) as service:
        waiting = [asyncio.ensure_future(service.answer(request(f"{n}"))) for n in range(3)]
        while stats(url)["most_in_flight"] < 3:
            await asyncio.sleep(0.05)
        service._couriers._process.kill()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [(type(each), each.is_in_doubt) for each in found] == [(TryFailed, True)] * 3
        answer = await asyncio.wait_for(service.answer(request("again")), 60)
        assert answer.text == NOTHING


DRIVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from synthesis_samples import make_asker, sample_request
from judging.records import Message
from synthesis.endpoint import Endpoint
from synthesis.ledger import Ledger
from synthesis.settings import Teacher

async def main():
    url, folder = sys.argv[1], Path(sys.argv[2])
    settings = Teacher(uses="openai", model="stub-teacher", base_url=url)
    service = Endpoint("strong", settings, folder=folder, key_variable=None)
    prompt = (Message("user", "Q: Which is right?\\nA: this\\nB: that"),)
    with Ledger(folder / "ledger.sqlite") as ledger:
        clock = asyncio.get_running_loop().time
        asker = make_asker(service, ledger, clock, settings=settings)
        await asker.ask(sample_request("early", messages=prompt))
        print("one is answered", flush=True)
        work = (asker.ask(sample_request(f"{n}", messages=prompt)) for n in range(5))
        await asyncio.gather(*work)

asyncio.run(main())
"""


async def test_what_a_driver_that_died_was_asking_is_taken_up_by_the_next_and_paid_once(
    stub, tmp_path
):
    url = stub("--latency-ms", "1000")
    command = [sys.executable, "-c", DRIVER, url, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as driver:
        assert driver.stdout.readline() == b"one is answered\n"
        while stats(url)["requests"] < 6:
            await asyncio.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    told = []
    await wait_for_others(tmp_path, 30, told.append)
    assert told == ["waiting for the answers to what the driver before was asking"]
    budget = Budget(1.0, None, spent_nusd=0, requests=0)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        async with opened(endpoint(url, tmp_path)) as service:
            clock = asyncio.get_running_loop().time
            asker = make_asker(service, ledger, clock, budget=budget, settings=service._settings)
            ((path, entries),) = undelivered(tmp_path)
            assert {entry["teacher"] for entry in entries} == {"strong"}
            assert {entry["key"] for entry in entries} >= {f"{number}" for number in range(5)}
            for entry in entries:
                model = ledger.model_of(entry["key"])
                await asker.take_up(entry["key"], service.read(entry["body"]), model, PRICE)
            path.unlink()
            for key in ("early", *map(str, range(5))):
                assert (await asker.ask(request(key))).text == NOTHING
        (spent,) = ledger.spending()
    served = stats(url)
    assert (served["requests"], served["answered_twice"]) == (6, 0)
    assert (spent.answers, spent.tries, spent.in_doubt) == (6, 6, 0)
    assert spent.output_tokens == served["output_tokens"]
    assert spent.cost_nusd >= spent.output_tokens * PRICE.output_usd_per_million * 1000


async def test_what_is_written_down_is_not_left_for_the_next_driver(stub, tmp_path):
    url = stub("--latency-ms", "1")
    async with opened(endpoint(url, tmp_path)) as service:
        for number in range(4):
            await service.answer(request(f"{number}"))
            if number % 2:
                service.written(f"{number}")
    ((_, entries),) = undelivered(tmp_path)
    assert [entry["key"] for entry in entries] == ["0", "2"]


# ---- before the first request --------------------------------------------------------------------


async def test_a_key_that_is_not_taken_and_a_model_that_is_not_there_are_refused_for_free(
    stub, tmp_path, monkeypatch
):
    url = stub("--key", "sk-the-right-one")
    monkeypatch.setenv("THE_KEY", "sk-the-wrong-one")
    with pytest.raises(ConfigurationError, match="answers 401") as caught:
        await endpoint(url, tmp_path, "THE_KEY").check()
    assert "THE_KEY" in str(caught.value)
    assert "wrong-one" not in str(caught.value)
    monkeypatch.setenv("THE_KEY", "sk-the-right-one")
    await endpoint(url, tmp_path, "THE_KEY").check()
    with pytest.raises(ConfigurationError, match=r"does not know stub-teach:.*stub-teacher"):
        await endpoint(url, tmp_path, "THE_KEY", model="stub-teach").check()
    assert stats(url)["requests"] == 0


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "7", "[]", '{"data": ["name"]}'], ids=lambda body: body
)
async def test_what_is_no_such_service_is_refused(tmp_path, body):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    with pytest.raises(ConfigurationError, match=r"not OpenAI's format: correct base_url"):
        await endpoint(url, tmp_path).check()
    server.close()


async def test_a_service_of_ones_own_is_not_looked_for_behind_a_proxy(
    stub, tmp_path, monkeypatch, free_port
):
    url = stub("--latency-ms", "1")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port}")
    async with opened(endpoint(url, tmp_path)) as service:
        await service.check()
        assert (await service.answer(request())).text


async def test_nobody_there_is_told_with_the_mend(tmp_path, free_port):
    with pytest.raises(InfrastructureError, match=r"cannot be reached .*: start it, or correct"):
        await endpoint(f"http://127.0.0.1:{free_port}/v1", tmp_path).check()


# ---- couriers that break -------------------------------------------------------------------------

BROKEN = """#!{python}
import sys
sys.stdin.readline()
print('{{"ready": true}}', flush=True)
sys.stdin.readline()
{ending}
"""


def broken_courier(tmp_path, monkeypatch, ending):
    path = tmp_path / "courier"
    path.write_text(BROKEN.format(python=sys.executable, ending=ending))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(couriers.sys, "executable", str(path))
    return Couriers({"base_url": "http://host", "folder": str(tmp_path)})


@pytest.mark.parametrize(
    "ending",
    [
        """sys.stdout.write('{"id": 0, "stat'); sys.stdout.flush()""",  # cut off as it wrote
        "sys.exit(3)",
        "print('a library has something to say', flush=True); sys.stdin.read()",
        "print('{}', flush=True); sys.stdin.read()",
    ],
)
async def test_nobody_waits_for_a_courier_that_broke(tmp_path, monkeypatch, ending):
    broken = broken_courier(tmp_path, monkeypatch, ending)
    with pytest.raises(TryFailed, match="the process that carried it ended") as caught:
        await asyncio.wait_for(broken.post("key", {}, 5.0), 20)
    assert caught.value.is_in_doubt
    await asyncio.wait_for(broken.close(), 20)


async def test_a_courier_that_does_not_start_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(couriers.sys, "executable", "/bin/false")
    with pytest.raises(InfrastructureError, match="did not start"):
        await Couriers({"base_url": "http://host"}).post("key", {}, 5.0)


async def test_address_and_headers_are_those_of_the_openai_client(monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    url, session = connect({"base_url": None, "api_key_env": "A_KEY", "trust_env": False})
    async with session:
        assert url == "https://api.openai.com/v1/chat/completions"
        assert session.headers["Authorization"] == "Bearer sk-1"
        assert session.headers["OpenAI-Organization"] == "org-1"
        assert session.headers["Content-Type"] == "application/json"
        assert "OpenAI-Project" not in session.headers


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
async def test_host_and_path_stay_apart(end):
    settings = {"base_url": f"http://127.0.0.1:8123{end}", "api_key_env": None, "trust_env": False}
    url, session = connect(settings)
    await session.close()
    assert url == f"http://127.0.0.1:8123{end.rstrip('/')}/chat/completions"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"https_proxy": "http://proxy:1"}, "http://proxy:1"),
        ({"all_proxy": "http://proxy:2"}, "http://proxy:2"),
        ({"http_proxy": "http://proxy:3"}, None),
        ({"https_proxy": "http://proxy:4", "no_proxy": "example.org"}, None),
    ],
)
def test_the_proxy_is_the_environments(monkeypatch, variables, expected):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(URL("https://api.example.org/v1")) == expected


async def test_the_wait_for_others_has_an_end(tmp_path):
    with (tmp_path / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(InfrastructureError, match="go on with --resume when it has ended"):
            await wait_for_others(tmp_path, 0.2, lambda text: None)
    await wait_for_others(tmp_path, 0.2, lambda text: None)
