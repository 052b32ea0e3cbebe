"""How much of the raw engine's speed a served judge keeps: tokens per second on the same prompts.

    python benchmarks/serving_speed.py MODEL [--pairs 1000] [--clients 64] [--votes 1] [--rounds 2]
        [--template compact] [--dtype fp32] [--max-new-tokens 64] [--cpu-threads N] [--json FILE]

In turn, each in a process of its own: vLLM alone, given all prompts at once, with room for as many
sequences as the clients have in flight; and `gavel serve`, which so many clients ask for both
orders of each pair. Both are timed without their start, on problems of the quickstart's kind. The
clients take their share of the same cores. Prints each round's tokens per second, the ratio of the
medians and the server's overhead: what is neither queue nor generation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from judging.quickstart import QuickstartTask, generate
from judging.records import PreferencePair

ANSWER_S = 120.0
ORDERS = 2


def main() -> None:
    options = _options()
    if options.raw:
        print(json.dumps(raw(options)))
        return
    found: dict[str, list[float]] = {"engine": [], "gavel serve": []}
    overhead_ms: list[float] = []
    for _ in range(options.rounds):
        found["engine"].append(alone(options))
        with served(options) as url:
            speed, overheads = asyncio.run(ask_all(url, options))
        found["gavel serve"].append(speed)
        overhead_ms += overheads
    result = {
        "clients": options.clients,
        "tokens_per_s": {name: [round(each, 1) for each in found[name]] for name in found},
        "ratio": round(median(found["gavel serve"]) / median(found["engine"]), 3),
        "overhead_ms": {
            name: round(float(np.quantile(overhead_ms, share)), 2)
            for name, share in (("p50", 0.5), ("p99", 0.99))
        },
    }
    print(text := json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(text + "\n")


def pairs_of(options: argparse.Namespace) -> tuple[PreferencePair, ...]:
    task = QuickstartTask(distill_pairs=1, reinforce_pairs=2, heldout_pairs=options.pairs, seed=11)
    return generate(task).heldout


def alone(options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--raw"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(done.splitlines()[-1])


def raw(options: argparse.Namespace) -> float:
    """Tokens per second of vLLM alone, on the prompts that the server makes."""
    from actors.environment import engine_environment
    from actors.settings import RolloutSettings

    settings = RolloutSettings(
        max_new_tokens=options.max_new_tokens,
        max_concurrent_sequences=ORDERS * options.votes * options.clients,
        kv_cache_gib=1.0,
        cpu_threads=options.cpu_threads,
    )
    os.environ.update(engine_environment(settings))
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from actors.rollout import EngineSpec, engine_arguments
    from judging.presentation import both_orders
    from judging.prompts import load_template, tokenize_prompt

    template = load_template(options.template)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    prompts: list[Any] = [
        {"prompt_token_ids": list(tokenize_prompt(s, template.render(s), tokenizer).token_ids)}
        for pair in pairs_of(options)
        for s in both_orders(pair)
    ]
    config = json.loads((Path(options.model) / "config.json").read_text())
    tokens = config["max_position_embeddings"]
    engine = LLM(**engine_arguments(EngineSpec(options.model, options.dtype, tokens, settings)))
    stop = config["eos_token_id"]
    params = SamplingParams(
        n=options.votes,
        temperature=0.0 if options.votes == 1 else settings.temperature,
        max_tokens=options.max_new_tokens,
        stop_token_ids=stop if isinstance(stop, list) else [stop],
        detokenize=False,
    )
    began_s = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    passed_s = time.perf_counter() - began_s
    return sum(len(each.token_ids) for output in outputs for each in output.outputs) / passed_s


@contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """The URL of a server that is up."""
    command = [
        *(sys.executable, "-m", "orchestrator", "serve", options.model, "--port", "0"),
        *("--template", options.template, "--dtype", options.dtype),
        *("--max-new-tokens", str(options.max_new_tokens), "--votes", str(options.votes)),
        *("--max-sequences", str(ORDERS * options.votes * options.clients)),
        *("--max-concurrency", str(options.clients), "--cpu-threads", str(options.cpu_threads)),
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if "http://" in line:
                yield "http://" + line.partition("http://")[2].split()[0].rstrip(",;/")
                break
        else:
            raise RuntimeError(f"the server ended with status {server.wait(10)}")
    finally:
        server.terminate()
        server.communicate(timeout=60)


async def ask_all(url: str, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Tokens per second, and the milliseconds of overhead of each request."""
    left, overheads, tokens = iter(pairs_of(options)), list[float](), 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        for pair in left:
            body = {
                "conversation": [
                    {"role": turn.role, "content": turn.content} for turn in pair.conversation
                ],
                "answer_a": pair.chosen,
                "answer_b": pair.rejected,
            }
            answer = (await http.post("/v1/judge", json=body)).raise_for_status()
            tokens += sum(vote["tokens"] for vote in answer.json()["votes"])
            parts = (p.partition(";dur=") for p in answer.headers["server-timing"].split(", "))
            took_ms = {name: float(ms) for name, _, ms in parts}
            overheads.append(took_ms["total"] - took_ms["queue"] - took_ms["generation"])

    limits = httpx.Limits(max_connections=options.clients)
    settings: dict[str, Any] = {"timeout": ANSWER_S, "limits": limits, "trust_env": False}
    async with httpx.AsyncClient(base_url=url, **settings) as http:
        began_s = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(options.clients)))
        passed_s = time.perf_counter() - began_s
    return tokens / passed_s, overheads


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--votes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--template", default="compact")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--max-new-tokens", type=int, default=64)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--cpu-threads", type=int, default=cores, help="of the engine")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--raw", action="store_true", help="time the engine alone, once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
