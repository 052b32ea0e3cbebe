"""Greedy answers of engines newly started from checkpoints, in a process of their own.

    python fresh_engine.py JOBS.json ANSWERS.json

The engines take the rollout worker's own arguments but live in this process, one after another:
that costs seconds each instead of half a minute.
"""

import json
import sys
from pathlib import Path

NEW_TOKENS = 24
CONTEXT_TOKENS = 512


def main() -> None:
    jobs, answers = map(Path, sys.argv[1:])
    answers.write_text(json.dumps([_answer(**job) for job in json.loads(jobs.read_text())]))


def _answer(model: str, dtype: str, prompts: list[list[int]], stop: list[int]) -> list[dict]:
    from vllm import LLM, SamplingParams

    from actors.rollout import EngineSpec, engine_arguments
    from actors.settings import RolloutSettings

    engine = LLM(**engine_arguments(EngineSpec(model, dtype, CONTEXT_TOKENS, RolloutSettings())))
    params = SamplingParams(
        temperature=0.0, max_tokens=NEW_TOKENS, logprobs=0, detokenize=False, stop_token_ids=stop
    )
    answers = []
    for prompt in prompts:  # one by one, as the worker is asked: the batch decides the rounding
        request = {"prompt_token_ids": prompt}
        output = engine.generate(request, params, use_tqdm=False)[0].outputs[0]
        tokens = list(output.token_ids)
        places = zip(tokens, output.logprobs, strict=True)
        answers.append({"tokens": tokens, "logprobs": [at[token].logprob for token, at in places]})
    engine.llm_engine.engine_core.shutdown()
    return answers


if __name__ == "__main__":
    main()
