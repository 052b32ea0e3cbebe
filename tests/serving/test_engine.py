"""What is told of an engine and of a model without starting one; with one:
test_serving_end_to_end.py."""

import asyncio
import json
from itertools import count, cycle, repeat

import pytest

from actors.settings import RolloutSettings
from judging.errors import ConfigurationError
from serving.engine import ModelSettings, hung, make_judge


@pytest.mark.parametrize(
    ("iterations", "has_work", "hangs"),
    [
        (repeat(7), repeat(True), True),
        (repeat(7), cycle([True, False]), True),  # requests that are given up, one after another
        (repeat(7), repeat(False), False),
        (count(), repeat(True), False),
    ],
)
async def test_an_engine_hangs_that_stands_still_with_work(iterations, has_work, hangs):
    async def progress():
        return next(iterations)

    watching = asyncio.create_task(hung(progress, has_work.__next__, 0.05, check_s=0.001))
    await asyncio.wait([watching], timeout=5 if hangs else 0.3)
    assert watching.done() == hangs
    watching.cancel()


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    config = {"model_type": "qwen2", "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{")
    settings = ModelSettings(path=str(tmp_path), engine=RolloutSettings(max_new_tokens=8))
    with pytest.raises(ConfigurationError, match=f"{tmp_path}: no tokenizer: "):
        make_judge(settings, None, 512)
