"""How much of the raw engine's speed an evaluation keeps: tokens per second on the same prompts.

    python benchmarks/eval_speed.py MODEL --bench rmb --data DIR [--limit 300] [--rounds 2]
        [--json FILE] [key=value ...]

In turn, each in a process of its own: vLLM alone, given all prompts at once, and `gavel eval` with
one engine of the same settings. Both are timed without their start. Prints each round's tokens per
second and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--bench", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--raw", action="store_true", help="time the engine alone, once")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_intermixed_args()
    if options.raw:
        print(json.dumps(raw(options)))
        return
    rounds = {"engine": [], "gavel eval": []}
    for _ in range(options.rounds):
        rounds["engine"].append(child(options))
        rounds["gavel eval"].append(evaluated(options))
    speeds = {name: [round(each, 1) for each in found] for name, found in rounds.items()}
    ratio = median(rounds["gavel eval"]) / median(rounds["engine"])
    result = {"tokens_per_s": speeds, "ratio": round(ratio, 3)}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def child(options: argparse.Namespace) -> float:
    """Tokens per second of vLLM alone."""
    done = run(__file__, *asked(options), "--raw")
    return json.loads(done.splitlines()[-1])


def evaluated(options: argparse.Namespace) -> float:
    """Tokens per second of `gavel eval`, from its first request to its last judgment."""
    with tempfile.TemporaryDirectory() as output:
        own = ("--json", "--seed", str(SEED), "--output", output)
        results = json.loads(run("-m", "orchestrator", "eval", *asked(options), *own))
    return results["tokens_now"] / results["judging_s"]


def asked(options: argparse.Namespace) -> list[str]:
    named = ["--bench", options.bench, "--data", str(options.data), "--limit", str(options.limit)]
    # A checkpoint is asked as its run asked it, which may have had several engines.
    return [options.model, *options.overrides, "rollout.workers=1", *named]


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def raw(options: argparse.Namespace) -> float:
    """Tokens per second of vLLM alone, on the prompts that `gavel eval` makes."""
    from actors.environment import engine_environment
    from orchestrator.eval_config import judge_config

    config = judge_config(options.model, options.overrides, is_here=True)
    os.environ.update(engine_environment(config.rollout))
    prompts = prompts_of(options, config)
    from vllm import LLM, SamplingParams

    from actors.rollout import EngineSpec, engine_arguments

    spec = EngineSpec(options.model, config.model.dtype, config.context_tokens, config.rollout)
    engine = LLM(**engine_arguments(spec))
    stop = json.loads((Path(options.model) / "config.json").read_text())["eos_token_id"]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=config.rollout.max_new_tokens,
        stop_token_ids=stop if isinstance(stop, list) else [stop],
        detokenize=False,
    )
    began_s = time.monotonic()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    passed_s = time.monotonic() - began_s
    return sum(len(output.outputs[0].token_ids) for output in outputs) / passed_s


def prompts_of(options: argparse.Namespace, config: Any) -> list[Any]:
    from evaluation.harness import presentations
    from judging.prompts import load_template, tokenize_prompt
    from orchestrator.benchmark_items import read_items
    from orchestrator.material import load_tokenizer

    template = load_template(config.judge.template)
    tokenizer = load_tokenizer(config, config.model.path)
    names: Any = options.bench.split(",")
    items = read_items(names, options.data, limit=options.limit, seed=SEED, say=lambda text: None)
    pairs = (each.pair for item in items for each in item.comparisons)
    made = (
        tokenize_prompt(shown, template.render(shown), tokenizer).token_ids
        for shown in presentations(pairs, protocol="both", seed=SEED)
    )
    fitting = [ids for ids in made if len(ids) <= config.data.max_prompt_tokens]
    return [{"prompt_token_ids": list(ids)} for ids in fitting]


if __name__ == "__main__":
    main()
