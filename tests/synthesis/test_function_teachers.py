"""Teachers that are functions: of generated tasks, and of users."""

import asyncio
import sys
import time

import pytest
from synthesis_samples import sample_request

from judging.errors import ConfigurationError
from judging.presentation import both_orders
from judging.quickstart import QuickstartTask, generate
from judging.verification import TraceChecks, verify_trace
from synthesis.functions import FunctionService
from synthesis.records import RequestFailed
from synthesis.settings import Teacher

MODULE = """
import asyncio

def plain(request):
    return f"{request.key} {request.sample}"

async def slow(request):
    await asyncio.sleep(0)
    return "awaited"

class Made:
    def __init__(self, word="none"):
        self.word = word
    def __call__(self, request):
        return self.word

class Async(Made):
    async def __call__(self, request):
        await asyncio.sleep(0)
        return self.word

def bad(request):
    raise KeyError("no such thing")

def number(request):
    return 7

def half(request):
    return "half \\ud83e"

constant = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "users_teachers.py").write_text(MODULE)
    (tmp_path / "broken_teachers.py").write_text("def f(:\n")
    (tmp_path / "raising_teachers.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("users_teachers", "broken_teachers", "raising_teachers"):
        sys.modules.pop(name, None)


def service(name, **options):
    return FunctionService("mine", Teacher(uses=f"import:{name}", options=options))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("users_teachers:plain", {}, "key 0"),
        ("users_teachers:slow", {}, "awaited"),
        ("users_teachers:Made", {"word": "made"}, "made"),
        ("users_teachers:Async", {"word": "made"}, "made"),
    ],
)
async def test_functions_and_objects_answer_also_when_they_wait(name, options, text):
    answer = await service(name, **options).answer(sample_request())
    assert answer.text == text
    assert answer.usage_is_estimate
    assert answer.usage.output_tokens == round(len(text) / 4)


async def test_what_a_users_code_raises_is_of_that_request_alone():
    with pytest.raises(RequestFailed, match=r"teacher mine: KeyError: 'no such thing'"):
        await service("users_teachers:bad").answer(sample_request())
    with pytest.raises(RequestFailed, match="answered int: it must answer text"):
        await service("users_teachers:number").answer(sample_request())
    assert (await service("users_teachers:half").answer(sample_request())).text.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "users_teachers:nothing",
        "users_teachers",
        "no_such_module:f",
        "broken_teachers:f",
        "raising_teachers:f",
        "users_teachers:constant",
        ":f",
        "",
    ],
)
def test_what_cannot_be_called_is_refused_by_name(name):
    with pytest.raises(ConfigurationError, match=r"synthesize\.teachers\.mine\.uses \(import:"):
        service(name)


def test_options_that_a_class_does_not_take_are_refused():
    with pytest.raises(ConfigurationError, match="colour"):
        service("users_teachers:Made", colour="red")
    for options in ({"wrong_share": 2.0}, {"wrong_share": "many"}, {"right": 1}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            FunctionService("mine", Teacher(uses="builtin:quickstart", options=options))
    with pytest.raises(ConfigurationError, match="builtin:none"):
        FunctionService("mine", Teacher(uses="builtin:none"))


async def test_a_function_that_takes_its_time_holds_nobody_up(tmp_path):
    (tmp_path / "users_teachers.py").write_text(
        "import time\ndef plain(request):\n    time.sleep(0.2)\n    return 'slept'\n"
    )
    sys.modules.pop("users_teachers", None)
    made, began_s = service("users_teachers:plain"), time.monotonic()
    work = asyncio.gather(*(made.answer(sample_request(f"{n}")) for n in range(3)))
    await asyncio.sleep(0.01)
    assert time.monotonic() - began_s < 0.15  # the loop goes on
    assert [answer.text for answer in await work] == ["slept"] * 3


async def test_the_builtin_teacher_is_right_about_the_quickstart_and_for_the_verdict_it_is_told():
    made = FunctionService("oracle", Teacher(uses="builtin:quickstart", options={"seed": 1}))
    checks = TraceChecks(weights=False)
    for pair in generate(QuickstartTask()).distill[:20]:
        for shown in both_orders(pair):
            answer = await made.answer(sample_request(presentation=shown))
            assert verify_trace(shown, answer.text, checks=checks)[1] == ()
            told = sample_request(presentation=shown, verdict=shown.gold)
            answer = await made.answer(told)
            assert verify_trace(shown, answer.text, checks=checks, told_verdict=True)[1] == ()
    with pytest.raises(RequestFailed):  # which is no quickstart problem
        await made.answer(sample_request())
