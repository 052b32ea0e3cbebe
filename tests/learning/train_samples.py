"""Random training samples for the tests of what is made of them."""

from dataclasses import replace

import numpy as np

from learning.windows import TopTokens, TrainSample

VOCABULARY = 250  # every tokenizer in these tests has more tokens


def random_samples(count: int, *, seed: int = 0, longest: int = 12) -> list[TrainSample]:
    """Samples of mixed lengths, with advantages and rollout log-probabilities."""
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        prompt, completion = random.integers(1, longest + 1, 2)
        samples.append(
            TrainSample(
                prompt_ids=random.integers(3, VOCABULARY, prompt).astype(np.int32),
                completion_ids=random.integers(3, VOCABULARY, completion).astype(np.int32),
                advantage=float(random.normal()),
                rollout_logprobs=(-4 * random.random(completion)).astype(np.float32),
            )
        )
    return samples


def without_rollout_logprobs(sample: TrainSample) -> TrainSample:
    return replace(sample, rollout_logprobs=None)


def with_teacher(sample: TrainSample, k: int = 4, *, seed: int = 0) -> TrainSample:
    """Some teacher's k likeliest tokens at each place, the likeliest first."""
    random = np.random.default_rng(seed)
    count = len(sample.completion_ids)
    ids = [random.permutation(VOCABULARY)[:k] for _ in range(count)]
    shares = random.dirichlet(np.ones(k + 1), count)[:, :k]
    logprobs = np.log(-np.sort(-shares, axis=1)).astype(np.float32)
    return replace(sample, teacher=TopTokens(np.array(ids, np.int32), logprobs))


def with_prompts(samples, sizes, *, prompt_ids=None) -> list[TrainSample]:
    """The samples in groups of the given sizes, each with its first sample's prompt."""
    grouped, rest = [], list(samples)
    for size in sizes:
        prompt = rest[0].prompt_ids if prompt_ids is None else prompt_ids
        grouped.extend(replace(sample, prompt_ids=prompt) for sample in rest[:size])
        rest = rest[size:]
    return grouped
