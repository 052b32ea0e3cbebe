"""What other phases take of a synthesis, and what is planned of it."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from judging.errors import ConfigurationError, DataError
from judging.prompts import load_template
from judging.quickstart import QuickstartTask, generate
from judging.quickstart_teacher import teach
from judging.records import Presentation
from orchestrator.config_loading import config_from_tree
from orchestrator.material import synthesized_pairs
from orchestrator.rundir import RunDirectory
from orchestrator.synthesis_plan import load_pass_template
from orchestrator.synthesize import _take_up
from synthesis.dataset import DatasetFacts, write_dataset
from synthesis.ledger import Ledger
from synthesis.records import Answer, Attempt, Outcome
from synthesis.settings import Pass

PAIRS = generate(QuickstartTask()).reinforce[:6]
TEACHERS = {"own": {"uses": "builtin:quickstart"}}


def configured(*phases, form="jsonl", **changes):
    return config_from_tree(
        {
            "model": {"path": "x"},
            "data": {"path": "pairs.jsonl"},
            "judge": {"template": "compact"},
            "phases": list(phases),
            "synthesize": {
                "teachers": TEACHERS,
                "passes": [{"teacher": "own"}],
                "checks": {"weights": False},
                "format": form,
            },
            **changes,
        }
    )


def synthesized(config, run_path, index, pairs):
    """As the phase leaves it."""
    folder = RunDirectory(run_path).synthesis(index)
    folder.mkdir(parents=True)
    facts = DatasetFacts("run", "compact", {}, config.synthesize.checks, [], [False], {}, None)

    async def write():
        with Ledger(folder / "ledger.sqlite") as ledger:
            for pair in pairs:
                trace = teach(Presentation(pair, "rejected_first"))
                await ledger.answered(
                    pair.uid, "own", "m", Answer(trace), cost_nusd=0, is_from_cache=False
                )
                attempt = Attempt("rejected_first", 1, 0, "own", pair.uid, (), True)
                await ledger.decide(Outcome(pair.uid, pair.source, "kept", (attempt,)))
            template, form = load_template("compact"), config.synthesize.format
            write_dataset(folder, form, pairs, ledger, template, facts)

    asyncio.run(write())


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_distillation_takes_the_traces_of_the_phases_before_it(tmp_path, form):
    config = configured("synthesize", "synthesize", "distill", form=form)
    synthesized(config, tmp_path, 0, PAIRS[:4])
    synthesized(config, tmp_path, 1, PAIRS[2:])
    found = synthesized_pairs(config, tmp_path, config.syntheses_before(2))
    assert [pair.uid for pair in found] == [pair.uid for pair in (*PAIRS[:4], *PAIRS[2:])]
    for pair in found:
        assert pair.trace == teach(Presentation(pair, "rejected_first"))
        assert pair.trace_order == "rejected_first"
    assert synthesized_pairs(config, tmp_path, ()) == ()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_synthesis_that_kept_nothing_is_told_with_where_to_look(tmp_path, form):
    config = configured("synthesize", "distill", form=form)
    synthesized(config, tmp_path, 0, [])
    with pytest.raises(DataError, match="phase 1, synthesize, has kept no trace") as caught:
        synthesized_pairs(config, tmp_path, (0,))
    assert str(tmp_path) in str(caught.value)


def test_each_pass_has_the_judges_template_its_own_or_the_one_that_tells(tmp_path):
    config = configured("synthesize")
    assert load_pass_template(config, Pass(teacher="own")).name == "compact"
    assert load_pass_template(config, Pass(teacher="own", template="reasoning")).name == "reasoning"
    told = load_pass_template(config, Pass(teacher="own", tells_verdict=True))
    shown = Presentation(PAIRS[0], "chosen_first")
    text = " ".join(m.content for m in told.render(shown, verdict="A", failed_trace="no good"))
    assert "[[A]]" in text
    assert "no good" in text
    with pytest.raises(ConfigurationError, match="nothing"):
        load_pass_template(config, Pass(teacher="own", template="nothing"))


async def test_paid_answers_of_a_teacher_that_is_asked_otherwise_now_are_left(tmp_path):
    path = tmp_path / "undelivered-1.jsonl"
    path.write_text(json.dumps({"teacher": "strong", "key": "key", "body": "{}"}) + "\n")
    told = []
    for askers in ({}, {"strong": SimpleNamespace(service="of batches")}):
        await _take_up(tmp_path, askers, None, None, told.append)
    assert path.exists()
    assert (
        told == [f"{path}: answers of strong, which no pass asks so now: left until one does"] * 2
    )
