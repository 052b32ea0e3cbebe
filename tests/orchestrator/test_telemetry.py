import io
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest
from rich.console import Console
from run_samples import evaluation, trace_record

from evaluation.items import Benchmark
from judging.errors import GavelError
from orchestrator.console import (
    STAMPED,
    Lines,
    ProgressMode,
    RunConsole,
    aside,
    duration,
    errors_with_place,
    printable,
    trimmed,
    value,
)
from orchestrator.metrics import METRICS, SPANS
from orchestrator.rundir import RunDirectory
from orchestrator.telemetry import StepTimer, Telemetry
from orchestrator.vitals import Vitals


@pytest.mark.parametrize(
    ("name", "number", "shown"),
    [
        ("synthesis/input_tokens", 18010.0, "18,010"),
        ("loss", 0.012345, "0.01235"),
        ("tokens_per_s", 3276.44, "3276"),
        ("tokens", 3276, "3,276"),
        ("reward/mean", 1.0, "+1.000"),
    ],
)
def test_counts_are_shown_whole(name, number, shown):
    assert value(name, number) == shown


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(tmp_path, "run-1")


def telemetry(run, clock, *, progress: ProgressMode = "lines", terminal=False, **settings):
    out = Console(file=io.StringIO(), width=140, force_terminal=terminal)
    shown = RunConsole(progress, console=out, clock=clock)
    made = Telemetry(run, console=shown, clock=clock, wall_clock=clock, **settings)
    return made, lambda: out.file.getvalue()  # pyright: ignore


def scalars(run) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_steps_reach_the_file_and_tensorboard(run, clock):
    with telemetry(run, clock)[0] as told:
        with told.phase("distill", 0, 2):
            for step in (1, 2):
                told.begin_step()
                told.step(step, {"loss": 1 / step})
        told.evaluation(evaluation("distill", 2, 0.75, flip_rate=None))
        with told.phase("reinforce", 1, None):
            told.step(1, {"reward/mean": 0.5})
    steps, evaluations = run.read_measurements()
    assert [(row.phase, row.phase_index, row.total_steps, row.step) for row in steps] == [
        ("distill", 0, 2, 1),
        ("distill", 0, 2, 2),
        ("reinforce", 1, None, 1),
    ]
    assert steps[1].metrics["loss"] == 0.5
    assert evaluations[0]["accuracy"] == 0.75
    drawn = scalars(run)
    assert drawn["distill/loss"] == [(1, 1.0), (2, 0.5)]
    assert drawn["reinforce/reward/mean"] == [(3, 0.5)]  # counts on over the phases
    assert drawn["eval/accuracy"] == [(2, 0.75)]
    assert "eval/flip_rate" not in drawn


def test_tensorboard_can_be_left_out(run, clock):
    with telemetry(run, clock, tensorboard=False)[0] as told, told.phase("distill", 0, 1):
        told.step(1, {"loss": 1.0})
    assert not run.tensorboard.exists()
    assert run.metrics.exists()


def test_undeclared_names_are_refused(run, clock):
    with telemetry(run, clock)[0] as told, told.phase("distill", 0, 1):
        with pytest.raises(ValueError, match="made_up"):
            told.step(1, {"loss": 1.0, "made_up": 2.0})
        with pytest.raises(ValueError, match="sleep"):
            told.span("sleep").__enter__()
    assert not run.metrics.exists()


def test_numbers_that_are_none_are_refused(run, clock):
    with (
        telemetry(run, clock)[0] as told,
        told.phase("reinforce", 0, 1),
        pytest.raises(GavelError, match="reinforce step 4: loss is nan"),
    ):
        told.step(4, {"loss": float("nan"), "kl": 0.0})
    assert not run.metrics.exists()


def test_all_names_that_telemetry_itself_records_are_declared(clock):
    timer = StepTimer(clock)
    for name in SPANS:
        with timer.span(name):
            clock.advance(1)
    assert set(timer.times()) <= set(METRICS)
    made = replace(evaluation("base", 0, 0.5), benchmarks=dict.fromkeys(get_args(Benchmark), 0.5))
    assert set(made.metrics()) == {n for n in METRICS if n[:5] == "eval/"}
    assert all(metric.meaning for metric in METRICS.values())


def test_time_of_a_step_is_divided(run, clock):
    with telemetry(run, clock)[0] as told, told.phase("reinforce", 0, 2):
        clock.advance(50)  # an evaluation, which is of no step
        told.begin_step()
        with told.span("generate"):
            clock.advance(2)
        clock.advance(0.5)
        for _ in range(3):
            with told.span("train"):
                clock.advance(1)
        recorded = told.step(1, {"tokens": 1100.0})
        told.begin_step()
        clock.advance(1)
        second = told.step(2, {})
    assert recorded["time/generate_s"] == pytest.approx(2)
    assert recorded["time/train_s"] == pytest.approx(3)
    assert recorded["time/other_s"] == pytest.approx(0.5)
    assert recorded["time/step_s"] == pytest.approx(5.5)
    assert recorded["tokens_per_s"] == pytest.approx(200)
    assert "time/train_s" not in second
    assert second["time/other_s"] == pytest.approx(1)


def test_time_in_two_spans_at_once_is_not_subtracted_twice(clock):
    timer = StepTimer(clock)
    with timer.span("generate"):
        clock.advance(1)
        with timer.span("score"):
            clock.advance(2)
        clock.advance(1)
    clock.advance(3)
    times = timer.times()
    assert times["time/generate_s"] == pytest.approx(4)
    assert times["time/score_s"] == pytest.approx(2)
    assert times["time/score_alone_s"] == 0
    assert times["time/other_s"] == pytest.approx(3)


def test_scoring_is_alone_when_nothing_is_generated_any_more(clock):
    timer = StepTimer(clock)
    with timer.span("score"):  # of a group that was done early
        clock.advance(1)
        with timer.span("generate"):
            clock.advance(2)
        with timer.span("score"):
            clock.advance(4)
    assert timer.times()["time/score_alone_s"] == pytest.approx(5)
    assert timer.times()["time/score_s"] == pytest.approx(7)


def test_span_is_measured_when_it_fails(clock):
    timer = StepTimer(clock)

    def failing_step() -> None:
        with timer.span("train"):
            clock.advance(1)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        failing_step()
    assert timer.times()["time/train_s"] == pytest.approx(1)
    assert timer.times()["time/other_s"] == pytest.approx(0)


def test_lines_show_what_a_person_follows(run, clock):
    told, shown = telemetry(run, clock)
    with told, told.phase("reinforce", 0, 61):
        told.begin_step()
        clock.advance(10)
        told.step(1, {"reward/mean": 0.25, "accuracy": 0.625, "loss": 0.01, "tokens": 8000.0})
    assert (
        "reinforce 1/61  reward +0.250  accuracy 0.625  tokens/s 800  10 min 00 s left" in shown()
    )


def test_lines_come_once_a_second_but_the_last_is_never_lost(clock):
    out = Console(file=io.StringIO(), width=120)
    lines = Lines(out, clock)
    lines.begin("distill", 100)
    for step in range(1, 101):
        lines.step(step, "", "")
        clock.advance(0.25)
    lines.end()
    text = out.file.getvalue()  # pyright: ignore
    assert [int(line.split()[1].split("/")[0]) for line in text.splitlines()[1:]] == [
        *range(1, 100, 4),
        100,
    ]


def test_every_line_of_a_log_says_run_phase_and_step(run, clock):
    out = Console(file=io.StringIO(), width=120)
    vitals = Vitals("run-1", clock)
    shown = RunConsole("lines", console=out, clock=clock, vitals=vitals)
    told = Telemetry(
        run, console=shown, vitals=vitals, clock=clock, wall_clock=clock, samples_every_steps=1
    )
    with told:
        told.say("starting learners\nand more")
        with told.phase("reinforce", 1, 61, done=20):
            told.say("replaying")
            told.begin_step()
            clock.advance(10)
            told.step(21, {"reward/mean": 0.25})
            told.samples(21, [trace_record(text="two\nlines")])
        with told.phase("evaluate", 2, None):
            told.evaluation(evaluation("reinforce", 61, 0.7))
        told.final_table([evaluation("reinforce", 61, 0.7)])
        with told.phase("distill", 3, 5):
            told.say("refused")
    lines = out.file.getvalue().splitlines()  # pyright: ignore
    taken = [STAMPED.fullmatch(line) for line in lines]
    assert all(taken), lines
    assert {line["run"] for line in taken} == {"run-1"}
    places = [(line["phase"], line["step"], line["steps"]) for line in taken]
    assert list(dict.fromkeys(places)) == [
        ("-", "-", None),
        ("reinforce", "20", "61"),
        ("reinforce", "21", "61"),
        ("evaluate", "-", None),
        ("distill", "0", "5"),
    ]
    texts = [line["text"] for line in taken]
    assert texts[:2] == ["starting learners", "and more"]
    assert "reward +0.250  6 min 40 s left" in texts
    assert any(text.startswith("│") and "two" in text for text in texts)


def test_the_error_that_ends_a_run_says_where(run, clock, capsys):
    vitals = Vitals("run-1", clock)
    told = Telemetry(run, progress="quiet", vitals=vitals)
    with (
        pytest.raises(GavelError) as raised,
        errors_with_place(vitals),
        told.phase("distill", 0, 5),
    ):
        raise GavelError("no")
    assert raised.value.place == "run-1 distill 0/5  "
    aside(vitals, "two\nlines")
    assert capsys.readouterr().err == "run-1 distill 0/5  two\nrun-1 distill 0/5  lines\n"


def test_bars_are_for_terminals(run, clock):
    told, shown = telemetry(run, clock, progress="auto", terminal=True)
    with told, told.phase("distill", 0, 2):
        told.step(1, {"loss": 0.5})
        told.step(2, {"loss": 0.25})
    assert "━" in shown()
    assert "loss 0.25" in shown()


def test_quiet_shows_the_final_table_alone(run, clock):
    told, shown = telemetry(run, clock, progress="quiet")
    with told:
        with told.phase("distill", 0, 1):
            told.say("2 pairs left out")
            told.step(1, {"loss": 0.5})
            told.samples(1, [trace_record()])
        told.evaluation(evaluation("distill", 1, 0.7))
        assert shown() == ""
        told.final_table([evaluation("base", 0, 0.5), evaluation("distill", 1, 0.7)])
    assert "distilled" in shown()


def test_final_table_shows_what_each_phase_gained(run, clock):
    told, shown = telemetry(run, clock)
    told.final_table(
        [
            evaluation("base", 0, 0.5, flip_rate=None),
            evaluation("distill", 20, 0.65),
            evaluation("reinforce", 30, 0.7),
            evaluation("reinforce", 60, 0.86),
            evaluation("distill", 62, 0.88),
        ]
    )
    rows = [line for line in shown().splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["base", "distilled", "reinforced", "distilled"]
    assert "+0.150" in rows[1]
    assert "+0.210" in rows[2]
    assert "0.860 [0.810, 0.910]" in rows[2]
    assert "+0.020" in rows[3]


def test_final_table_tells_one_distillation_from_the_next(run, clock):
    told, shown = telemetry(run, clock)
    told.final_table(
        [
            evaluation("distill", 20, 0.5, made_in=0, trained_in=0),
            evaluation("distill", 30, 0.6, made_in=1, trained_in=0),
            evaluation("distill", 60, 0.7, made_in=4, trained_in=3),
        ]
    )
    rows = [line for line in shown().splitlines() if line.startswith("│")]
    assert [row.split("│")[2].strip() for row in rows] == ["30", "60"]


def test_samples_are_few_now_and_then_and_of_different_prompts(run, clock):
    told, shown = telemetry(run, clock, samples=2, samples_every_steps=5)
    records = [trace_record(n // 2, text=f"text {n}", sample=n % 2) for n in range(8)]
    with told, told.phase("reinforce", 0, 10):
        told.samples(4, records)
        assert "text" not in shown()
        told.samples(5, records)
    assert [n for n in range(8) if f"text {n}" in shown()] == [0, 2]


def test_text_of_a_model_is_only_text(run, clock):
    told, shown = telemetry(run, clock, terminal=True, progress="lines")
    evil = "\x1b]0;owned\x07\x1b[2J[bold red]no markup[/] \ud83d \x9b31m"
    with told, told.phase("reinforce", 0, 1):
        told.samples(1, [trace_record(text=evil, question=evil, verdict=None, reason="none")])
    assert "\x1b]0" not in shown()
    assert "\x1b[2J" not in shown()
    assert "\x9b" not in shown()
    assert "[bold red]" in shown()
    shown().encode()


def test_text_helpers():
    assert printable("a\tb\nc\x00d") == "a\tb\nc\N{REPLACEMENT CHARACTER}d"
    assert trimmed("a" * 10 + "b" * 10, 6) == "aaa [...] bbb"
    assert trimmed("short", 6) == "short"
    assert [duration(s) for s in (0.4, 59.6, 3725)] == ["0 s", "1 min 00 s", "1 h 02 min"]


def test_driver_side_modules_stay_light():
    code = (
        "import sys\n"
        "import orchestrator.telemetry, orchestrator.status, orchestrator.report\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "ray", "vllm", "transformers", "deepspeed", "matplotlib", "tensorboard"}
    assert heavy.isdisjoint(done.stdout.split())


def test_tensorboard_is_written_without_torch(run):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from orchestrator.rundir import RunDirectory\n"
        "from orchestrator.telemetry import TensorBoard\n"
        "board = TensorBoard(RunDirectory(Path(sys.argv[1])))\n"
        "board.add({'loss': 0.5}, 1, 0.0)\n"
        "board.close()\n"
        "print(*sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert {"torch", "tensorflow"}.isdisjoint(done.stdout.split())
    assert scalars(run) == {"loss": [(1, 0.5)]}
