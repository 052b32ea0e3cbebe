"""`gavel serve`: a judge behind HTTP, until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from judging.errors import ConfigurationError

if TYPE_CHECKING:
    from serving.engine import ModelSettings
    from serving.judge import JudgeSettings
    from serving.settings import ServeSettings

_HANG_S = 120.0  # at least, for a step of the engine: the first ones compile
_HELP = """\
Serves a judge over HTTP: POST /v1/judge, /v1/rank, /v1/score and /v1/rewards/openrlhf, GET /health,
/metrics and /openapi.json. Needs no Ray.

  gavel serve runs/RUN/checkpoints/STEP
  GAVEL_SERVE_TOKEN=secret gavel serve MODEL --host 0.0.0.0 --votes 5

SIGTERM: takes nothing more, finishes what it took within --grace-s, exit status 0. Ctrl-C ends it
at once."""


def model_arguments() -> argparse.ArgumentParser:
    """Which model, and how it judges; a parent of a command's parser."""
    parser = argparse.ArgumentParser(add_help=False)
    model = parser.add_argument_group("the model")
    parser.add_argument("model", metavar="MODEL", help="folder, Hugging Face id or URL")
    model.add_argument(
        "--template", help="default: that of the run whose checkpoint it is, else instruct"
    )
    model.add_argument(
        "--dtype", choices=("bf16", "fp32"), help="default: that of the run, else bf16"
    )
    model.add_argument(
        "--context-tokens", type=int, metavar="N", help="default: what the model takes"
    )
    model.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="of a judgment (default: as in the run, else 8192)",
    )
    model.add_argument("--temperature", type=float, default=1.0, help="of several votes")
    model.add_argument("--max-sequences", type=int, default=256, metavar="N", help="at once")
    model.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs")
    model.add_argument("--gpu-memory", type=float, default=0.9, metavar="SHARE", help="for vLLM")
    model.add_argument("--cuda-graphs", action="store_true", help="slower to start, then faster")
    model.add_argument("--cpu-threads", type=int, metavar="N", help="where there is no GPU")
    model.add_argument("--kv-cache-gib", type=float, default=1.0, help="where there is no GPU")
    model.add_argument("--revision", help="of a Hugging Face id")
    model.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    judging = parser.add_argument_group("how it judges")
    judging.add_argument("--votes", type=int, default=1, help="in each order; one is greedy")
    judging.add_argument("--orders", choices=("both", "one"), default="both")
    judging.add_argument("--seed", type=int, default=0)
    return parser


def add_parser(commands: Any) -> None:
    from serving.settings import ServeSettings

    default = ServeSettings()
    serve = commands.add_parser(
        "serve",
        parents=[model_arguments()],
        help="serve a judge over HTTP",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serve.add_argument("--host", default="127.0.0.1", help="beyond loopback a token is needed")
    serve.add_argument("--port", type=int, default=8000, help="0: a free one")
    serve.add_argument("--max-candidates", type=int, default=default.max_candidates, metavar="N")
    serve.add_argument(
        "--max-concurrency",
        type=int,
        default=default.max_concurrency,
        metavar="N",
        help=f"requests judged at the same time (default: {default.max_concurrency})",
    )
    serve.add_argument(
        "--max-queue",
        type=int,
        default=default.max_queue,
        metavar="N",
        help=f"that wait; beyond it 429 (default: {default.max_queue})",
    )
    serve.add_argument(
        "--max-body-kib", type=int, default=default.max_body_bytes // 1024, metavar="N"
    )
    serve.add_argument("--deadline-s", type=float, default=default.deadline_s, help="of a request")
    serve.add_argument("--grace-s", type=float, default=default.grace_s, help="after SIGTERM")


def model_settings(options: argparse.Namespace) -> ModelSettings:
    """Raises ConfigurationError for a number that is out of its range."""
    from actors.settings import RolloutSettings
    from serving.engine import ModelSettings

    _take_over(options)
    check_positive(
        options,
        ("max_new_tokens", "temperature", "max_sequences", "tensor_parallel", "kv_cache_gib"),
    )
    for name in ("context_tokens", "cpu_threads"):
        if getattr(options, name) is not None:
            check_positive(options, (name,))
    if not 0 < options.gpu_memory <= 1:
        raise ConfigurationError(f"--gpu-memory is {options.gpu_memory:g}: give a share up to 1")
    return ModelSettings(
        path=options.model,
        template=options.template,
        dtype=options.dtype,
        context_tokens=options.context_tokens,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        engine=RolloutSettings(
            tensor_parallel=options.tensor_parallel,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
            max_concurrent_sequences=options.max_sequences,
            kv_cache_gib=options.kv_cache_gib,
            gpu_memory_utilization=options.gpu_memory,
            cpu_threads=options.cpu_threads or len(os.sched_getaffinity(0)),
            enforce_eager=not options.cuda_graphs,
        ),
    )


def _take_over(options: argparse.Namespace) -> None:
    """What is not said is as the run that trained the model had it."""
    from orchestrator.trained_by import run_sections_of

    run = run_sections_of(options.model)
    for name, section, key, default in (
        ("template", "judge", "template", "instruct"),
        ("dtype", "model", "dtype", "bf16"),
        ("max_new_tokens", "rollout", "max_new_tokens", 8192),
    ):
        if getattr(options, name) is None:
            setattr(options, name, run.get(section, {}).get(key, default))


def judge_settings(options: argparse.Namespace) -> JudgeSettings:
    """Raises ConfigurationError as `model_settings`."""
    from serving.judge import JudgeSettings

    check_positive(options, ("votes",))
    if options.seed < 0:
        raise ConfigurationError(f"--seed is {options.seed}: give 0 or more")
    return JudgeSettings(votes=options.votes, orders=options.orders, seed=options.seed)


def check_positive(options: argparse.Namespace, names: tuple[str, ...]) -> None:
    for name in names:
        number = getattr(options, name)
        if not number > 0:
            flag = name.replace("_", "-")
            raise ConfigurationError(f"--{flag} is {number:g}: give more than 0")


def run_command(options: argparse.Namespace) -> int:
    """Serves; returns the exit status. Raises ConfigurationError before anything is started."""
    from serving.server import bind
    from serving.settings import TOKEN_VARIABLE, check_binding

    settings, model = _serve_settings(options), model_settings(options)
    token = os.environ.get(TOKEN_VARIABLE)
    check_binding(options.host, token)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)  # that torch gives when imported
    with bind(options.host, options.port) as listener:
        return asyncio.run(_serve(model, settings, listener, token))


def _serve_settings(options: argparse.Namespace) -> ServeSettings:
    from serving.settings import ServeSettings

    check_positive(
        options, ("max_concurrency", "max_candidates", "max_body_kib", "deadline_s", "grace_s")
    )
    if options.max_queue < 0:
        raise ConfigurationError(f"--max-queue is {options.max_queue}: give 0 or more")
    judge = judge_settings(options)
    return ServeSettings(
        judge=judge,
        max_concurrency=options.max_concurrency,
        max_queue=options.max_queue,
        max_body_bytes=options.max_body_kib * 1024,
        max_candidates=options.max_candidates,
        max_votes=max(judge.votes, ServeSettings().max_votes),
        deadline_s=options.deadline_s,
        grace_s=options.grace_s,
    )


async def _serve(
    model: ModelSettings, settings: ServeSettings, listener: Any, token: str | None
) -> int:
    from serving.app import make_app
    from serving.engine import Engine, make_judge
    from serving.gate import Gate
    from serving.metrics import MeasuredGenerate, Metrics
    from serving.server import run_server

    gate = Gate(settings.max_concurrency, settings.max_queue)
    metrics = Metrics(gate)
    engine = Engine(model)
    judge = make_judge(model, MeasuredGenerate(engine, metrics), engine.context_tokens)
    app = make_app(judge, settings, gate, metrics, token=token)
    host, port = listener.getsockname()[:2]

    def say_ready() -> None:
        host_in_url = f"[{host}]" if ":" in host else host
        print(f"gavel: {model.path} at http://{host_in_url}:{port}", file=sys.stderr, flush=True)

    await engine.start()
    try:
        return await run_server(
            app,
            gate,
            listener,
            grace_s=settings.grace_s,
            engine_died=lambda: engine.died(max(settings.deadline_s, _HANG_S)),
            on_ready=say_ready,
        )
    finally:
        await engine.stop()
