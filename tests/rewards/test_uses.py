"""The four forms of `uses:`."""

import pytest

from judging.errors import ConfigurationError
from rewards.uses import Builtin, Import, NamedActor, Url, check_importable, parse_use

NAMES = ("verdict", "format")


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("builtin:verdict", Builtin("verdict")),
        ("import:my.rewards:Brevity", Import("my.rewards", "Brevity")),
        ("import:mine:Outer.inner", Import("mine", "Outer.inner")),
        ("ray://team/judge", NamedActor("team", "judge")),
        ("ray://team/judge/v2", NamedActor("team", "judge/v2")),
        ("https://judge.example/score?v=1", Url("https://judge.example/score?v=1")),
        ("http://127.0.0.1:8000/", Url("http://127.0.0.1:8000/")),
        ("http://localhost/x", Url("http://localhost/x")),
    ],
)
def test_the_forms(text, use):
    assert parse_use(text, builtins=NAMES, allowed_hosts=["judge.example"]) == use


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verdict", "expected builtin:NAME, import:package.module:Object, ray://"),
        ("", "expected builtin:NAME"),
        ("builtin:verdicts", "did you mean builtin:verdict"),
        ("builtin:", "built-in rewards are format, verdict"),
        ("import:my.rewards", "expected import:package.module:Object"),
        ("import:../rewards:x", "expected import:package.module:Object"),
        ("import:my/rewards.py:x", "expected import:package.module:Object"),
        ("ray:team/judge", "expected ray://NAMESPACE/ACTOR-NAME"),
        ("ray://judge", "expected ray://NAMESPACE/ACTOR-NAME"),
        ("https://other.example/", "host other.example is not allowed: add it to reward.allowed_h"),
        ("https://judge.example.evil.org/", "not allowed"),
        ("http://judge.example/", "without https"),
        ("https://me:secret@judge.example/", "without a password"),
        ("https:///path", "expected https://HOST/PATH"),
        ("file:///etc/passwd", "expected builtin:NAME"),
    ],
)
def test_what_is_refused_is_named_as_written(text, message):
    with pytest.raises(ConfigurationError) as caught:
        parse_use(text, builtins=NAMES, allowed_hosts=["judge.example"])
    assert repr(text) in str(caught.value)
    assert message in str(caught.value)


def test_a_module_that_is_not_there_is_found_out_without_running_one():
    check_importable(Import("reward_requests", "request"), "import:reward_requests:request")
    with pytest.raises(ConfigurationError, match="no module 'nowhere' on the import path"):
        check_importable(Import("nowhere.to.be", "found"), "import:nowhere.to.be:found")
