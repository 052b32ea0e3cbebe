"""What two keys of a configuration must not say together.

Every rule names the keys with their values, and the mend. Rules that need a machine, data or a
model's files are not here but in `preflight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from actors.urls import check_url, is_url
from evaluation.items import Benchmark
from judging.errors import ConfigurationError
from orchestrator.distill_rules import distillation, longest_trained
from orchestrator.phase_kinds import TRAINING
from orchestrator.synthesis_rules import synthesis_contradictions
from rewards.attach import check_use
from rewards.settings import RewardUse

if TYPE_CHECKING:
    from orchestrator.config import ReinforceSettings, RunConfig

_OWN_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")  # Ray's names
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def contradictions(config: RunConfig) -> list[str]:
    """All contradictions of `config`, one line each; empty if it can run."""
    rules = (
        *(_sources, _mix, _urls, _parts, _lengths, _engines, _workers, _learner, _placement),
        *(_rewards, _evaluations, _phases, distillation, synthesis_contradictions),
    )
    return [problem for rule in rules for problem in rule(config)]


def _sources(config: RunConfig) -> Iterator[str]:
    model, data = config.model, config.data
    if not config.is_driver_alone and model.path is None and model.make is None:
        yield "neither model.path nor model.make is set: set one of them"
    if model.path is not None and model.make is not None:
        yield (
            f"model.path ({model.path}) and model.make are both set: keep one of them "
            "(model.make=null takes the model from model.path)"
        )
    if model.make is not None and model.revision is not None:
        yield (
            f"model.revision ({model.revision}) names a revision on the hub, but model.make makes "
            "the model here: leave one of them out"
        )
    origins = ("path", "sources", "generate")
    given = [f"data.{name}" for name in origins if getattr(data, name) is not None]
    if not given:
        yield "none of data.path, data.sources and data.generate is set: set one of them"
    if len(given) > 1:
        both = "both" if len(given) == 2 else "all"
        yield (
            f"{' and '.join(given)} are {both} set: keep one of them "
            f"({given[-1]}=null takes the pairs from {given[0]})"
        )


def _mix(config: RunConfig) -> Iterator[str]:
    sources = config.data.sources
    if sources is None:
        return
    if not sources:
        yield "data.sources names no source: add one, e.g. {code: {path: data/code}}"
    if unfit := [name for name in sources if not _NAME.fullmatch(name)]:
        yield (
            f"data.sources.{unfit[0]}: a source's name is a letter, then letters, digits, - and _: "
            "rename it"
        )
    without = [name for name, source in sources.items() if source.weight is None]
    if 0 < len(without) < len(sources):
        yield (
            f"data.sources.{without[0]} has no weight, but other sources have one: a weight is a "
            "share against the others', so set it for every source, or for none"
        )


def _urls(config: RunConfig) -> Iterator[str]:
    for key, place in (("run.dir", config.run.dir), ("model.path", config.model.path)):
        if isinstance(place, str) and is_url(place):
            try:
                check_url(key, place)
            except ConfigurationError as error:
                yield str(error)
                continue
            if key == "run.dir" and config.store.url is None:
                yield (
                    f"run.dir ({place}) is a URL, where a private server cannot keep the journal, "
                    "and store.url is not set: set store.url to a Redis server, or run.dir to a "
                    "folder"
                )


def _parts(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.generate is not None:
        for name in ("distill_path", "heldout_path", "limit", "overlap_with"):
            if value := getattr(data, name):
                yield (
                    f"data.{name} ({value}) cannot go with data.generate, which makes every part "
                    f"itself: leave data.{name} out, or set data.path and data.generate=null"
                )
        return
    if data.distill_fraction + data.heldout_fraction > 1:
        yield (
            f"data.distill_fraction ({data.distill_fraction:g}) and data.heldout_fraction "
            f"({data.heldout_fraction:g}) sum to more than 1: lower one of them"
        )
    if data.distill_path is None and data.distill_fraction == 0:
        for index, phase in enumerate(config.phases):
            if phase.kind == "distill" and not config.syntheses_before(index):
                what, leave = "phases has distill", "leave distill out"
            elif phase.kind == "synthesize" and phase.settings.of == "distill":
                what, leave = "synthesize.of is distill", "set it to reinforce"
            else:
                continue
            yield (
                f"{what}, but data.distill_fraction is 0 and data.distill_path is not set: set one "
                f"of them, or {leave}"
            )
    if config.evaluations and data.heldout_path is None and data.heldout_fraction == 0:
        what = "phases has evaluate" if config.has_phase("evaluate") else "evaluate.every_steps"
        yield (
            f"{what}, but data.heldout_fraction is 0 and data.heldout_path is not set: set one of "
            "them, or leave it out"
        )


def _lengths(config: RunConfig) -> Iterator[str]:
    prompt, completion = config.data.max_prompt_tokens, config.completion_tokens
    key = next(key for key, tokens in config.completions.items() if tokens == completion)
    longest = f"data.max_prompt_tokens ({prompt}) + {key} ({completion})"
    context = config.model.context_tokens
    if context is not None and context < prompt + completion:
        yield (
            f"model.context_tokens ({context}) is less than {longest}: raise it to "
            f"{prompt + completion}, leave it out, or lower one of the others"
        )
    positions = config.model.make.max_position_embeddings if config.model.make else None
    if positions is not None and positions < config.context_tokens:
        reason = f"model.context_tokens ({context})" if context else longest
        yield (
            f"model.make.max_position_embeddings ({positions}) is less than {reason}: raise it "
            f"to {config.context_tokens}"
        )
    for what, tokens in longest_trained(config).items():
        if config.learner.micro_batch_tokens < tokens:
            yield (
                f"learner.micro_batch_tokens ({config.learner.micro_batch_tokens}) cannot hold one "
                f"sequence of {what}: raise it to {tokens}, or lower what else is named"
            )
    probe = config.publication.probe_tokens
    if probe >= config.context_tokens:
        yield (
            f"publication.probe_tokens ({probe}) does not fit into the context of "
            f"{config.context_tokens} tokens ({longest}): lower it below that"
        )


def _engines(config: RunConfig) -> Iterator[str]:
    rollout = config.rollout
    batched, sequences = rollout.max_batched_tokens, rollout.max_concurrent_sequences
    if batched is not None and batched < sequences:
        yield (
            f"rollout.max_batched_tokens ({batched}) is less than "
            f"rollout.max_concurrent_sequences ({sequences}), but every sequence in flight takes "
            "a token of each engine step: raise the first or lower the second"
        )


def _workers(config: RunConfig) -> Iterator[str]:
    rollout = config.rollout
    if rollout.min_workers > rollout.workers:
        yield (
            f"rollout.min_workers ({rollout.min_workers}) is more than rollout.workers "
            f"({rollout.workers}), so that nothing would ever be generated: lower the first"
        )


def _learner(config: RunConfig) -> Iterator[str]:
    learner = config.learner
    if learner.offload_optimizer and learner.zero_stage == 0:
        yield (
            "learner.offload_optimizer needs learner.zero_stage 1 or more, and it is 0: set "
            "learner.zero_stage to 1, or learner.offload_optimizer to false"
        )


def _placement(config: RunConfig) -> Iterator[str]:
    placement, rollout = config.placement, config.rollout
    for kind in ("learner", "rollout", "verifier"):
        for name in getattr(placement, kind).resources or ():
            if name in _OWN_RESOURCES:
                yield (
                    f"placement.{kind}.resources names {name}, which follows from the settings of "
                    f"the {kind}: name only custom resources of your nodes"
                )
    if placement.mode == "disaggregated":
        return
    if config.learner.ranks != rollout.workers:
        yield (
            f"placement.mode is colocated, where each learner shares its place with one rollout "
            f"worker, but learner.ranks is {config.learner.ranks} and rollout.workers "
            f"{rollout.workers}: make them the same, or set placement.mode to disaggregated"
        )
    if rollout.tensor_parallel > 1:
        yield (
            f"placement.mode is colocated, but rollout.tensor_parallel is "
            f"{rollout.tensor_parallel}: a learner shares one GPU with an engine of one GPU; set "
            "it to 1, or placement.mode to disaggregated"
        )


def _rewards(config: RunConfig) -> Iterator[str]:
    reward = config.reward
    for name, use in reward.mix.items():
        if not _NAME.fullmatch(name):
            yield f"reward.mix has a name {name!r}: use letters, digits, - and _ alone"
        try:
            check_use(use, reward.allowed_hosts)
        except ConfigurationError as error:
            yield f"reward.mix.{name}.uses: {error}"
        if use.call.call_timeout_s > use.call.timeout_s:
            yield (
                f"reward.mix.{name}.call.call_timeout_s ({use.call.call_timeout_s:g}) is more than "
                f"its timeout_s ({use.call.timeout_s:g}), which holds all calls for a judgment: "
                "lower the first or raise the second"
            )
    if config.has_phase("reinforce") and not any(_can_train(use) for use in reward.mix.values()):
        yield (
            "phases has reinforce, but no reward of reward.mix has mode train and a weight: give "
            "one of them a weight"
        )
    for index, phase in enumerate(config.phases):
        if phase.kind == "reinforce":
            for name in phase.settings.reward_weights:
                if name not in reward.mix:
                    yield (
                        f"phases[{index}].reinforce.reward_weights names {name}, which is not in "
                        f"reward.mix ({', '.join(reward.mix)}): add it there or leave it out"
                    )
            if reward.min_samples > phase.settings.group_size:
                yield (
                    f"reward.min_samples ({reward.min_samples}) is more than "
                    f"reinforce.group_size ({phase.settings.group_size}): lower the first"
                )
            if reward.order == "both" and phase.settings.mini_batch_prompts % 2:
                yield (
                    f"reward.order is both, but reinforce.mini_batch_prompts "
                    f"({phase.settings.mini_batch_prompts}) is odd, so that the two orders of a "
                    "pair would part: make it even"
                )


def _can_train(use: RewardUse) -> bool:
    return use.mode == "train" and use.weight != 0


def _evaluations(config: RunConfig) -> Iterator[str]:
    for settings in dict.fromkeys(config.evaluations):
        if "rmb" in settings.benchmarks and settings.data is None:
            yield (
                "evaluate.benchmarks has rmb, which is not on the Hugging Face hub, and "
                "evaluate.data is not set: name the folder of the benchmarks' files"
            )
        if settings.every_steps != config.evaluate.every_steps:
            yield (
                f"a phase has evaluate.every_steps ({settings.every_steps}), which is about the "
                "phases that train: set it in the section evaluate"
            )
    if (by := config.checkpoint.best_by) is not None:
        yield from _best_by(config, by)


def _best_by(config: RunConfig, by: str) -> Iterator[str]:
    kinds = [phase.kind for phase in config.phases]
    trains = [index for index, kind in enumerate(kinds) if kind in TRAINING]
    is_last = not trains or "evaluate" not in kinds[trains[0] :]
    if config.evaluate.every_steps is None and is_last:
        yield (
            f"checkpoint.best_by is {by}, but nothing is evaluated after training: set "
            "evaluate.every_steps, or add evaluate to phases"
        )
    is_benchmark = by in get_args(Benchmark)
    alike = ("max_new_tokens", "items", "data") if is_benchmark else ("max_new_tokens", "pairs")
    for name in alike:
        values = dict.fromkeys(getattr(settings, name) for settings in config.evaluations)
        if len(values) > 1:
            yield (
                f"checkpoint.best_by is {by}, but evaluate.{name} is "
                f"{' in one evaluation and '.join(map(str, values))} in another, whose scores "
                f"cannot be compared: set evaluate.{name} for all of them"
            )
    if is_benchmark:
        without = [each for each in config.evaluations if by not in each.benchmarks]
        if without:
            yield (
                f"checkpoint.best_by is {by}, which is not among evaluate.benchmarks "
                f"({', '.join(without[0].benchmarks) or 'none'}) of all evaluations: add it, or "
                "choose another"
            )


def _phases(config: RunConfig) -> Iterator[str]:
    if not config.phases:
        yield "phases is empty: list what to do, e.g. phases: [distill, reinforce, evaluate]"
    for index, phase in enumerate(config.phases):
        if phase.kind == "reinforce":
            is_section = phase.settings == config.reinforce
            name = "reinforce" if is_section else f"phases[{index}].reinforce"
            yield from _reinforce(phase.settings, name, config.learner.ranks)


def _reinforce(settings: ReinforceSettings, name: str, ranks: int) -> Iterator[str]:
    prompts, mini = settings.prompts_per_step, settings.mini_batch_prompts
    if prompts % mini:
        fits = next(n for n in range(min(mini, prompts), 0, -1) if prompts % n == 0)
        yield (
            f"{name}.prompts_per_step ({prompts}) cannot be split into optimizer steps of "
            f"{name}.mini_batch_prompts ({mini}): make the first a multiple of the second, e.g. "
            f"mini_batch_prompts {fits}"
        )
    if mini * settings.group_size < ranks:
        yield (
            f"{name}.mini_batch_prompts ({mini}) x {name}.group_size ({settings.group_size}) "
            f"samples are fewer than learner.ranks ({ranks}), so that a rank has nothing to train "
            "on: raise one of the first two or lower the third"
        )
    yield from _open_prompts(settings, name)
    if settings.importance_cap is not None and settings.old_logprobs == "engine":
        yield (
            f"{name}.importance_cap ({settings.importance_cap:g}) corrects the learner's ratios by "
            f"the engines' log-probabilities, but {name}.old_logprobs is engine, which leaves "
            "nothing to correct: set importance_cap to null, or old_logprobs to learner"
        )
    if settings.importance_cap is not None and settings.ratio == "sequence":
        yield (
            f"{name}.importance_cap ({settings.importance_cap:g}) truncates ratios of tokens, but "
            f"{name}.ratio is sequence: set importance_cap to null, or ratio to token"
        )


def _open_prompts(settings: ReinforceSettings, name: str) -> Iterator[str]:
    most, step = settings.max_open_prompts, settings.prompts_per_step
    if most is None:
        return
    if most < step:
        yield (
            f"{name}.max_open_prompts ({most}) is less than {name}.prompts_per_step ({step}), so "
            "that no step would ever have its prompts: raise it, or leave it out"
        )
    fresh = step * (settings.max_staleness + 1)
    if most > fresh:
        yield (
            f"{name}.max_open_prompts ({most}) is more than {name}.prompts_per_step ({step}) x "
            f"({name}.max_staleness ({settings.max_staleness}) + 1) = {fresh}, so that some would "
            "be too old in their step: lower it, leave it out, or raise max_staleness"
        )
