"""`gavel synthesis`: what it shows of runs that ended, and of those that did not."""

import asyncio
import json

import pytest
import yaml
from commands_here import gavel

from judging.quickstart import QuickstartTask, generate
from judging.readers import write_pairs
from synthesis.ledger import Ledger
from synthesis.records import Answer, Attempt, Outcome, Usage

PAIRS = generate(QuickstartTask()).reinforce[:4]
PRICES = {"m": {"input_usd_per_million": 3.0, "output_usd_per_million": 15.0}}
PAID, CACHED = 2_500_000, 0


@pytest.fixture
def run(tmp_path):
    """`run(answers, outcomes, prices)` is a directory: answers as (key, text, nano-dollars)."""
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)

    def make(answers, outcomes=(), prices=None, phase=0):
        tree = {
            "phases": ["synthesize"],
            "data": {
                "path": str(tmp_path / "pairs.jsonl"),
                "distill_fraction": 1.0,
                "heldout_fraction": 0.0,
            },
            "judge": {"template": "compact"},
            "synthesize": {
                "teachers": {"weak": {"uses": "openai", "model": "m", "base_url": "http://h/v1"}},
                "passes": [{"teacher": "weak"}],
                "checks": {"weights": False},
                "prices": prices,
            },
        }
        path = tmp_path / "runs" / "made"
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump(tree))
        asyncio.run(fill(path / "synthesis" / str(phase) / "ledger.sqlite", answers, outcomes))
        return path

    return make


async def fill(path, answers, outcomes):
    with Ledger(path) as ledger:
        for key, text, cost_nusd in answers:
            answer = Answer(text, usage=Usage(10, 0, 20))
            from_cache = cost_nusd == CACHED
            await ledger.answered(
                key, "weak", "m", answer, cost_nusd=cost_nusd, is_from_cache=from_cache
            )
        for outcome in outcomes:
            await ledger.decide(outcome)


def attempt(key, *rejections, order="rejected_first"):
    return Attempt(order, 1, 1, "weak", key, rejections, not rejections)


def shown(path, *options):
    status, text, errors = gavel("synthesis", str(path), *options)
    assert (status, errors) == (0, "")
    return " ".join(text.split())


def test_answers_whose_pairs_are_not_decided_are_counted_and_shown(run):
    path = run([(f"{n}", f"nonsense {n}", PAID) for n in range(5)], prices=PRICES)
    text = shown(path, "--rejected", "2")
    assert "answers paid for whose pairs are not decided 5" in text
    assert "answers whose pairs are not decided, neither kept nor rejected: 5" in text
    assert "nonsense 0" in text
    assert "nonsense 1" in text
    assert "nonsense 2" not in text
    assert "teacher weak (m)" in text
    assert f"has written no data set: gavel run --resume {path}" in text
    text = shown(path, "--why", "no_verdict")
    assert "nonsense" not in text
    assert "5 (shown without --why)" in text


def test_a_rejected_answer_is_shown_with_its_pair_reasons_and_the_right_verdict(run):
    kept = Outcome(
        PAIRS[0].uid, "sums", "kept", (attempt("a", "wrong_verdict", "quotes"), attempt("b"))
    )
    lost = Outcome(PAIRS[1].uid, "", "rejected", (attempt("c", "grammar", order="chosen_first"),))
    answers = [("a", "wrong " * 1000, PAID), ("b", "right", PAID), ("c", "[bold]odd[/bold]", PAID)]
    path = run(answers, (kept, lost), PRICES)
    (path / "synthesis/0/dataset").mkdir()
    (path / "synthesis/0/dataset/README.md").touch()
    text = shown(path)
    for part in (
        "rejected for wrong_verdict, quotes",
        f"pair {PAIRS[0].uid} (sums), which was kept by another answer",
        "asked teacher weak, pass 1, sample 2, rejected_first right verdict B answer wrong wrong",
        "(6,000 characters)",
        f"pair {PAIRS[1].uid} (no source), which was rejected: no pass had enough right answers",
        "right verdict A answer [bold]odd[/bold]",
        f"the data set: {path}/synthesis/0/dataset",
    ):
        assert part in text, part
    assert "not decided" not in text
    text = shown(path, "--why", "quotes", "--pairs")
    assert "[bold]" not in text
    question = " ".join(PAIRS[0].conversation[-1].content.split())
    told = f"question {question} answer A {PAIRS[0].rejected} answer B {PAIRS[0].chosen}"
    assert " ".join(told.split()) in text


def test_what_came_from_the_cache_and_costs_that_nobody_knows_are_told(run):
    answers = [(f"{n}", "right", CACHED) for n in range(3)]
    outcomes = [Outcome(f"{n}", "sums", "kept", (attempt(f"{n}"),)) for n in range(3)]
    path = run(answers, outcomes)
    assert "weak m 0 3 0 0 no prices" in shown(path)
    status, text, _ = gavel("synthesis", str(path), "--json")
    found = json.loads(text)
    assert (status, found["answers"], found["from_cache"], found["cost_usd"]) == (0, 0, 3, None)
    assert found["teachers"][0]["cost_usd"] is None


def test_where_a_budget_ended_it_pairs_that_were_not_asked_about_count_as_such(run):
    kept = Outcome(PAIRS[0].uid, "sums", "kept", (attempt("a"),))
    unasked = [Outcome(pair.uid, "sums", "unasked") for pair in PAIRS[1:]]
    path = run([("a", "right", PAID), ("b", "right", PAID)], [kept, *unasked], PRICES)
    text = shown(path)
    assert "all 1 1 100.0% pairs unasked, or not to their end 3" in text
    assert "answers paid for whose pairs are not decided 1" in text
    assert "weak m 2 0 20 40 0.0050" in text


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--why", "misspelt"), ["--why misspelt", "wrong_verdict, no_verdict, truncated"]),
        (("--rejected", "-1"), ["--rejected -1", "number of answers"]),
        (("--phase", "2"), ["no synthesis in phase 2", "phases with one: 3"]),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(run, options, parts):
    status, _, errors = gavel("synthesis", str(run([], phase=2)), *options)
    assert status == 2
    for part in parts:
        assert part in errors


def test_phases_count_from_one(run):
    assert "all 0 0" in shown(run([], phase=2), "--phase", "3")
