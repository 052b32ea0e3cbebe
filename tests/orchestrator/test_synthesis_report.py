"""What a synthesis came to, as people see it."""

import io
import json

from rich.console import Console

from orchestrator.metrics import METRICS, metric
from orchestrator.synthesis_report import SUMMARY, synthesis_charts, synthesis_table
from synthesis.records import Attempt, Outcome
from synthesis.tally import Tally


def outcomes():
    wrong = Attempt("chosen_first", 1, 0, "weak", "a", ("wrong_verdict", "quotes"))
    right = Attempt("chosen_first", 2, 0, "strong", "b", (), True)
    none = Attempt("chosen_first", 1, 0, "weak", "c", (), False, "status 400")
    yield Outcome("1", "sums", "kept", (wrong, right))
    yield Outcome("2", "sums", "rejected", (wrong, Attempt("chosen_first", 2, 0, "strong", "d")))
    yield Outcome("3", "", "failed", (none,))
    yield Outcome("4", "sums", "unasked")


def summary():
    teacher = {"teacher": "weak", "model": "m\x1b[31m", "answers": 2, "cost_usd": 0.0125}
    return {**Tally.of(outcomes()).tree(), "teachers": [teacher]}


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_the_table_tells_keep_rates_reasons_and_costs():
    lines = [line.split() for line in shown(synthesis_table(summary())).splitlines()]
    assert ["sums,", "pass", "1", "2", "0", "0.0%"] in lines
    assert ["sums,", "pass", "2", "2", "1", "50.0%"] in lines
    assert ["(no", "source),", "pass", "1", "1", "0", "0.0%"] in lines
    assert ["all", "4", "1", "25.0%"] in lines
    assert ["answers", "rejected:", "wrong_verdict", "2"] in lines
    assert ["pairs", "failed", "1"] in lines
    assert ["pairs", "unasked", "1"] in lines
    assert "\x1b" not in shown(synthesis_table(summary()))


def test_a_synthesis_of_nothing_has_a_table():
    assert "all" in shown(synthesis_table({**Tally().tree(), "teachers": []}))


def test_all_figures_are_metrics_that_are_declared():
    found = Tally.of(outcomes()).metrics()
    assert found["synthesis/pairs"] == 4
    assert found["synthesis/kept"] == 0.25
    assert found["synthesis/rejections/wrong_verdict"] == 2
    assert found["synthesis/kept/sums/pass_2"] == 0.5
    for name in found:
        assert metric(name).name == name
    assert "synthesis/failed" in METRICS
    odd = metric("synthesis/kept/a/{0} b/pass_1")
    assert "a/{0} b/pass_1" in odd.meaning


def test_each_phase_that_has_ended_has_a_chart(tmp_path):
    for phase, text in (("0", json.dumps(summary())), ("3", '{"passes"'), ("4", "{}")):
        folder = tmp_path / "synthesis" / phase
        folder.mkdir(parents=True)
        (folder / SUMMARY).write_text(text)
    charts = list(synthesis_charts(tmp_path))
    assert [chart.title for chart in charts] == ["Synthesized traces (phase 1)"]
    assert "wrong_verdict 2, quotes 2" in charts[0].caption
