"""The HTTP application over a fake engine, in process."""

import asyncio
import base64
import json
import subprocess
import sys

import httpx
import pytest
from fake_engine import FakeEngine
from jsonschema import Draft202012Validator
from served import PAIR, QUESTION, build, client_of

from judging.errors import ConfigurationError, InfrastructureError
from serving.service import AT_ONCE
from serving.settings import check_binding

WORTHS = [3, 9, 1, 7]
CANDIDATES = [f"worth {worth}" for worth in WORTHS]


async def asked(path, body, engine=None, *, headers=None, **settings):
    app, _ = build(engine, **settings)
    async with client_of(app, headers=headers) as client:
        return await client.post(path, json=body)


async def test_judge():
    answer = await asked("/v1/judge", PAIR | {"votes": 2})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["letter"], body["confidence"], body["consistent"]) == ("A", 1.0, True)
    assert len(body["votes"]) == 4
    vote = body["votes"][2]
    assert (vote["shown"], vote["letter"], vote["verdict"]) == ("swapped", "A", "B")
    assert (vote["kind"], vote["rubric"]) == ("chat", "worth 2 against 9")
    assert vote["evaluation"] == "I see B"


async def test_the_servers_own_settings_are_the_default_and_a_request_may_say_otherwise():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": QUESTION},
    ]
    one = await asked("/v1/judge", PAIR | {"conversation": turns, "orders": "one"})
    assert len(one.json()["votes"]) == 1


@pytest.mark.parametrize(
    ("how", "comparisons", "order"),
    [
        ({"method": "round-robin"}, 6, [1, 3, 0, 2]),
        ({"method": "bradley-terry"}, 6, [1, 3, 0, 2]),
        ({"method": "bradley-terry", "opponents": 1}, 4, None),
        ({"method": "knockout"}, 3, [1, 3, 0, 2]),
        ({}, 6, [1, 3, 0, 2]),
    ],
)
async def test_rank(how, comparisons, order):
    answer = await asked("/v1/rank", {"conversation": QUESTION, "candidates": CANDIDATES} | how)
    body = answer.json()
    assert answer.status_code == 200
    assert (body["comparisons"], body["judgments"]) == (comparisons, 2 * comparisons)
    assert order is None or body["order"] == order
    if not how:
        assert body["scores"] == [pytest.approx(x / 3) for x in (1, 3, 0, 2)]


async def test_a_large_request_leaves_room_for_others():
    engine = FakeEngine(seconds=0.005)
    candidates = [f"worth {worth}" for worth in range(30)]
    answer = await asked("/v1/rank", {"conversation": QUESTION, "candidates": candidates}, engine)
    assert answer.json()["order"] == list(range(29, -1, -1))
    assert (engine.calls, engine.most) == (435, AT_ONCE)


async def test_score():
    body = {
        "conversation": QUESTION,
        "answers": ["worth 5", "worth 5", "worth 1"],
        "references": ["worth 3", "worth 7", "worth 1"],
    }
    answer = (await asked("/v1/score", body)).json()
    assert answer["scores"] == [pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(1 / 6)]
    assert (answer["comparisons"], answer["judgments"], answer["undecided"]) == (9, 16, 0)
    silent = await asked("/v1/score", body, FakeEngine(bias=("?",)))
    assert silent.json()["scores"] == [None, None, 0.5]  # worth 1 against itself is a draw
    assert silent.json()["undecided"] == 8


@pytest.mark.parametrize(
    ("path", "change", "status", "said"),
    [
        ("/v1/judge", {"answer_a": ""}, 422, "answer_a is empty"),
        ("/v1/judge", {"answer_a": 3}, 400, "answer_a: "),
        ("/v1/judge", {"anwser": "x"}, 400, "anwser: "),
        ("/v1/judge", {"conversation": []}, 422, "conversation is empty"),
        ("/v1/judge", {"votes": 65}, 422, "votes is 65: at most 64"),
        ("/v1/judge", {"votes": 0}, 400, "votes: "),
        ("/v1/judge", {"orders": "three"}, 400, "orders: "),
        ("/v1/judge", {"answer_a": "x" * 5000}, 422, "answer_a has 5,000 characters"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(path, change, status, said):
    answer = await asked(path, PAIR | change, max_chars=4500)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error["message"]
    assert set(error) == {"type", "message"}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"candidates": ["worth 1"]}, 422, "at least 2"),
        ({"candidates": ["worth 1"] * 9}, 422, "1 to 8 may be"),
        ({"candidates": CANDIDATES, "votes": 8}, 422, "6 comparisons take 96 judgments"),
        ({"candidates": [*CANDIDATES, " "]}, 422, "candidates.4 is empty"),
        ({"candidates": CANDIDATES, "opponents": 1}, 422, "opponents is for bradley-terry"),
    ],
)
async def test_rankings_that_are_refused(change, status, said):
    body = {"conversation": QUESTION} | change
    answer = await asked("/v1/rank", body, max_candidates=8, max_judgments=40)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True)


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[" * 100_000, b"\xff\xfe", b"null", b'{"conversation": NaN}']
)
async def test_what_is_no_json(content):
    app, _ = build()
    async with client_of(app) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/judge", content=content, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "bad_request"
        plain = await client.post("/v1/judge", content=json.dumps(PAIR))
        assert plain.status_code == 415
        half = json.dumps(PAIR | {"answer_a": "\ud800"}).encode()
        answer = await client.post("/v1/judge", content=half, headers=headers)
        assert "answer_a holds half a character" in answer.json()["error"]["message"]
        unknown = await client.post("/v1/judge", json=PAIR | {"x" * 10_000: 1})
        assert len(unknown.content) < 500
        assert (await client.get("/v1/judge")).json()["error"]["type"] == "method"


async def test_large_bodies_are_refused_before_they_are_read():
    app, gate = build(max_body_bytes=1000)
    read = []

    async def chunks():
        for number in range(100):
            read.append(number)
            yield b" " * 100

    async with client_of(app, headers={"content-type": "application/json"}) as client:
        stated = await client.post("/v1/judge", content=b" " * 1001)
        chunked = await client.post("/v1/judge", content=chunks())
    assert (stated.status_code, chunked.status_code) == (413, 413)
    assert chunked.headers["connection"] == "close"
    assert "1,000 bytes" in chunked.json()["error"]["message"]
    assert gate.admitted == 0


async def test_a_body_that_never_ends_is_given_up():
    app, gate = build(body_s=0.05)

    async def drip():
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    async with client_of(app, headers={"content-type": "application/json"}) as client:
        answer = await client.post("/v1/judge", content=drip())
    assert (answer.status_code, gate.admitted) == (408, 0)


async def test_the_token():
    app, _ = build(token="sesame")

    def basic(text):
        return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    tries = [
        ({}, 401),
        ({"authorization": "Bearer open"}, 401),
        ({"authorization": "Bearer sesam\u00e9"}, 401),
        ({"authorization": "Basic %%%"}, 401),
        (basic("sesame"), 401),
        (basic(":sesame"), 200),
        ({"authorization": "Bearer sesame"}, 200),
    ]
    async with client_of(app) as client:
        for headers, status in tries:
            encoded = {name: value.encode() for name, value in headers.items()}
            answer = await client.post("/v1/judge", json=PAIR, headers=encoded)
            assert answer.status_code == status, headers
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/openapi.json")).status_code == 401
        assert (await client.get("/health")).status_code == 200
        # What is taken has a place of the queue: nothing is, without the token.
        assert (await client.post("/health", json=PAIR)).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_no_binding_beyond_loopback_without_a_token(host):
    with pytest.raises(ConfigurationError, match="GAVEL_SERVE_TOKEN"):
        check_binding(host, None)
    check_binding(host, "secret")


def test_loopback_needs_no_token_and_an_empty_one_is_refused():
    for host in ("127.0.0.1", "::1", "localhost"):
        check_binding(host, None)
    for token in ("", " ", "secret\n", "two words", "sesam\u00e9"):
        with pytest.raises(ConfigurationError, match="empty or not of printable ASCII"):
            check_binding("127.0.0.1", token)


async def test_back_pressure():
    engine = FakeEngine(seconds=0.05)
    app, gate = build(engine, max_concurrency=2, max_queue=3)
    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.post("/v1/judge", json=PAIR) for _ in range(12)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 5 + [429] * 7
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "overloaded"
    assert engine.most == 2
    assert gate.admitted == gate.judging == 0


async def test_the_deadline_takes_back_what_is_generated():
    engine = FakeEngine(seconds=60)
    app, gate = build(engine, deadline_s=0.05, max_concurrency=1)
    async with client_of(app) as client:
        judged = await client.post("/v1/judge", json=PAIR)
        async with gate.turn():  # of another request
            queued = await client.post("/v1/judge", json=PAIR)
    assert (judged.status_code, queued.status_code) == (504, 503)
    assert queued.headers["retry-after"] == "1"
    assert "still judged" in judged.json()["error"]["message"]
    assert "still queued" in queued.json()["error"]["message"]
    assert (engine.calls, engine.cancelled, gate.admitted) == (1, 1, 0)


async def test_a_client_that_hangs_up_has_its_generation_taken_back():
    engine = FakeEngine(seconds=60)
    app, gate = build(engine)
    sent = []
    body = json.dumps({"conversation": QUESTION, "candidates": CANDIDATES}).encode()
    inbox: asyncio.Queue = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/rank",
        "raw_path": b"/v1/rank",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    asking = asyncio.create_task(app(scope, inbox.get, send))
    while engine.calls < 6:
        await asyncio.sleep(0.001)
    inbox.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(asking, 5)
    assert (engine.cancelled, sent, gate.admitted) == (6, [], 0)


async def test_the_end_finishes_what_was_accepted_and_refuses_the_rest():
    app, gate = build(FakeEngine(seconds=0.1), max_concurrency=1)
    async with client_of(app) as client:
        accepted = [asyncio.create_task(client.post("/v1/judge", json=PAIR)) for _ in "ab"]
        while gate.admitted < 2:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(gate.close(grace_s=5))
        await asyncio.sleep(0)
        late = await client.post("/v1/judge", json=PAIR)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert (await client.get("/health")).status_code == 503
        assert [(await answer).status_code for answer in accepted] == [200, 200]
        assert await closing


async def test_what_is_not_done_in_the_grace_time_is_told_so():
    engine = FakeEngine(seconds=60)
    app, gate = build(engine)
    async with client_of(app) as client:
        accepted = asyncio.create_task(client.post("/v1/judge", json=PAIR))
        while not engine.running:
            await asyncio.sleep(0.001)
        assert not await gate.close(grace_s=0.01)
        assert (await accepted).json()["error"]["type"] == "ending"
    assert engine.cancelled == 1


async def test_faults_of_ours_tell_nothing_and_an_engine_that_died_is_503(caplog):
    fault = await asked("/v1/judge", PAIR, FakeEngine(failure=KeyError("secret")))
    assert fault.status_code == 500
    assert "secret" not in fault.text
    assert "KeyError" in caplog.text
    died = await asked("/v1/judge", PAIR, FakeEngine(failure=InfrastructureError("engine died")))
    assert (died.status_code, died.json()["error"]["type"]) == (503, "engine")


async def test_metrics():
    app, _ = build(FakeEngine(seconds=0.02))
    async with client_of(app) as client:
        for body in (PAIR, PAIR | {"answer_a": "worth 1"}, {}):
            answer = await client.post("/v1/judge", json=body)
        await client.get("/no/such/../path")
        text = (await client.get("/metrics")).text
    for line in (
        'gavel_serve_requests_total{path="/v1/judge",status="200"} 2.0',
        'gavel_serve_requests_total{path="/v1/judge",status="400"} 1.0',
        'gavel_serve_requests_total{path="other",status="404"} 1.0',
        'gavel_serve_rulings_total{outcome="A"} 1.0',
        'gavel_serve_rulings_total{outcome="B"} 1.0',
        "gavel_serve_judgments_total 4.0",
        "gavel_serve_tokens_total 80.0",
        "gavel_serve_judging 0.0",
    ):
        assert line in text.splitlines()
    assert 'gavel_serve_overhead_seconds_count{path="/v1/judge"} 2.0' in text
    assert answer.headers["server-timing"].startswith("total;dur=")


async def test_openapi_describes_every_answer_and_the_answers_keep_it():
    app, _ = build()
    async with client_of(app) as client:
        api = (await client.get("/openapi.json")).json()
        judged = (await client.post("/v1/judge", json=PAIR)).json()
    paths = ("/v1/judge", "/v1/rank", "/v1/score", "/v1/rewards/openrlhf", "/health", "/metrics")
    assert set(api["paths"]) == set(paths)
    assert {"200", "401", "422", "429", "503", "504"} <= set(
        api["paths"]["/v1/rank"]["post"]["responses"]
    )
    schema = {"$ref": "#/components/schemas/JudgeAnswer", "components": api["components"]}
    Draft202012Validator(schema).validate(judged)


async def test_many_at_once_are_not_mixed_up():
    app, _ = build(FakeEngine(seconds=0.001), max_concurrency=8, max_queue=500)

    async def ask(client, number):
        a, b = number * 7 % 101, number * 13 % 97
        pair = {"conversation": QUESTION, "answer_a": f"worth {a}", "answer_b": f"worth {b}"}
        body = (await client.post("/v1/judge", json=pair)).json()
        wanted = "A" if a > b else "B" if a < b else None
        assert body["letter"] == wanted
        assert all(f"worth {a}" in v["text"] or f"against {a}" in v["text"] for v in body["votes"])

    async with client_of(app, timeout=httpx.Timeout(30)) as client:
        await asyncio.gather(*(ask(client, number) for number in range(300)))


def test_importing_it_starts_nothing_heavy():
    heavy = "torch", "ray", "vllm", "transformers"
    program = (
        "import sys, serving.app, serving.engine, serving.server\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
