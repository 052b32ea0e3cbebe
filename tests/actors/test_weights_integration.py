"""A real engine: how it samples, and what it says after a weight publication.

Equal checksums prove nothing of a publication: a layer that computes with an old packed copy of
its weight shows the new parameter all the same. So tokens and log-probabilities are compared, with
those of an engine that was started from the published checkpoint.
"""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from fresh_engine import CONTEXT_TOKENS, NEW_TOKENS

from actors.environment import engine_environment
from actors.rollout import EngineSpec, GenerationRequest, RolloutWorker
from actors.settings import PauseMode, RolloutSettings
from actors.transfer import TensorEntry, TransferEndpoint, plan_buckets
from judging.errors import DataError
from judging.records import FinishReason
from learning.windows import TrainSample

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

COMBINATIONS = [("fp32", True), ("fp32", False), ("bf16", True), ("bf16", False)]
STARTED, PUBLISHED = 0, 1  # seeds of the two checkpoints
LEARNER_TOLERANCE = {"fp32": 1e-4, "bf16": 0.02}  # mean |learner - engine|, nats
BUCKET_BYTES = 200_000  # several buckets


def random_prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 250, length).tolist())


SHORT, LONG = random_prompt(5, 1), random_prompt(80, 2)  # a block of the prefix cache is 32 tokens
PROBE = random_prompt(40, 3)


@dataclass
class Published:
    """An engine with a sender for its weights."""

    worker: RolloutWorker
    group: Any  # the sender's end of the broadcast group
    dtype: str
    folders: tuple[Path, Path]  # of the checkpoint it was started from, and of the other one
    fresh: list[dict]  # answers of an engine started from the other one
    version: int = 0

    async def join(self) -> None:
        """A new broadcast group of the sender and the engine."""
        from actors.gloo import join_group, listen_on

        listener = listen_on("127.0.0.1")
        endpoint = TransferEndpoint("127.0.0.1", listener.getsockname()[1], 2, timeout_s=60.0)
        joining = asyncio.to_thread(join_group, endpoint, 0, listener)
        self.group, _ = await asyncio.gather(joining, self.worker.join_transfer(endpoint, 1))

    async def break_off(self, which: int, buckets: int) -> None:
        """A publication of which so many buckets arrive, and no more."""
        from actors.gloo import send_buckets

        state = read_checkpoint(self.folders[which], self.dtype)
        manifest = manifest_of(state)
        await self.worker.pause("keep")
        receiving = asyncio.create_task(self.worker.receive_weights(99, manifest, PROBE))
        await asyncio.to_thread(send_buckets, self.group, manifest[:buckets], iter(state.values()))
        self.group = None  # closed
        with pytest.raises(Exception, match=r"(?i)gloo|connection|peer|weight"):
            await receiving

    async def publish(self, which: int, pause: PauseMode = "keep") -> list[float]:
        """Sends a checkpoint's weights; returns the engine's log-probabilities of the probe."""
        from actors.gloo import send_buckets

        state = read_checkpoint(self.folders[which], self.dtype)
        manifest = manifest_of(state)
        assert len(manifest) > 1
        self.version += 1
        await self.worker.pause(pause)
        sending = asyncio.to_thread(send_buckets, self.group, manifest, iter(state.values()))
        receiving = self.worker.receive_weights(self.version, manifest, PROBE)
        return (await asyncio.gather(sending, receiving))[1]

    async def greedy(self) -> list[dict]:
        """What it says to both prompts, in the shape of `fresh_engine`."""
        answers = []
        for prompt in (SHORT, LONG):
            ((rollout,),) = await self.worker.generate([request(prompt, temperature=0.0)])
            assert rollout.weight_version_min == rollout.weight_version_max == self.version
            answers.append(
                {"tokens": rollout.token_ids.tolist(), "logprobs": rollout.logprobs.tolist()}
            )
        return answers

    async def cached_tokens(self) -> int:
        """Tokens of the long prompt that the prefix cache spares the engine."""
        from vllm import SamplingParams

        output = await self.worker._run(LONG, SamplingParams(max_tokens=1, detokenize=False))
        return output.num_cached_tokens


def manifest_of(state):
    entries = [
        TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in state.items()
    ]
    return plan_buckets(entries, BUCKET_BYTES)


def read_checkpoint(folder: Path, dtype: str):
    from safetensors.torch import load_file

    from learning.policy import TORCH_DTYPES

    state = load_file(folder / "model.safetensors")
    return {name: tensor.to(TORCH_DTYPES[dtype]) for name, tensor in state.items()}


def request(prompt: tuple[int, ...], **changes) -> GenerationRequest:
    fields = {
        "presentation_uid": "pair/chosen_first",
        "token_ids": prompt,
        "samples": 1,
        "seed": 7,
        "temperature": 1.0,
        "max_new_tokens": NEW_TOKENS,
    }
    return GenerationRequest(**{**fields, **changes})


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(RolloutSettings()).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def fresh_answers(environment, make_model, tmp_path_factory) -> dict[tuple[str, bool], list[dict]]:
    """For each combination, what an engine says that was started from the other checkpoint."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("fresh")
    jobs = [
        {
            "model": str(make_model(seed=PUBLISHED, tied=tied)),
            "dtype": dtype,
            "prompts": [SHORT, LONG],
            "stop": [AutoTokenizer.from_pretrained(make_model()).eos_token_id],
        }
        for dtype, tied in COMBINATIONS
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("fresh_engine.py")
    subprocess.run(
        [sys.executable, script, folder / "jobs.json", folder / "answers.json"],
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        check=True,
        timeout=300,
    )
    answers = json.loads((folder / "answers.json").read_text())
    return dict(zip(COMBINATIONS, answers, strict=True))


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=COMBINATIONS, ids=lambda c: f"{c[0]}-tied={c[1]}"
)
async def engine(request, make_model, fresh_answers):
    """One engine at a time: all tests of a combination run before the next one starts."""
    dtype, tied = request.param
    folders = make_model(seed=STARTED, tied=tied), make_model(seed=PUBLISHED, tied=tied)
    spec = EngineSpec(str(folders[0]), dtype, CONTEXT_TOKENS, RolloutSettings())
    worker = RolloutWorker(spec)
    try:
        await worker.start()
        published = Published(worker, None, dtype, folders, fresh_answers[request.param])
        await published.join()
        yield published
    finally:
        await worker.stop()


async def test_after_a_publication_it_is_as_if_started_from_the_checkpoint(engine):
    at_first = await engine.greedy()
    assert await engine.cached_tokens() > 0
    await engine.publish(PUBLISHED)
    assert await engine.greedy() == engine.fresh  # bit for bit
    assert engine.fresh != at_first
    await engine.publish(STARTED)
    assert await engine.greedy() == at_first


async def test_a_publication_after_one_that_broke_off_is_whole(engine):
    """Wherever it broke: what a layer had been given of it does not count to the next one."""
    buckets = len(manifest_of(read_checkpoint(engine.folders[STARTED], engine.dtype)))
    for arrived in range(1, buckets, 3):
        await engine.break_off(STARTED, arrived)
        await engine.join()
        await engine.publish(PUBLISHED)
        assert await engine.greedy() == engine.fresh  # bit for bit
    await engine.publish(STARTED)


async def test_a_publication_clears_the_prefix_cache(engine):
    await engine.greedy()
    assert await engine.cached_tokens() >= 64
    await engine.publish(STARTED)
    assert await engine.cached_tokens() == 0


@pytest.mark.parametrize(
    ("pause", "lowest", "highest"), [("keep", 0, 1), ("drain", 0, 0), ("abort", 1, 1)]
)
async def test_samples_in_flight_carry_the_versions_that_wrote_them(engine, pause, lowest, highest):
    before = engine.version
    long = request(LONG, samples=8, max_new_tokens=400)
    generating = asyncio.create_task(engine.worker.generate([long]))
    await asyncio.sleep(0.3)
    await engine.publish(PUBLISHED, pause)
    (rollouts,) = await generating
    spans = {(rollout.weight_version_min, rollout.weight_version_max) for rollout in rollouts}
    assert spans == {(before + lowest, before + highest)}
    assert await engine.worker.progress() > 0
    if lowest == highest:  # samples of one version are the learner's with those weights
        which = PUBLISHED if lowest else STARTED
        completions = [rollout.token_ids for rollout in rollouts]
        expected = learner_logprobs(engine, which, LONG, completions, temperature=1.0)
        gaps = [np.abs(r.logprobs - row) for r, row in zip(rollouts, expected, strict=True)]
        assert np.concatenate(gaps).mean() <= LEARNER_TOLERANCE[engine.dtype]
    assert await engine.greedy() == engine.fresh  # nothing of the old weights is in the cache
    await engine.publish(STARTED)


async def test_the_probe_is_scored_with_the_new_weights(engine):
    probe = await engine.publish(PUBLISHED)
    expected = learner_logprobs(engine, PUBLISHED, PROBE[:1], [PROBE[1:]], temperature=1.0)
    assert np.abs(np.asarray(probe) - expected[0]).mean() <= LEARNER_TOLERANCE[engine.dtype]
    await engine.publish(STARTED)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_learner_and_engine_agree_on_fresh_samples(engine, temperature):
    asked = request(LONG, samples=8, temperature=temperature, max_new_tokens=64)
    (rollouts,) = await engine.worker.generate([asked])
    completions = [rollout.token_ids for rollout in rollouts]
    expected = learner_logprobs(engine, STARTED, LONG, completions, temperature)
    gaps = [np.abs(rollout.logprobs - row) for rollout, row in zip(rollouts, expected, strict=True)]
    assert np.concatenate(gaps).mean() <= LEARNER_TOLERANCE[engine.dtype]


@pytest.mark.parametrize("completion", [LONG[:30], LONG[:1]])
async def test_the_likeliest_tokens_at_each_place_are_those_of_the_model(engine, completion):
    import torch

    from learning.policy import load_model

    k = 25  # more than vLLM gives to who does not own the engine
    prompt, completion = np.array(SHORT, np.int32), np.array(completion, np.int32)
    top = await engine.worker.top_tokens(TrainSample(prompt, completion), k)
    model = load_model(str(engine.folders[STARTED]), dtype=engine.dtype, packing=False)
    tokens = torch.as_tensor(np.concatenate([prompt, completion])).long()
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, len(prompt) - 1 : -1].float()
    expected = logits.log_softmax(-1)
    assert top.ids.shape == (len(completion), k)
    gathered = expected.gather(1, torch.as_tensor(top.ids).long()).numpy()
    assert np.abs(gathered - top.logprobs).mean() <= LEARNER_TOLERANCE[engine.dtype]
    likeliest = expected.topk(k).values.numpy()
    assert np.abs(likeliest - top.logprobs).mean() <= LEARNER_TOLERANCE[engine.dtype]
    assert all(len(set(row)) == k for row in top.ids.tolist())


def learner_logprobs(engine, which, prompt, completions, temperature) -> list[np.ndarray]:
    """What the learner's policy says of each completion, without DeepSpeed."""
    import torch

    from learning.packing import build_micro_batch
    from learning.policy import Policy, load_model

    model = load_model(str(engine.folders[which]), dtype=engine.dtype, packing=True)
    tokens = np.asarray(prompt, np.int32)
    samples = [TrainSample(tokens, np.asarray(ids, np.int32)) for ids in completions]
    with torch.no_grad():
        scored = Policy(model, temperature)(build_micro_batch(samples, packing=True)).numpy()
    return [row[: len(ids)] for row, ids in zip(scored, completions, strict=True)]


async def test_a_seed_decides_the_tokens_whatever_else_is_sampled(engine):
    asked = request(SHORT, samples=3, seed=11)
    (alone,) = await engine.worker.generate([asked])
    assert [rollout.sample for rollout in alone] == [0, 1, 2]
    assert [rollout.seed for rollout in alone] == [11, 12, 13]
    assert len({tuple(rollout.token_ids.tolist()) for rollout in alone}) == 3
    others = [request(random_prompt(9 + n, n), samples=4, seed=n) for n in range(6)]
    crowd = [*others[:3], asked, *others[3:]]
    single = request(SHORT, samples=1, seed=12)
    if engine.dtype == "fp32":  # in bf16 the size of a batch is seen in the rounding
        _, _, _, together, *_ = await engine.worker.generate(crowd)
        assert_same_tokens(together, alone)
        ((second,),) = await engine.worker.generate([single])
        assert_same_tokens([second], [alone[1]])
    (again,) = await engine.worker.generate([asked])
    assert_same_tokens(again, alone)


def assert_same_tokens(rollouts, expected) -> None:
    for rollout, other in zip(rollouts, expected, strict=True):
        assert rollout.token_ids.tolist() == other.token_ids.tolist()


async def test_a_cut_off_sample_is_marked_and_a_finished_one_ends_its_turn(engine):
    limit = 150
    (rollouts,) = await engine.worker.generate(
        [request(SHORT, samples=48, max_new_tokens=limit, seed=100)]
    )
    (end,) = engine.worker._stop_token_ids
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.token_ids)
        assert (rollout.logprobs <= 0).all()
        assert end not in rollout.token_ids[:-1]
        is_ended = rollout.token_ids[-1] == end
        assert rollout.finish_reason is (FinishReason.STOP if is_ended else FinishReason.LENGTH)
        assert is_ended or len(rollout.token_ids) == limit
        assert "<|im_end|>" not in rollout.text
    assert {rollout.finish_reason for rollout in rollouts} == {
        FinishReason.STOP,
        FinishReason.LENGTH,
    }


async def test_the_engine_is_given_the_prompt_and_nothing_more(engine):
    from vllm import SamplingParams

    output = await engine.worker._run(SHORT, SamplingParams(max_tokens=1, detokenize=False))
    assert output.prompt_token_ids == list(SHORT)
    assert len(await engine.worker.score_tokens(LONG)) == len(LONG) - 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), "pair/chosen_first: its prompt has no tokens"),
        (random_prompt(CONTEXT_TOKENS, 4), "exceed the context of 512; lower data.max_prompt"),
    ],
    ids=["empty", "overlong"],
)
async def test_an_impossible_prompt_is_refused_with_the_pair_it_is_of(engine, prompt, message):
    with pytest.raises(DataError, match=message):
        await engine.worker.generate([request(prompt)])
