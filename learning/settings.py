"""Settings of the trainer, free of torch so that a configuration can be read without it.

Defaults are RM-R1's values (arXiv 2505.02387, appendices E and G) unless a field says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

Dtype = Literal["fp32", "bf16"]
Fraction = Annotated[float, Interval(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0.0)]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to load and how."""

    path: str  # a folder or a name on the hub; to a learner also a URL, as is `weights`
    dtype: Dtype
    revision: str | None = None
    trust_remote_code: bool = False
    weights: str | None = None  # a checkpoint folder to take the weights from instead


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule."""

    learning_rate: PositiveFloat = 1e-6  # peak
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Ge(0.0)] = 0.01
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_ratio: Fraction = 0.0  # share of the phase's optimizer steps
    min_lr_ratio: Fraction = 0.0  # where linear and cosine end, as a share of the peak


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """How the learners hold and split the model."""

    ranks: PositiveInt = 1
    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch_tokens: PositiveInt = 16384  # most tokens of one forward pass on one rank
    packing: bool = True  # sequences end to end in one row; else padded rows
    gradient_clip: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False  # optimizer states in host memory; changes nothing on a CPU
    cpu_threads: PositiveInt = 1  # of one rank, where there is no GPU
    max_restarts: Annotated[int, Ge(0)] = 3  # of all ranks together, when one died or hung


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitSettings:
    """Learning from a teacher's probabilities of the likeliest tokens at each place of a trace."""

    # policy: the weights that the phase begins with; else a model as of model.path
    teacher: str = "policy"
    top_k: Annotated[int, Interval(ge=1, le=1000)] = 20  # of it, at each place
    # Of the divergence from the teacher; the rest is that of the trace's own tokens (Hinton et al.,
    # 1503.02531, section 2).
    weight: Fraction = 0.5
    # What becomes of the teacher's probability beyond the top k. bucket: one more outcome, as which
    # the student's is counted too; renormalize: the top k are taken for all.
    tail: Literal["bucket", "renormalize"] = "bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """Supervised fine-tuning on traces, loss on the completion only."""

    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None  # ends the phase earlier
    batch_size: PositiveInt = 128  # traces in one optimizer step, over all ranks
    # Prompt and trace together; longer ones are left out and counted. None: the context in which
    # the run trains, model.context_tokens or the longest prompt and completion.
    max_tokens: PositiveInt | None = None
    validation_fraction: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0  # of the traces, by pair
    validate_every_steps: PositiveInt = 10  # and after the last step
    logits: LogitSettings | None = None  # None: the traces' tokens alone are learned
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            learning_rate=5e-6,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            schedule="cosine",
            warmup_ratio=0.03,
            min_lr_ratio=0.1,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoSettings:
    """Group-relative policy optimization and the switches that later work made standard."""

    epochs: PositiveFloat = 1.0  # over the pairs kept for reinforcement
    max_steps: PositiveInt | None = None  # rollout steps; ends the phase earlier
    prompts_per_step: PositiveInt = 1024
    mini_batch_prompts: PositiveInt = 128  # prompts of one optimizer step
    group_size: Annotated[int, Ge(2)] = 7  # samples of one prompt
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2  # above clip_low: clip-higher (DAPO, 2503.14476)
    kl_coef: Annotated[float, Ge(0.0)] = 1e-3  # 0: no reference model is held
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    normalize_std: bool = True  # False: Dr. GRPO (2503.20783)
    drop_zero_variance: bool = False  # True: dropped and replaced (DAPO)
    max_replacement_rounds: PositiveInt = 4  # rounds of fresh prompts while replacing
    ratio: Literal["token", "sequence"] = "token"  # sequence: GSPO (2507.18071)
    # Truncated importance sampling: a token weighs min(cap, pi_old / pi_engine), which corrects for
    # engines that sample from another policy than the one the clip is around, be it by rounding or
    # by age (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    # Training"; AReaL's decoupled objective, 2505.24298).
    importance_cap: PositiveFloat | None = 2.0  # None: weights of 1, as in RM-R1
    # Where the ratio's denominator is from. learner: the policy at the start of the step.
    old_logprobs: Literal["learner", "engine"] = "learner"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
