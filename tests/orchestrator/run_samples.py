"""Records of an imaginary run, for the tests of what a run leaves behind."""

from dataclasses import replace

from evaluation.metrics import EvaluationResult
from orchestrator.journal_records import StepCommit
from orchestrator.measurements import EvaluatedPhase, Evaluation
from orchestrator.rundir import TraceRecord


def evaluation(phase: EvaluatedPhase, step: int, accuracy: float, **changes) -> Evaluation:
    result = EvaluationResult(
        pairs=200,
        accuracy=accuracy,
        accuracy_first_order=accuracy + 0.01,
        consistent_accuracy=accuracy - 0.1,
        flip_rate=0.2,
        first_position_rate=0.52,
        parseable=0.98,
        mean_tokens=131.2,
        length_bias=0.01,
        accuracy_interval=(accuracy - 0.05, accuracy + 0.05),
    )
    phases = {"base": 0, "distill": 2, "reinforce": 4}  # as in the quickstart
    index = changes.pop("made_in", phases[phase])
    trained_in = changes.pop("trained_in", None)
    result = replace(result, **changes)
    return Evaluation(phase, step, result, index, trained_in=trained_in)


def trace_record(number: int = 0, text: str = "<answer>[[A]]</answer>", **changes) -> TraceRecord:
    fields = {
        "presentation_uid": f"pair{number}/chosen_first",
        "order": "chosen_first",
        "sample": 0,
        "question": "Which is the capital of Peru?",
        "gold": "A",
        "verdict": "A",
        "reason": None,
        "status": "ok",
        "score": 1.0,
        "components": {"verdict": 1.0},
        "info": {},
        "text": text,
        "tokens": 9,
        "finish_reason": "stop",
        "seed": 7,
        "weight_version_min": 3,
        "weight_version_max": 3,
    }
    return TraceRecord(**{**fields, **changes})


def step_commit(step: int, phase: int = 0, **changes) -> StepCommit:
    fields = {
        "phase": phase,
        "kind": "distill",
        "step": step,
        "weight_version": step,
        "consumed": (f"pair{step}", f"pair{step + 1}"),
        "drawn": 2 * step,
        "metrics": {"loss": 1.0 / step},
        "batch_hash": None,
        "committed_at_s": 1000.0 + step,
    }
    return StepCommit(**{**fields, **changes})
