"""What the settings of a synthesis must not say, and secrets, which are never repeated."""

import re
from copy import deepcopy

import pytest
import yaml

from judging.errors import ConfigurationError
from orchestrator.config_loading import config_from_tree, config_tree, dump_config, load_config
from orchestrator.synthesis_rules import key_variable, lacking_keys
from synthesis.settings import Teacher

MODEL = "big-model"
BASE = {
    "data": {"path": "pairs.jsonl"},
    "phases": ["synthesize"],
    "synthesize": {
        "teachers": {
            "strong": {"uses": "openai", "model": MODEL, "base_url": "http://host:8000/v1"},
            "own": {"uses": "builtin:quickstart"},
        },
        "passes": [{"teacher": "own"}, {"teacher": "strong", "tells_verdict": True}],
    },
}
OWN = [{"teacher": "own"}]  # no pass asks the one that costs
SECRETS = (
    "sk-abcdefghijkl",
    "sk-proj-Abc_123-xyz789",
    "hf_AbCdEfGhIjKlMnOp",
    "0123456789abcdef0123456789abcdef",
    "abcdef0123456789abcdef0123456789",  # no digit at its start
    "gsk_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGhIjKlMnOp7",  # and one at its end alone
)


def tree_with(*changes):
    """`changes`: (dotted path, value)."""
    tree = deepcopy(BASE)
    for dotted, value in changes:
        *path, last = dotted.split(".")
        at = tree
        for key in path:
            at = at.setdefault(key, {})
        at[last] = value
    return tree


def refusal(*changes, overrides=()):
    with pytest.raises(ConfigurationError) as caught:
        config_from_tree(tree_with(*changes), overrides)
    return str(caught.value)


S = "synthesize"
STRONG = "synthesize.teachers.strong"
PRICE = {"input_usd_per_million": 3, "output_usd_per_million": 15}
TELLING = [{"teacher": "strong", "tells_verdict": True}]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ([(f"{S}.teachers", {})], ["synthesize.teachers names none", "add one, e.g."]),
        ([(f"{S}.passes", [])], ["synthesize.passes is empty", "add one"]),
        (
            [(f"{S}.passes", [{"teacher": "best"}])],
            ["passes[0].teacher is best", "(strong, own)", "add it there"],
        ),
        (
            [(f"{S}.passes", [{"teacher": "own"}, {"teacher": "own"}])],
            ["passes[1] asks again what passes[0] asked", "raise samples"],
        ),
        ([("judge.template", "compact")], ["checks.weights is on", "compact", "set it to false"]),
        ([(f"{S}.checks", {"min_chars": 9, "max_chars": 5})], ["max_chars (5)", "min_chars (9)"]),
        ([(f"{S}.teachers.1st", {"uses": "builtin:quickstart"})], ["1st", "rename it"]),
        ([(f"{STRONG}.uses", "claude")], ["strong.uses is claude", "openai, openai-batch"]),
        ([(f"{STRONG}.model", None)], ["strong.model is missing"]),
        (
            [(f"{STRONG}.temperature", 0), (f"{S}.passes", [{"teacher": "strong", "samples": 2}])],
            ["strong.temperature is 0", "raise it, or take one"],
        ),
        ([(f"{STRONG}.base_url", "host:8000/v1")], ["base_url is no address", "http://host:port"]),
        ([(f"{STRONG}.base_url", "ftp://host/v1")], ["base_url is no address"]),
        ([(f"{STRONG}.base_url", "http://[::1")], ["base_url is no address"]),
        ([(f"{STRONG}.base_url", "http://host:99999")], ["base_url is no address"]),
        ([(f"{STRONG}.parameters", {"max_tokens": 9})], ["max_tokens is decided by max_new_token"]),
        ([(f"{STRONG}.parameters", {"n": 2})], ["parameters.n is decided by samples of a pass"]),
        ([(f"{STRONG}.parameters", {"stream": True})], ["parameters.stream is on"]),
        (
            [(f"{STRONG}.parameters", {"max_completion_tokens": 99_999})],
            ["max_completion_tokens (99999) is not max_new_tokens (8192)"],
        ),
        ([(f"{S}.max_cost_usd", 5.0)], ["max_cost_usd is set, but synthesize.prices is not"]),
        (
            [(f"{S}.prices", {MODEL: PRICE}), (f"{S}.max_cost_usd", 0.1)],
            [
                f"{STRONG}.max_new_tokens (8192) may cost $0.1229",
                "more than synthesize.max_cost_usd ($0.1)",
                "raise the second or lower the first",
            ],
        ),
        (
            [(f"{S}.prices", {"m": {"input_usd_per_million": 1, "output_usd_per_million": 1}})],
            [f"prices has no {MODEL}", "teachers.strong", "(it has m)", "add its price"],
        ),
        ([(f"{S}.keep", "reward")], ["keep is reward", "name policy as a teacher"]),
        (
            [("run.dir", "s3://bucket/runs")],
            ["run.dir (s3://bucket/runs) is a URL", "set synthesize.cache"],
        ),
        (
            [
                ("phases", ["distill", "synthesize"]),
                ("model.path", "x"),
                (f"{STRONG}.uses", "engines"),
            ],
            ["engines of its own", "put it first in phases"],
        ),
        (
            [("model.make", {}), ("data", {"generate": {}}), (f"{STRONG}.uses", "policy")],
            ["own weights before any training", "put it after distill or reinforce"],
        ),
        (
            [("data.distill_fraction", 0.0)],
            ["synthesize.of is distill", "data.distill_fraction is 0", "set it to reinforce"],
        ),
        ([(f"{S}.max_nonsense", 0)], ["synthesize.max_nonsense is 0"]),
        ([(f"{STRONG}.requests_per_minute", 0)], ["requests_per_minute is 0"]),
        ([(f"{STRONG}.tokens_per_minute", float("inf"))], ["finite number"]),
        ([(f"{S}.max_cost_usd", float("inf"))], ["synthesize.max_cost_usd", "finite number"]),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(changes, parts):
    message = refusal(*changes)
    for part in parts:
        assert part in message
    if "phases" not in dict(changes):  # own settings of the phase are refused alike
        tree = tree_with(*changes)
        tree["phases"] = [{"synthesize": tree.pop("synthesize")}]
        with pytest.raises(ConfigurationError):
            config_from_tree(tree)


def test_what_can_be_is_not_refused():
    for changes in (
        [],
        [(f"{S}.passes", TELLING * 3)],  # each is shown what failed in the one before
        [(f"{STRONG}.parameters", {"max_completion_tokens": 8192, "top_p": 0.9})],
        [(f"{STRONG}.parameters", {"extra_body": {"guided_regex": "\\d"}})],
        [(f"{STRONG}.api_key_env", "TEAM_ALPHA_STRONG_TEACHER_KEY_2026")],
        [(f"{STRONG}.base_url", "https://api.example.com/v1")],
        [(f"{S}.prices", {MODEL: PRICE}), (f"{S}.max_cost_usd", 0.13)],
        [(f"{S}.prices", {MODEL: PRICE}), (f"{S}.max_cost_usd", 0.1), (f"{S}.passes", OWN)],
        [
            ("run.dir", "s3://bucket/runs"),
            ("store.url", "redis://host"),
            (f"{S}.cache", "answers"),
        ],
    ):
        assert config_from_tree(tree_with(*changes)).is_driver_alone


@pytest.mark.parametrize(
    ("key", "near"),
    [
        (f"{STRONG}.max_inflight", f"{STRONG}.max_in_flight"),
        (f"{STRONG}.colour", None),
        (f"{S}.teachers.a-1.sample", "synthesize.passes[0].samples"),
        (f"{S}.prices.gpt-4.1.input_usd", f"{S}.prices.gpt-4.1.input_usd_per_million"),
        (f"{S}.max_cost", f"{S}.max_cost_usd"),
    ],
)
def test_the_nearest_key_has_its_whole_path(key, near):
    tree, (*path, last) = deepcopy(BASE), re.split(r"\.(?!1)", key)
    at = tree
    for part in path:
        at = at.setdefault(part, {})
    at[last] = 1
    with pytest.raises(ConfigurationError) as caught:
        config_from_tree(tree)
    (told,) = (line for line in str(caught.value).splitlines() if "unknown key" in line)
    assert told.endswith(f"unknown key {key}" + (f": did you mean {near}?" if near else ""))


def test_the_nearest_key_of_a_pass_has_its_number():
    passes = [{"teacher": "own"}, {"teacher": "strong", "tell_verdict": True}]
    message = refusal((f"{S}.passes", passes))
    assert message.endswith("did you mean synthesize.passes[1].tells_verdict?")
    own = {"synthesize": {"teachers": {"own": {"uses": "policy"}}, "passes": passes}}
    with pytest.raises(ConfigurationError) as caught:
        config_from_tree({"data": BASE["data"], "phases": [own]})
    near = "phases[0].synthesize.passes[1].tells_verdict"
    assert str(caught.value).endswith(f"did you mean {near}?")


# ---- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    ("key", "wrap"),
    [
        ("api_key_env", str),
        ("base_url", "https://user:{}@host/v1".format),
        ("base_url", "https://{}@host/v1".format),
        ("base_url", "https://host/v1?key={}".format),
        ("parameters", lambda secret: {"extra_headers": {"X-Key": secret}}),
        ("parameters", lambda secret: {"nested": [{"deep": f"Bearer {secret}"}]}),
        ("parameters", str),
        ("options", lambda secret: {"hub": secret}),
        ("api_key", str),
        ("key", str),
        ("token", str),
        ("secret", str),
        ("password", str),
        ("API_KEY", str),
    ],
)
def test_a_secret_is_refused_with_the_mend_and_not_repeated(tmp_path, secret, key, wrap):
    value = wrap(secret)
    message = refusal((f"{STRONG}.{key}", value))
    assert f"{STRONG}.{key}" in message
    assert secret not in message
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree_with((f"{STRONG}.{key}", value))))
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    assert secret not in str(caught.value)
    if isinstance(value, str):
        assert secret not in refusal(overrides=[f"{STRONG}.{key}={value}"])


@pytest.mark.parametrize("key", ["api_key", "key", "token", "secret", "password"])
def test_a_key_for_a_secret_leads_to_the_environment(key):
    message = refusal((f"{STRONG}.{key}", "x"))
    assert f"unknown key {STRONG}.{key}" in message
    assert f"name that in {STRONG}.api_key_env" in message
    phases = [
        {"synthesize": {**BASE["synthesize"], "teachers": {"a": {"uses": "policy", key: "x"}}}}
    ]
    tree = {"data": BASE["data"], "phases": phases}
    with pytest.raises(ConfigurationError, match=r"environment variable.*teachers\.a\.api_key_env"):
        config_from_tree(tree)


@pytest.mark.parametrize("name", ["authorization", "api-key", "X-API-Key", "Password", "secret"])
def test_what_is_called_a_secret_in_the_parameters_is_one(name):
    message = refusal((f"{STRONG}.parameters", {"extra_headers": {name: "short"}}))
    assert "holds what looks like a key" in message
    assert "short" not in message


def test_a_whole_teacher_that_is_text_is_not_repeated():
    assert SECRETS[0] not in refusal((STRONG, SECRETS[0]))
    assert SECRETS[0] not in refusal(overrides=[f"{STRONG}={SECRETS[0]}"])
    assert SECRETS[0] not in refusal(overrides=[f"{STRONG}.api_key='{SECRETS[0]}"])  # no YAML
    assert SECRETS[0] not in refusal(overrides=[f"{STRONG}[0].api_key={SECRETS[0]}"])


def test_an_override_reaches_a_teacher_with_a_digit_in_its_name():
    tree = tree_with((f"{S}.teachers.gpt-4_1", {"uses": "builtin:quickstart"}))
    config = config_from_tree(tree, [f"{S}.teachers.gpt-4_1.max_tries=3"])
    assert config.synthesize.teachers["gpt-4_1"].max_tries == 3


def test_a_configuration_is_written_with_the_variable_and_read_again():
    config = config_from_tree(tree_with((f"{STRONG}.api_key_env", "THE_KEY")))
    assert "THE_KEY" in dump_config(config)
    assert config_from_tree(config_tree(config)) == config


# ---- keys of this machine ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({}, "OPENAI_API_KEY"),
        ({"uses": "openai-batch"}, "OPENAI_API_KEY"),
        ({"uses": "anthropic-batch"}, "ANTHROPIC_API_KEY"),
        ({"base_url": "http://h"}, None),
        ({"base_url": "http://h", "api_key_env": "MINE"}, "MINE"),
        ({"api_key_env": "MINE"}, "MINE"),
        ({"uses": "builtin:quickstart"}, None),
    ],
)
def test_each_service_has_a_usual_variable(changes, variable):
    assert key_variable(Teacher(**{"uses": "openai", "model": "m", **changes})) == variable


def test_a_variable_that_is_not_set_is_named_with_the_mend(monkeypatch):
    config = config_from_tree(tree_with((f"{STRONG}.api_key_env", "THE_KEY")))
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("THE_KEY", raising=False)
        else:
            monkeypatch.setenv("THE_KEY", value)
        (message,) = lacking_keys(config)
        for part in (STRONG, "THE_KEY", "is not set", "export it", "api_key_env"):
            assert part in message
    monkeypatch.setenv("THE_KEY", "sk-fine")
    assert list(lacking_keys(config)) == []


@pytest.mark.parametrize("value", ["sk-abcdefghijkl\n", " sk-abcdefghijkl", "sk-abcdéf", "a\tb"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(monkeypatch, value):
    """The client's own error shows it, e.g. with the line end of a mounted secret."""
    monkeypatch.setenv("THE_KEY", value)
    config = config_from_tree(tree_with((f"{STRONG}.api_key_env", "THE_KEY")))
    (message,) = lacking_keys(config)
    assert "export the key alone" in message
    assert value.strip() not in message


def test_a_teacher_that_no_pass_names_needs_no_key(monkeypatch):
    monkeypatch.delenv("OTHER_KEY", raising=False)
    other = {"uses": "openai", "model": "m", "api_key_env": "OTHER_KEY"}
    config = config_from_tree(tree_with((f"{S}.teachers.other", other)))
    assert list(lacking_keys(config)) == []


# ---- places --------------------------------------------------------------------------------------


def test_phases_that_no_engine_is_needed_for_come_ahead_of_all():
    phases = ["synthesize", "distill", "synthesize", "synthesize", "distill", "distill"]
    config = config_from_tree(tree_with(("phases", phases), ("model.path", "x")))
    assert config.phases_ahead == 1
    assert not config.is_driver_alone
    assert config.syntheses_before(1) == (0,)
    assert config.syntheses_before(4) == (2, 3)
    assert config.syntheses_before(5) == ()
    asks_policy = tree_with(
        ("phases", ["synthesize"]), ("model.path", "x"), (f"{STRONG}.uses", "policy")
    )
    assert config_from_tree(asks_policy).phases_ahead == 0
