"""What a synthesis came to, as people see it."""

import io
import json
from dataclasses import replace

from rich.console import Console

from judging.display import printable
from orchestrator.metrics import METRICS, metric
from orchestrator.synthesis_report import (
    SUMMARY,
    synthesis_charts,
    synthesis_tables,
    synthesized,
)
from synthesis.records import Attempt, Outcome, Spending
from synthesis.settings import Price
from synthesis.spending import spending_tree
from synthesis.tally import Tally

WEAK = Spending("weak", "m\x1b[31m", 2, 2, 1500, 40, 12_500_000, 0, 0, 0)


def outcomes():
    wrong = Attempt("chosen_first", 1, 0, "weak", "a", ("wrong_verdict", "quotes"))
    right = Attempt("chosen_first", 2, 0, "strong", "b", (), True)
    none = Attempt("chosen_first", 1, 0, "weak", "c", (), False, "status 400")
    yield Outcome("1", "sums", "kept", (wrong, right))
    yield Outcome("2", "sums", "rejected", (wrong, Attempt("chosen_first", 2, 0, "strong", "d")))
    yield Outcome("3", "", "failed", (none,))
    yield Outcome("4", "sums", "unasked")


def summary():
    strong = Spending("strong", "M", 1, 1, 9, 5, 0, 0, 3, 0)
    spent = spending_tree([replace(WEAK, in_doubt=1), strong], {})
    return {**Tally.of(outcomes()).tree(), "undecided_answers": 3, **spent}


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_the_table_tells_keep_rates_reasons_and_costs():
    lines = [line.split() for line in shown(synthesis_tables(summary())).splitlines()]
    assert ["sums,", "pass", "1", "2", "0", "0.0%"] in lines
    assert ["sums,", "pass", "2", "2", "1", "50.0%"] in lines
    assert ["(no", "source),", "pass", "1", "1", "0", "0.0%"] in lines
    assert ["all", "3", "1", "33.3%"] in lines  # those that were asked about
    assert ["answers", "rejected:", "wrong_verdict", "2"] in lines
    assert ["pairs", "failed", "1"] in lines
    assert ["pairs", "unasked,", "or", "not", "to", "their", "end", "1"] in lines
    assert ["answers", "paid", "for", "whose", "pairs", "are", "not", "decided", "3"] in lines
    headings = "teacher model answers from cache in doubt input tokens output tokens USD"
    assert headings.split() in lines
    assert ["weak", printable(WEAK.model), "2", "0", "1", "1,500", "40", "0.0125"] in lines
    assert ["strong", "M", "1", "3", "0", "9", "5", "no", "prices"] in lines
    assert "\x1b" not in shown(synthesis_tables(summary()))


def test_costs_are_null_where_nobody_knows_them_and_zero_where_they_are():
    free = Price(input_usd_per_million=0.0, output_usd_per_million=0.0)
    unpaid = replace(WEAK, cost_nusd=0)
    for prices, cost_usd in ((None, None), ({}, None), ({unpaid.model: free}, 0.0)):
        found = spending_tree([unpaid], prices)
        assert found["teachers"][0]["cost_usd"] == cost_usd
        assert found["cost_usd"] == (None if prices is None else 0)
    both = spending_tree([WEAK, replace(unpaid, teacher="other", model="other")], {})
    assert (both["answers"], both["cost_usd"]) == (4, 0.0125)


def test_a_synthesis_of_nothing_has_a_table():
    summary = {**Tally().tree(), "undecided_answers": 0, **spending_tree([], None)}
    assert "all" in shown(synthesis_tables(summary))


def test_all_figures_are_metrics_that_are_declared():
    found = Tally.of(outcomes()).metrics()
    assert found["synthesis/pairs"] == 3
    assert found["synthesis/kept"] == 1 / 3
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


def test_a_folder_that_is_no_phase_is_left_alone(tmp_path):
    for name in ("0", "0-before", "old"):
        (tmp_path / "synthesis" / name).mkdir(parents=True)
        (tmp_path / "synthesis" / name / SUMMARY).write_text("{}")
    assert set(synthesized(tmp_path)) == {0}
    assert list(synthesis_charts(tmp_path)) == []  # of a summary without what is shown
