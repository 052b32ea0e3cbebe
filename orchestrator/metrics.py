"""The one table of metrics: every name that may be recorded, its unit and its meaning.

Owns names, not values: whoever measures writes here what the number means first. What a name is
called in Prometheus follows from its row, by `orchestrator.prometheus`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from evaluation.items import Benchmark
from judging.errors import GavelError
from judging.verification import Rejection

# state: holds until the next value; each: of one step, and steps add up; rising: counts since the
# run began; spread: of one step, and its distribution matters.
Kind = Literal["state", "each", "rising", "spread"]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    meaning: str
    kind: Kind = "state"


# What a step's time is spent on.
SPANS = ("wait", "generate", "score", "train", "validate", "publish", "commit")

_STEP_METRICS = (
    Metric("reward/mean", "score", "mean score of the step's judgments, failed rewards left out"),
    Metric("reward/std", "score", "standard deviation of the same scores"),
    Metric("reward/failed", "judgments", "judgments that no reward could score", "each"),
    Metric("accuracy", "share", "sampled judgments whose verdict is the gold one"),
    Metric("parseable", "share", "sampled judgments that hold a verdict"),
    Metric("truncated", "share", "sampled judgments cut off by the token limit"),
    Metric(
        "flip_rate", "share", "pairs sampled in both orders of which verdicts name one position"
    ),
    Metric("first_position_rate", "share", "sampled verdicts that name the answer shown first"),
    Metric(
        "zero_variance_groups", "groups", "groups whose scores are all equal: no gradient", "each"
    ),
    Metric(
        "verifier_restarts", "verifiers", "died and started again since the run began", "rising"
    ),
    Metric("dropped_groups", "groups", "groups left out of training", "each"),
    Metric("groups", "groups", "groups trained on", "each"),
    Metric("consistent_accuracy", "share", "pairs sampled in both orders and judged rightly twice"),
    Metric("tie_rate", "share", "pairs sampled in both orders without a majority for an answer"),
    Metric("length_bias", "share", "sampled verdicts for the longer answer"),
    Metric("response_tokens", "tokens", "mean length of a sampled judgment"),
    Metric("prompt_tokens", "tokens", "mean length of a prompt"),
    Metric(
        "tokens",
        "tokens",
        "completion tokens generated (reinforce) or trained on (distill)",
        "each",
    ),
    Metric("tokens_per_s", "tokens/s", "tokens of the step for each second of its wall time"),
    Metric("loss", "nats", "the optimized loss, token mean over the optimizer window"),
    Metric("validation/loss", "nats", "negative log-likelihood of a token of held-out traces"),
    Metric("validation/perplexity", "", "of held-out traces: exp of their loss"),
    Metric("teacher_kl", "nats", "divergence from the teacher over its likeliest tokens, a token"),
    Metric("kl", "nats", "divergence from the frozen reference per token, as estimated"),
    Metric("clip_fraction", "share", "tokens whose probability ratio was clipped"),
    Metric("entropy", "nats", "entropy of the policy per sampled token"),
    Metric("grad_norm", "", "norm of the gradient before clipping"),
    Metric("learning_rate", "", "learning rate of the step"),
    Metric("logprob_gap", "nats", "mean |logprob(learner) - logprob(engine)| of sampled tokens"),
    # Of the ratio r = pi_learner / pi_engine of sampled tokens, before the step's first update.
    Metric("mismatch/k3_kl", "nats", "divergence of learner from engine: mean of r - 1 - log r"),
    Metric("mismatch/ratio_min", "", "least probability ratio of learner to engine"),
    Metric("mismatch/ratio_p01", "", "1st percentile of the ratio, log r within 1.1 %"),
    Metric("mismatch/ratio_p50", "", "median of the ratio, log r within 1.1 %"),
    Metric("mismatch/ratio_p99", "", "99th percentile of the ratio, log r within 1.1 %"),
    Metric("mismatch/ratio_max", "", "greatest probability ratio of learner to engine"),
    Metric("mismatch/capped", "share", "sampled tokens with a ratio above importance_cap"),
    Metric("probe_gap", "nats", "mean |logprob difference| of the probe after a publication"),
    Metric("staleness", "versions", "mean age of the weights that wrote the trained samples"),
    Metric("staleness_max", "versions", "greatest age of the weights that wrote a trained sample"),
    Metric("mixed_versions", "share", "trained samples that several weight versions wrote"),
    Metric(
        "stale_groups", "groups", "older than reinforce.max_staleness and generated again", "each"
    ),
    Metric("open_groups", "groups", "being generated or scored when the step was trained"),
    Metric("engines", "engines", "that take work; in a step's row at its end"),
    Metric(
        "engine_restarts", "engines", "died or hung and started again since the run began", "rising"
    ),
    Metric("learner_restarts", "", "times that the learners died and were started again", "rising"),
    Metric("weight_version", "version", "weights after the step"),
)
_TIME_METRICS = (
    Metric("time/wait_s", "s", "time in which the learners had to wait for rollouts"),
    Metric("time/generate_s", "s", "time in which rollouts were generated"),
    Metric("time/score_s", "s", "time in which judgments were parsed and scored"),
    Metric("time/score_alone_s", "s", "time of it in which nothing was generated any more"),
    Metric("time/train_s", "s", "time in which the learners stepped"),
    Metric(
        "time/validate_s", "s", "time in which the learners measured the loss of held-out traces"
    ),
    Metric("time/publish_s", "s", "time in which weights went to the engines"),
    Metric("time/commit_s", "s", "time in which the step was written down"),
    Metric("time/other_s", "s", "the step's time in none of these"),
    Metric("time/step_s", "s", "wall time of the step", "spread"),
)
_EVALUATION_METRICS = (
    *(
        Metric(f"eval/{name}", "share", f"score on {name}, greedily in both orders")
        for name in get_args(Benchmark)
    ),
    Metric("eval/pairs", "pairs", "held-out pairs judged in both orders, greedily"),
    Metric("eval/accuracy", "share", "gold verdicts over both orders"),
    Metric("eval/accuracy_low", "share", "lower end of the accuracy's 95 % interval"),
    Metric("eval/accuracy_high", "share", "upper end of the accuracy's 95 % interval"),
    Metric("eval/accuracy_first_order", "share", "gold verdicts in one seeded order of each pair"),
    Metric("eval/consistent_accuracy", "share", "pairs judged rightly in both orders"),
    Metric("eval/flip_rate", "share", "pairs of which both verdicts name the same position"),
    Metric("eval/first_position_rate", "share", "verdicts that name the answer shown first"),
    Metric("eval/parseable", "share", "judgments that hold a verdict"),
    Metric("eval/mean_tokens", "tokens", "mean length of a judgment"),
    Metric("eval/length_bias", "share", "verdicts for the longer answer"),
)

_SYNTHESIS_METRICS = (
    Metric("synthesis/pairs", "pairs", "pairs that were asked about, and are decided"),
    Metric("synthesis/kept", "share", "of these, with a trace that is kept"),
    Metric("synthesis/rejected", "pairs", "of these, without one in any pass"),
    Metric("synthesis/failed", "pairs", "of these, that no teacher answered"),
    Metric("synthesis/requests", "requests", "tries that were sent to teachers"),
    Metric("synthesis/answers", "answers", "that teachers gave, without those from the cache"),
    Metric("synthesis/input_tokens", "tokens", "that teachers read"),
    Metric("synthesis/output_tokens", "tokens", "that teachers wrote"),
    Metric("synthesis/cost_usd", "USD", "what it cost by synthesize.prices"),
    *(
        Metric(f"synthesis/rejections/{why.value}", "answers", f"rejected for {why.value}")
        for why in Rejection
    ),
)

# Of the run as it stands; in no step's row, but shown while the run goes on.
RUN_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("run/phase", "", "number of the phase that goes on, from 1"),
        Metric("run/step", "", "step of the phase that was committed last"),
        Metric("run/total_steps", "", "steps that the phase has"),
        Metric("run/last_commit_timestamp", "s", "Unix time at which a step was committed last"),
    )
}
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (*_STEP_METRICS, *_TIME_METRICS, *_EVALUATION_METRICS, *_SYNTHESIS_METRICS)
}
# Metrics that each reward of the mix has, by its name, and each of its components.
OF_EACH_REWARD: Mapping[str, Metric] = {
    "weight": Metric("", "", "weight of the reward {0} in the score"),
    "failed": Metric("", "share", "judgments that the reward {0} failed for"),
    "skipped": Metric("", "share", "judgments that the reward {0} does not apply to"),
    "score": Metric("", "score", "mean score of the reward {0}"),
}
COMPONENT = Metric("", "", "mean component {1} of the reward {0}")  # what else a reward tells
KEPT = "synthesis/kept/"  # before a source and the number of a pass
_KEPT = Metric("", "share", "pairs of {0} with a trace that is kept, of those asked about in it")


def metric(name: str) -> Metric:
    """The metric of that name, declared or of a reward; raises KeyError if there is none."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith(KEPT):
        return replace(_KEPT, name=name, meaning=_KEPT.meaning.format(name.removeprefix(KEPT)))
    family, _, rest = name.partition("/")
    reward, _, part = rest.partition("/")
    if family != "reward" or not reward or not part:
        raise KeyError(name)
    row = OF_EACH_REWARD.get(part, COMPONENT)
    return replace(row, name=name, meaning=row.meaning.format(reward, part))


def is_declared(name: str) -> bool:
    try:
        metric(name)
    except KeyError:
        return False
    return True


def check_metrics(metrics: Mapping[str, float], where: str) -> None:
    """Refuses what must never be written down as a measurement.

    Raises:
        ValueError: a name that the table does not declare; a mistake in the program.
        GavelError: a value that is no finite number; training has gone astray.
    """
    if unknown := sorted(name for name in metrics if not is_declared(name)):
        raise ValueError(f"{where}: metrics that orchestrator/metrics.py does not name: {unknown}")
    if broken := {name: value for name, value in metrics.items() if not math.isfinite(value)}:
        named = ", ".join(f"{name} is {value}" for name, value in broken.items())
        raise GavelError(
            f"{where}: {named}: the weights are no longer sound; go back to an earlier "
            "checkpoint with a lower learning rate or a lower gradient_clip"
        )
