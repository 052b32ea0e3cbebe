"""The trainer: one DeepSpeed rank that holds the policy and steps it.

It knows nothing of Ray. All ranks call the same methods in the same order, each with its own
window. The weights live on from phase to phase; a phase begins with a fresh optimizer state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from learning.mismatch import Mismatch
from learning.objectives import PolicyObjective, Sums, distill_loss, distill_topk_loss
from learning.packing import MicroBatch, build_micro_batch
from learning.policy import Policy, load_model, recompute_activations
from learning.schedule import learning_rate
from learning.settings import (
    DistillSettings,
    Dtype,
    GrpoSettings,
    LearnerSettings,
    LogitSettings,
    ModelSpec,
    OptimizerSettings,
)
from learning.trainer_state import read_state, set_steps_done, torch_optimizer, write_state
from learning.windows import TrainSample, Window

TRAINER_STATE = "trainer"  # folder in a checkpoint


class Trainer:
    """Life: construct on every rank, `begin_phase`, steps, `begin_phase`, steps, ..."""

    def __init__(
        self, spec: ModelSpec, settings: LearnerSettings, *, temperature: float, seed: int
    ) -> None:
        self._spec, self._settings, self._temperature = spec, settings, temperature
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        with _partitioned_loading(settings, spec):
            model = self._load(spec.weights or spec.path)
        if settings.gradient_checkpointing:
            recompute_activations(model)
        self._engine = _deepspeed_engine(Policy(model, temperature), settings, spec.dtype)
        self._reference: torch.nn.Module | None = None
        self._objective: PolicyObjective | None = None
        self._logits: LogitSettings | None = None
        self._optimizer_settings = OptimizerSettings()
        self._total_steps = self._steps_done = 0

    @property
    def _policy(self) -> Policy:
        return self._engine.module

    @property
    def ranks(self) -> int:
        return dist.get_world_size()

    # ---- phases ---------------------------------------------------------------------------

    def begin_distill(self, settings: DistillSettings, total_steps: int) -> None:
        """Starts a phase of `total_steps` supervised optimizer steps."""
        self._begin(settings.optimizer, total_steps)
        self._policy.temperature = 1.0  # the likelihood is that of the model itself
        self._logits = settings.logits
        self._reference = self._objective = None

    def begin_reinforce(self, settings: GrpoSettings, total_steps: int, reference: str) -> None:
        """Starts a phase of `total_steps` policy steps; `reference` is a checkpoint folder.

        The frozen reference is loaded from there only where the KL term has a weight.
        """
        self._begin(settings.optimizer, total_steps)
        self._policy.temperature = self._temperature
        self._objective = PolicyObjective(settings)
        self._reference = self._load_reference(reference) if settings.kl_coef > 0 else None

    def _begin(self, optimizer: OptimizerSettings, total_steps: int) -> None:
        self._optimizer_settings = optimizer
        self._total_steps, self._steps_done = total_steps, 0
        for group in self._engine.optimizer.param_groups:
            group["betas"], group["weight_decay"] = optimizer.betas, optimizer.weight_decay
        moments = torch_optimizer(self._engine)
        for state in moments.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
        set_steps_done(moments, 0)

    def resume(self, folder: Path) -> None:
        """Goes on in the phase just begun where the checkpoint in `folder` was written.

        The weights are those that the trainer was made with: give it the same folder.

        Raises:
            ValueError: the checkpoint has no trainer state, or not this model's.
        """
        self._steps_done = read_state(self._engine, folder / TRAINER_STATE)

    def _load(self, path: str) -> Any:
        return load_model(
            path,
            dtype=self._spec.dtype,
            packing=self._settings.packing,
            revision=self._spec.revision if path == self._spec.path else None,
            trust_remote_code=self._spec.trust_remote_code,
        )

    def _load_reference(self, path: str) -> torch.nn.Module:
        with _partitioned_loading(self._settings, self._spec):
            model = self._load(path)
        policy = Policy(model.requires_grad_(False).eval(), self._temperature)
        if self._settings.zero_stage == 3:
            import deepspeed

            config = _deepspeed_config(self._settings, self._spec.dtype)
            return deepspeed.initialize(model=policy, config=config)[0]
        return policy.to(self._device)

    # ---- steps ----------------------------------------------------------------------------

    def distill_step(self, window: Window) -> dict[str, float]:
        """One supervised optimizer step.

        Returns:
            loss (nats a token), grad_norm, learning_rate, and teacher_kl (nats a token) where a
            teacher's numbers are learned from; the same on every rank.
        """

        def loss_of(batch: MicroBatch, _: int) -> tuple[torch.Tensor, Sums]:
            logprobs = self._engine(batch)
            if self._logits is None:
                return distill_loss(logprobs, batch, window, self.ranks), {}
            return distill_topk_loss(logprobs, batch, window, self.ranks, self._logits)

        return self._optimize(window, loss_of)

    @torch.no_grad()
    def distill_loss(self, window: Window) -> float:
        """The loss of the completions by the weights as they are, which stay so.

        Returns:
            Negative log-likelihood in nats a token; the same on every rank.
        """
        total = torch.zeros((), device=self._device)
        for samples in window.micro_batches:
            batch = self._build([replace(sample, teacher=None) for sample in samples])
            total -= (self._engine(batch) * batch.mask).sum()
        return _all_ranks_mean({"loss": total}, window.total_tokens)["loss"]

    def policy_step(self, windows: Sequence[Window]) -> dict[str, float]:
        """One rollout step: an optimizer step for each window, in order.

        The denominators of the ratio are of the policy before the first update. The first window's
        are its own forward pass; the others need a pass of their own.

        Returns:
            loss, kl, entropy (nats a token), clip_fraction, grad_norm, learning_rate: means over
            the windows. logprob_gap and mismatch/*: see `Mismatch.metrics`, over the tokens of all
            windows, by the policy before the first update; with `old_logprobs: engine`, which takes
            no pass to know it, over the first window alone. The same on every rank.
        """
        settings = self._require_objective().settings
        before = settings.old_logprobs == "learner"
        later = [self._score_window(window) if before else None for window in windows[1:]]
        mismatch = Mismatch(settings.importance_cap, self._device)
        metrics = [
            self._policy_window(window, old, mismatch if before or index == 0 else None)
            for index, (window, old) in enumerate(zip(windows, [None, *later], strict=True))
        ]
        result = {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}
        dist.all_reduce(mismatch.sums)
        dist.all_reduce(mismatch.extremes, op=dist.ReduceOp.MAX)
        return result | mismatch.metrics()

    def _policy_window(
        self, window: Window, old: list[torch.Tensor] | None, mismatch: Mismatch | None
    ) -> dict[str, float]:
        objective = self._require_objective()

        def loss_of(batch: MicroBatch, index: int) -> tuple[torch.Tensor, Sums]:
            with torch.no_grad():
                reference = self._reference(batch) if self._reference is not None else None
            logprobs = self._engine(batch)
            before = logprobs.detach() if old is None else old[index]
            if mismatch is not None:
                mismatch.add(before, batch.rollout_logprobs, batch.mask)
            from_engine = objective.settings.old_logprobs == "engine"
            denominator = batch.rollout_logprobs if from_engine else before
            return objective.loss(logprobs, denominator, reference, batch, window, self.ranks)

        return self._optimize(window, loss_of)

    @torch.no_grad()
    def _score_window(self, window: Window) -> list[torch.Tensor]:
        return [self._engine(self._build(samples)) for samples in window.micro_batches]

    def _optimize(
        self,
        window: Window,
        loss_of: Callable[[MicroBatch, int], tuple[torch.Tensor, Sums]],
    ) -> dict[str, float]:
        rate = learning_rate(self._steps_done, self._total_steps, self._optimizer_settings)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        norm = 0.0
        totals: Sums = {"loss": torch.zeros((), device=self._device)}
        last = len(window.micro_batches) - 1
        for index, samples in enumerate(window.micro_batches):
            self._engine.set_gradient_accumulation_boundary(index == last)
            loss, sums = loss_of(self._build(samples), index)
            self._engine.backward(loss, scale_wrt_gas=False)
            norm = self._grad_norm() if index == last else 0.0
            self._engine.step()
            totals["loss"] += loss.detach() / self.ranks * window.total_tokens
            for name, value in sums.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
        self._steps_done += 1
        means = _all_ranks_mean(totals, window.total_tokens)
        recorded = self._engine.get_global_grad_norm() or norm
        return means | {"grad_norm": float(recorded), "learning_rate": rate}

    def _build(self, samples: Sequence[TrainSample]) -> MicroBatch:
        return build_micro_batch(samples, packing=self._settings.packing).to(self._device)

    def _grad_norm(self) -> float:
        """The gradient norm where DeepSpeed keeps none: ZeRO stage 0 in fp32."""
        if self._settings.zero_stage > 0:
            return 0.0
        grads = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0

    def _require_objective(self) -> PolicyObjective:
        if self._objective is None:
            raise RuntimeError("policy_step before begin_reinforce")
        return self._objective

    # ---- what others need of the weights ----------------------------------------------------

    @torch.no_grad()
    def score(self, samples: Sequence[TrainSample], *, temperature: float) -> list[list[float]]:
        """The model's log-probabilities of each sample's completion tokens at `temperature`."""
        batch, before = self._build(samples), self._policy.temperature
        self._policy.temperature = temperature
        logprobs = self._engine(batch)
        self._policy.temperature = before
        return [
            row[: len(sample.completion_ids)].tolist()
            for row, sample in zip(logprobs, samples, strict=True)
        ]

    def parameter_shapes(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of every parameter in the checkpoint's own naming and order."""
        return [
            (name, str(parameter.dtype).removeprefix("torch."), _full_shape(parameter))
            for name, parameter in self._named_parameters()
        ]

    def parameters(self) -> Iterator[torch.Tensor]:
        """The full parameters, in the order of `parameter_shapes`; all ranks must iterate."""
        for _, parameter in self._named_parameters():
            with _gathered(parameter, self._settings.zero_stage):
                full = parameter.detach()
                # What ZeRO-3 gathered does not outlive the gathering; a receiver may hold on.
                yield full.clone() if self._settings.zero_stage == 3 else full

    def _named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self._engine.module.model.named_parameters()

    def save(self, folder: Path) -> None:
        """Fills `folder` with an ordinary Hugging Face checkpoint; all ranks must call.

        Its subfolder `trainer/` holds what `resume` needs besides.
        """
        names = [name for name, _, _ in self.parameter_shapes()]
        state: dict[str, torch.Tensor] = {}
        for name, parameter in zip(names, self.parameters(), strict=True):
            if dist.get_rank() == 0:
                state[name] = parameter.cpu().clone()
        if dist.get_rank() == 0:
            _write_checkpoint(self._engine.module.model, state, self._spec, folder)
        write_state(self._engine, folder / TRAINER_STATE, steps_done=self._steps_done)
        dist.barrier()


def _write_checkpoint(
    model: Any, state: dict[str, torch.Tensor], spec: ModelSpec, folder: Path
) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(folder, state_dict=state)
    AutoTokenizer.from_pretrained(
        spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    ).save_pretrained(folder)


def _all_ranks_mean(sums: Sums, total_tokens: int) -> dict[str, float]:
    stacked = torch.stack([value.float() for value in sums.values()])
    dist.all_reduce(stacked)
    return dict(zip(sums, (stacked / total_tokens).tolist(), strict=True))


# ---- DeepSpeed ---------------------------------------------------------------------------------


def _deepspeed_config(settings: LearnerSettings, dtype: Dtype) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    # Gathering several parameters DeepSpeed waits for the last alone. NCCL finishes in order, but
    # gloo does not: parameters would be read, or written to, before they have arrived.
    zero["stage3_allgather_sequential"] = not torch.cuda.is_available()
    if _offloads(settings):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # windows vary; the boundary is set by hand
        "gradient_clipping": settings.gradient_clip,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _deepspeed_engine(policy: Policy, settings: LearnerSettings, dtype: Dtype) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=_optimizer(policy, settings),
        config=_deepspeed_config(settings, dtype),
        dist_init_required=False,
    )
    return engine


def _optimizer(policy: Policy, settings: LearnerSettings) -> torch.optim.Optimizer:
    parameters = list(policy.parameters())
    if _offloads(settings):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameters, lr=0.0)
    return torch.optim.AdamW(parameters, lr=0.0, fused=True)


def _offloads(settings: LearnerSettings) -> bool:
    """On a CPU the states are in host memory anyway, and the optimizer stays the same."""
    return settings.offload_optimizer and torch.cuda.is_available()


def _partitioned_loading(settings: LearnerSettings, spec: ModelSpec) -> Any:
    """Makes transformers load shard by shard under ZeRO-3, so that no rank holds a full model."""
    import contextlib

    if settings.zero_stage < 3:
        return contextlib.nullcontext()
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    return contextlib.closing(_Unset(HfDeepSpeedConfig(_deepspeed_config(settings, spec.dtype))))


class _Unset:
    """Keeps transformers' ZeRO-3 flag, a weak global reference, alive until closed."""

    def __init__(self, flag: Any) -> None:
        self._flag = flag

    def close(self) -> None:
        self._flag = None


def _gathered(parameter: torch.nn.Parameter, stage: int) -> Any:
    import contextlib

    if stage < 3:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def _full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
