"""What an endpoint's answers are read as, whatever it answers."""

import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from synthesis_samples import sample_request

from judging.errors import ConfigurationError, InfrastructureError
from synthesis.asking import TryFailed
from synthesis.endpoint import (
    Endpoint,
    chat_body,
    check_model,
    is_loopback,
    read_completion,
    retry_after_s,
)
from synthesis.records import Answer, RequestFailed, Usage
from synthesis.settings import Teacher

USAGE = {"prompt_tokens": 12, "completion_tokens": 34}


def completion(content="a trace", usage=USAGE, finish_reason="stop", **message):
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": usage}


def read(found, *, keep_reasoning=False):
    body = found if isinstance(found, str) else json.dumps(found)
    return read_completion(body, prompt_chars=400, keep_reasoning=keep_reasoning)


def test_text_usage_and_whether_it_was_cut_off_are_read():
    assert read(completion()) == Answer("a trace", usage=Usage(12, 0, 34))
    assert read(completion(finish_reason="length")).is_truncated
    cached = {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}
    assert read(completion(usage=cached)).usage == Usage(12, 8, 34)
    for details in (None, {}, {"cached_tokens": None}):
        usage = {**USAGE, "prompt_tokens_details": details}
        assert read(completion(usage=usage)).usage == Usage(12, 0, 34)


def test_of_several_choices_the_first_is_taken():
    both = completion("first")
    both["choices"] += completion("second")["choices"]
    assert read(both).text == "first"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "7",
        '"text"',
        "{}",
        "<html>bad gateway</html>",
        '{"choices": [{"mess',
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [null]}',
        '{"choices": ["text"]}',
        '{"choices": [{}]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {}}]}',
        '{"choices": [{"message": {"content": 7}}]}',
        '{"choices": [{"message": {"content": ["parts"]}}]}',
        '{"choices": {"0": {}}}',
        "[" * 100_000,
        '{"error": {"message": "overloaded"}}',
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_completion_is_a_try_that_failed(body):
    with pytest.raises(TryFailed, match="no chat completion"):
        read(body)


def test_an_answer_without_text_is_one_and_is_charged_for():
    """A model that thought until the limit, or refused: asking again would cost as much."""
    answer = read(completion(None, finish_reason="length", reasoning_content="so long"))
    assert answer == Answer("", is_truncated=True, usage=Usage(12, 0, 34))
    assert read(completion(None, refusal="I cannot help with that")).text == ""
    assert read(completion("")).text == ""


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "many",
        {"prompt_tokens": 12},
        {"prompt_tokens": None, "completion_tokens": 3},
        {"prompt_tokens": "many", "completion_tokens": 3},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": 12, "completion_tokens": -3},
        {"prompt_tokens": float("inf"), "completion_tokens": 3},
        {"prompt_tokens": float("nan"), "completion_tokens": 3},
        {"prompt_tokens": 10**30, "completion_tokens": 3},
        {**USAGE, "prompt_tokens_details": {"cached_tokens": 13}},
        {**USAGE, "prompt_tokens_details": {"cached_tokens": -1}},
        {**USAGE, "prompt_tokens_details": [1]},
    ],
)
def test_usage_that_cannot_be_is_estimated_from_the_characters(usage):
    answer = read(completion("x" * 80, usage))
    assert answer.usage_is_estimate
    assert answer.usage == Usage(100, 0, 20)


def test_what_a_model_thought_is_kept_where_that_is_asked():
    for name in ("reasoning_content", "reasoning"):
        thought = completion("the trace", **{name: "\nhm, hm\n"})
        assert read(thought).text == "the trace"
        assert read(thought, keep_reasoning=True).text == "hm, hm\n</think>\n\nthe trace"
    assert read(completion(), keep_reasoning=True).text == "a trace"
    odd = completion(reasoning={"tokens": 3})
    assert read(odd, keep_reasoning=True).text == "a trace"


def test_half_of_a_surrogate_pair_is_replaced():
    body = json.dumps(completion("here: \ud83e and \U0001f99c"))
    assert read(body).text.encode().decode().endswith("and \U0001f99c")


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "prompt_tokens", "completion_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(Json, Json, Json)
@hypothesis_settings(max_examples=40)
def test_nothing_that_a_service_writes_raises_anything_else(content, usage, whole):
    for found in (whole, completion(content, usage), {"choices": [whole], "usage": usage}):
        try:
            answer = read(found, keep_reasoning=True)
        except TryFailed:
            continue
        assert answer.text.encode() is not None
        assert min(answer.usage.input_tokens, answer.usage.output_tokens) >= 0


# ---- when to come back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": " 3 "}, 3),
        ({"retry-after": "-5"}, 0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 -0000"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 09:28:30 +0200"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "Wed, 99 Oct 99999 07:28:30 GMT"}, None),
    ],
)
def test_retry_after_is_read_in_its_three_forms(headers, seconds):
    now_s = 1445412480.0  # 2015-10-21 07:28:00 GMT
    assert retry_after_s(headers, now_s) == seconds


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text(max_size=30)))
def test_no_header_makes_a_wait_without_end(headers):
    found = retry_after_s(headers, 1e9)
    assert found is None or 0 <= found < float("inf")


def test_a_date_is_reckoned_from_now():
    found = retry_after_s({"retry-after": formatdate(time.time() + 60, usegmt=True)}, time.time())
    assert found == pytest.approx(60, abs=2)


# ---- statuses ------------------------------------------------------------------------------------


class FakeCouriers:
    def __init__(self, found):
        self.found, self.posted, self.written_down = found, [], []

    async def post(self, key, body, timeout_s):
        self.posted.append((key, body, timeout_s))
        return self.found

    def written(self, key):
        self.written_down.append(key)


def endpoint(tmp_path, found, **changes):
    settings = Teacher(**{"uses": "openai", "model": "m", "base_url": "http://host/v1", **changes})
    made = Endpoint("strong", settings, folder=tmp_path, key_variable="THE_KEY")
    made._couriers = FakeCouriers(found)
    return made


async def refusal(tmp_path, status, body="{}", headers=None):
    found = {"status": status, "headers": headers or {}, "body": body}
    with pytest.raises(Exception) as caught:
        await endpoint(tmp_path, found).answer(sample_request())
    return caught.value


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_overload_says_when_to_come_back(tmp_path, status):
    error = await refusal(tmp_path, status, headers={"retry-after": "9"})
    assert isinstance(error, TryFailed)
    assert (error.is_overload, error.retry_after_s, error.is_in_doubt) == (True, 9, False)
    assert (await refusal(tmp_path, status)).retry_after_s is None


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 504, 520, 522, 524, 599])
async def test_what_may_pass_is_tried_again(tmp_path, status):
    error = await refusal(tmp_path, status, "busy")
    assert isinstance(error, TryFailed)
    assert not error.is_overload
    assert f"status {status}: busy" in str(error)


@pytest.mark.parametrize("status", [204, 400, 403, 405, 413, 422, 501, 505])
async def test_what_is_the_requests_own_fault_is_not_tried_again(tmp_path, status):
    error = await refusal(tmp_path, status, "too long " * 100)
    assert isinstance(error, RequestFailed)
    assert f"status {status}: too long" in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (401, ["answers 401", "THE_KEY", "set another one"]),
        (404, ["answers 404", "correct model or base_url", "no such model"]),
        (308, ["answers 308", "another address (none)", "correct base_url"]),
    ],
)
async def test_what_no_request_will_mend_ends_the_phase(tmp_path, status, parts):
    error = await refusal(tmp_path, status, "no such model")
    assert isinstance(error, ConfigurationError)
    for part in ("synthesize.teachers.strong", "http://host/v1", *parts):
        assert part in str(error)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"code": "insufficient_quota", "message": "check your plan"}),
        (402, {"message": "Insufficient Balance"}),
    ],
)
async def test_a_quota_that_is_used_up_ends_the_phase_with_what_it_has(tmp_path, status, error):
    error = await refusal(tmp_path, status, json.dumps({"error": error}))
    assert isinstance(error, InfrastructureError)
    assert "--resume" in str(error)


async def test_a_pause_of_hours_ends_the_phase_with_what_it_has(tmp_path):
    error = await refusal(tmp_path, 429, headers={"retry-after": "86400"})
    assert isinstance(error, InfrastructureError)
    assert "left alone for 24.0 h" in str(error)


async def test_an_answer_that_is_none_is_given_back_to_the_courier(tmp_path):
    made = endpoint(tmp_path, {"status": 200, "headers": {}, "body": '{"choices": []}'})
    with pytest.raises(TryFailed):
        await made.answer(sample_request("key"))
    assert made._couriers.written_down == ["key"]


@pytest.mark.parametrize("in_doubt", [True, False])
async def test_a_connection_that_failed_may_leave_doubt(tmp_path, in_doubt):
    made = endpoint(tmp_path, {"error": "it was cut", "is_in_doubt": in_doubt})
    with pytest.raises(TryFailed, match="it was cut") as caught:
        await made.answer(sample_request())
    assert caught.value.is_in_doubt == in_doubt


def test_an_answer_that_was_left_by_another_driver_is_read_or_nothing(tmp_path):
    made = endpoint(tmp_path, {})
    assert made.read(json.dumps(completion())) == Answer("a trace", usage=Usage(12, 0, 34))
    assert made.read('{"choices"') is None


# ---- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "parameters", "name", "other"),
    [
        ("http://host/v1", {}, "max_tokens", "max_completion_tokens"),
        (None, {}, "max_completion_tokens", "max_tokens"),
        ("http://h", {"max_completion_tokens": 100}, "max_completion_tokens", "max_tokens"),
    ],
)
def test_a_body_names_the_token_limit_once(base_url, parameters, name, other):
    settings = Teacher(
        uses="openai", model="m", base_url=base_url, parameters={"top_p": 0.9, **parameters}
    )
    body = chat_body(settings, sample_request(temperature=0.5))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Which answer is better?"}],
        "temperature": 0.5,
        "top_p": 0.9,
        name: 100,
    }
    assert other not in body


def test_a_model_that_is_not_there_is_refused_with_its_like():
    check_model("strong", "http://h", "gpt-4.1", [])  # it does not tell
    check_model("strong", "http://h", "gpt-4.1", ["gpt-4.1", "gpt-5"])
    with pytest.raises(ConfigurationError) as caught:
        check_model("strong", "http://h", "gpt-41", ["gpt-4.1", "whisper", "dall-e"])
    assert str(caught.value) == (
        "synthesize.teachers.strong.model: http://h does not know gpt-41: take one that it has, "
        "e.g. gpt-4.1"
    )


def test_loopback_is_known_by_its_addresses():
    for url in (
        "http://localhost:80/v1",
        "http://127.0.0.1:1/v1",
        "http://127.9.9.9",
        "http://[::1]:8",
    ):
        assert is_loopback(url)
    for url in (None, "https://api.example.com/v1", "http://10.0.0.1", "http://localhost.example"):
        assert not is_loopback(url)
