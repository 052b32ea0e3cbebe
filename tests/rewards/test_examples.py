"""The examples that people copy work as they stand."""

import threading
from pathlib import Path

import pytest
from reward_requests import request

from examples.rewards import brevity, server
from orchestrator.config_loading import load_config
from rewards.attach import attach
from rewards.contract import assert_contract, check_contract, read_samples, sample_requests
from rewards.function import reward
from rewards.http import HttpBackend
from rewards.settings import CallSettings, RewardUse

ROOT = Path(__file__).parent.parent.parent


def test_the_function_keeps_the_contract():
    assert_contract(brevity.brevity)
    assert brevity.brevity(request(0, "word " * 400)) == 0.5


@pytest.mark.integration
async def test_the_import_form_runs_it_in_a_process():
    host = await attach(RewardUse(uses="import:examples.rewards.brevity:brevity"), ())
    (result,) = await host.score([request(0, "word " * 400)])
    await host.close()
    assert (result.status, result.score) == ("ok", 0.5)


async def test_the_server_keeps_the_contract(monkeypatch):
    monkeypatch.setenv("GAVEL_REWARD_TOKEN", "secret")
    served = server.serve(0)
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{served.server_address[1]}/"
    try:
        for token, kept in (("secret", True), ("wrong", False)):
            backend = HttpBackend(url, token, CallSettings())
            findings = await check_contract(backend, sample_requests(8))
            assert all(finding.ok for finding in findings) is kept, findings
    finally:
        served.shutdown()
        served.server_close()


def test_the_mix_is_a_configuration():
    config = load_config(ROOT / "examples" / "rewards" / "mix.yaml", [])
    assert list(config.reward.mix) == ["verdict", "consistency", "format", "overlong"]
    assert config.reward.order == "both"


def test_the_contract_names_what_is_not_kept():
    @reward(range=(0.0, 1.0))
    def drifting(request, seen=[]):  # noqa: B006
        seen.append(request)
        return len(seen) / 1000

    @reward
    def out_of_range(request):
        return 3.0

    with pytest.raises(AssertionError, match=r"determinism.*say deterministic=False"):
        assert_contract(drifting)
    with pytest.raises(AssertionError, match=r"range: .* scores outside \[-1, 1\], e.g. 3"):
        assert_contract(out_of_range)


def test_samples_of_a_file_are_read_and_bad_lines_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    good = (
        '{"conversation": [{"role": "user", "content": "Hi"}], "answer_a": "a", "answer_b": "b",'
        ' "gold": "A", "response": "<answer>[[A]]</answer>"}'
    )
    path.write_text(f"{good}\n\n{good}\n")
    samples = read_samples(path)
    assert [sample.id for sample in samples] == ["line-1", "line-3"]
    assert samples[0].trace.verdict.letter == "A"
    path.write_text(f"{good}\n{{}}\n")
    with pytest.raises(Exception, match=r"samples.jsonl:2: no request: KeyError"):
        read_samples(path)
