"""The data set that a synthesis leaves: rows, card, and who can read them."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from synthesis_samples import judgment, sample_answer, sample_pair

from judging.errors import DataError
from judging.prompts import load_template
from judging.readers import read_pairs
from judging.records import Message, Presentation, pair_uid
from judging.verification import TraceChecks
from synthesis.dataset import DatasetFacts, traces_file, write_dataset
from synthesis.ledger import Ledger
from synthesis.records import Attempt, Outcome

ROOT = Path(__file__).parents[2]
TEMPLATE = load_template("reasoning")
FACTS = DatasetFacts(
    name="my-run",
    template="reasoning",
    template_versions={"reasoning": "1a", "corrected": "2b"},
    checks=TraceChecks(),
    passes=["pass 1: teacher weak (m)", "pass 2: teacher strong (M), with the verdict"],
    told=[False, True],
    versions={"gavel": "0.0"},
    spent=None,
)


def odd_pair(number, text):
    """Three turns, and text that formats may stumble over."""
    turns = (Message("system", text), Message("user", "hm\r\n"), Message("assistant", "\u2028"))
    turns += (Message("user", f"{text} {number}"),)
    chosen, rejected = f"yes {text}", f"no {text}"
    uid = pair_uid(turns, chosen, rejected)
    return replace(sample_pair(), uid=uid, conversation=turns, chosen=chosen, rejected=rejected)


PAIRS = [
    *(sample_pair(number, category="sums of two") for number in range(6)),
    odd_pair(1, 'quotes " and \\ and \t, 漢字, 🦜 | pipe ~~~~ fence'),
    odd_pair(2, "---\nkey: value\n---\n"),
]


def attempt_of(pair, order, number, *, text, is_kept=True, **changes):
    key = f"{pair.uid}/{order}/{number}/{changes.get('sample', 0)}"
    teacher = "weak" if number == 1 else "strong"
    fields = {"sample": 0, "teacher": teacher, "key": key, "is_kept": is_kept, **changes}
    return Attempt(order, number, **fields), text


def outcomes():
    """Of each pair, with the texts: kept in one order, in both, with two samples, and not."""
    for index, pair in enumerate(PAIRS):
        gold = {"chosen_first": "A", "rejected_first": "B"}
        order = "rejected_first" if index % 2 else "chosen_first"
        made = [attempt_of(pair, order, 1, text=judgment(gold[order], f"trace\n{index}"))]
        state = "kept"
        if index == 2:
            made = [attempt_of(pair, o, 2, text=judgment(letter)) for o, letter in gold.items()]
        elif index == 3:
            text = judgment(gold[order], "another one")
            made.append(attempt_of(pair, order, 1, text=text, sample=1))
        elif index == 4:
            state = "rejected"
            reasons = {"is_kept": False, "rejections": ("grammar", "quotes")}
            made = [attempt_of(pair, order, 1, text="no judgment", **reasons)]
        elif index == 5:
            state, error = "failed", "status 400: \ud83e <html>"
            made = [attempt_of(pair, order, 1, text=None, is_kept=False, error=error)]
        attempts = tuple(attempt for attempt, _ in made)
        yield (
            Outcome(pair.uid, pair.source, state, attempts),
            {attempt.key: text for attempt, text in made},
        )


def fill(path, order=1):
    async def write():
        with Ledger(path) as ledger:
            for outcome, texts in list(outcomes())[::order]:
                for attempt in outcome.attempts:
                    if texts[attempt.key] is not None:
                        await ledger.answered(
                            *(attempt.key, attempt.teacher, "m", sample_answer(texts[attempt.key])),
                            cost_nusd=1_500_000,
                            is_from_cache=False,
                        )
                await ledger.decide(outcome)

    asyncio.run(write())


def made(folder, form="jsonl", order=1, facts=FACTS):
    """A data set in `folder`; its path, the number of its traces, and its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    fill(folder / "ledger.sqlite", order)
    with Ledger(folder / "ledger.sqlite") as ledger:
        count, digest = write_dataset(folder, form, PAIRS, ledger, TEMPLATE, facts)
    return traces_file(folder, form), count, digest


def jsonl(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


KEPT = [0, 1, 2, 2, 3, 3, 6, 7]  # the pairs of the traces, in order


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_rows_are_read_back_as_the_pairs_with_their_traces_and_orders(tmp_path, form):
    path, count, _ = made(tmp_path, form)
    found = list(read_pairs(path, every_trace=True))
    assert count == len(found) == len(KEPT)
    texts = {key: text for _, each in outcomes() for key, text in each.items()}
    kept = [a for outcome, _ in outcomes() for a in outcome.attempts if a.is_kept]
    for pair, index, attempt in zip(found, KEPT, kept, strict=True):
        expected = replace(PAIRS[index], trace=texts[attempt.key], trace_order=attempt.order)
        assert pair == expected
    assert [each.uid for each in read_pairs(path)] == [
        PAIRS[index].uid for index in (0, 1, 2, 3, 6, 7)
    ]


def test_jsonl_and_parquet_hold_the_same_rows(tmp_path):
    from pyarrow import parquet

    rows = jsonl(made(tmp_path / "one")[0])
    assert parquet.read_table(made(tmp_path / "other", "parquet")[0]).to_pylist() == rows
    assert [row["pass"] for row in rows] == [1, 1, 2, 2, 1, 1, 1, 1]
    assert [row["teacher"] for row in rows] == ["strong" if n == 2 else "weak" for n in KEPT]
    assert [row["category"] for row in rows[:2]] == ["sums of two"] * 2


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_same_outcomes_give_the_same_bytes_in_whatever_order_they_came(tmp_path, form):
    (path, _, digest), (again, _, same) = made(tmp_path / "a", form), made(tmp_path / "b", form, -1)
    assert digest == same
    assert path.read_bytes() == again.read_bytes()
    for name in ("rejected.jsonl", "dataset/README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == ["README.md", path.name]


def test_messages_are_the_judges_prompt_and_the_trace(tmp_path):
    for row, index in zip(jsonl(made(tmp_path)[0]), KEPT, strict=True):
        shown = Presentation(PAIRS[index], row["trace_order"])
        prompt = [{"role": m.role, "content": m.content} for m in TEMPLATE.render(shown)]
        assert row["messages"] == [*prompt, {"role": "assistant", "content": row["trace"]}]
        assert row["verdict"] == shown.gold
        assert f"[[{row['verdict']}]]" in row["trace"]


@pytest.mark.parametrize(
    ("told", "checks", "of_first", "of_second"),
    [
        ([False, True], TraceChecks(), "grammar weights quotes", "grammar weights quotes mentions"),
        ([True, False], TraceChecks(), "grammar weights quotes mentions", "grammar weights quotes"),
        (
            [False, True],
            TraceChecks(mentions=False, grammar=False),
            "weights quotes",
            "weights quotes",
        ),
    ],
)
def test_each_row_names_the_checks_that_its_trace_was_put_to(
    tmp_path, told, checks, of_first, of_second
):
    rows = jsonl(made(tmp_path, facts=replace(FACTS, told=told, checks=checks))[0])
    for row in rows:
        expected = of_first if row["pass"] == 1 else of_second
        assert row["checks"] == ["verdict", *expected.split()]


def test_what_failed_is_listed_with_why(tmp_path):
    made(tmp_path)
    rows = {row["uid"]: row for row in jsonl(tmp_path / "rejected.jsonl")}
    assert {uid: row["state"] for uid, row in rows.items()} == {
        PAIRS[4].uid: "rejected",
        PAIRS[5].uid: "failed",
    }
    assert rows[PAIRS[4].uid]["attempts"][0]["rejections"] == ["grammar", "quotes"]
    assert rows[PAIRS[5].uid]["attempts"][0]["error"].startswith("status 400")


def test_the_card_tells_how_it_was_made_and_its_header_is_yaml(tmp_path):
    path, _, _ = made(tmp_path, facts=replace(FACTS, spent="synthesize.max_requests (9) are sent"))
    card = (path.parent / "README.md").read_text("utf-8")
    _, header, body = card.split("---\n", 2)
    found = yaml.safe_load(header)
    assert found["configs"] == [{"config_name": "default", "data_files": "traces.jsonl"}]
    for part in (
        "# my-run",
        "8 reasoning traces",
        "from 8 pairs",
        "| kept | 6 |",
        "| rejected | 1 |",
        "| failed | 1 |",
        "| sums | 1 | 8 | 5 | 62.5% |",
        "| grammar | 1 |",
        "| teacher | model | answers | from cache | input tokens | output tokens | USD |",
        "| weak | m | 7 | 0 | 70 | 140 | 0.0105 |",
        "pass 2: teacher strong (M), with the verdict",
        "template corrected: version 2b",
        "grammar=True",
        "gavel 0.0",
        "It ended before all pairs were asked about: synthesize.max_requests (9) are sent.",
    ):
        assert part in body, part


def test_the_card_of_what_came_from_the_cache_tells_who_wrote_it_and_of_undecided_answers(tmp_path):
    async def write():
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            for key, is_from_cache in (("a", True), ("b", True), ("c", False)):
                answer = sample_answer(judgment("A"), usage_is_estimate=not is_from_cache)
                await ledger.answered(
                    key, "weak", "m", answer, cost_nusd=0, is_from_cache=is_from_cache
                )
            attempt = Attempt("chosen_first", 1, 0, "weak", "a", is_kept=True)
            await ledger.decide(Outcome(PAIRS[0].uid, "sums", "kept", (attempt,)))
            await ledger.decide(Outcome(PAIRS[1].uid, "sums", "unasked"))
            write_dataset(tmp_path, "jsonl", PAIRS, ledger, TEMPLATE, FACTS)

    asyncio.run(write())
    card = (tmp_path / "dataset" / "README.md").read_text("utf-8")
    for part in (
        "from 1 pairs",
        "Answers paid for whose pairs were not decided: 1.",
        "| answers | from cache | input tokens | output tokens | tokens estimated | USD |",
        "| weak | m | 1 | 2 | 10 | 20 | 1 | no prices |",
    ):
        assert part in card, part


def test_a_source_or_trace_of_odd_text_does_not_break_the_card(tmp_path):
    text = "~~~~\n# No heading\n---\n" + judgment("A")
    pair = replace(PAIRS[0], source="a | b\n# not a heading")
    attempt, _ = attempt_of(pair, "chosen_first", 1, text=text)

    async def write():
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            await ledger.answered(
                attempt.key, "weak", "m", sample_answer(text), cost_nusd=0, is_from_cache=False
            )
            await ledger.decide(Outcome(pair.uid, pair.source, "kept", (attempt,)))
            write_dataset(tmp_path, "jsonl", [pair], ledger, TEMPLATE, FACTS)

    asyncio.run(write())
    card = (tmp_path / "dataset" / "README.md").read_text("utf-8")
    assert card.count("\n~~~~\n") == 2  # of the fence alone
    fenced = card[card.index("\n~~~~\n") : card.rindex("\n~~~~\n")]
    headings = [line for line in card.replace(fenced, "").splitlines() if line.startswith("# ")]
    assert headings == ["# my-run: judgments to distil from"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_where_nothing_was_kept_readers_say_so(tmp_path, form):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        count, _ = write_dataset(tmp_path, form, PAIRS, ledger, TEMPLATE, FACTS)
    assert count == 0
    with pytest.raises(DataError):
        list(read_pairs(traces_file(tmp_path, form), every_trace=True))


Text = st.text(min_size=1, max_size=30).filter(str.strip)


@given(
    st.lists(st.tuples(Text, Text), min_size=1, max_size=4), st.sampled_from(["jsonl", "parquet"])
)
@hypothesis_settings(max_examples=15)
def test_any_text_comes_back(tmp_path_factory, texts, form):
    folder = tmp_path_factory.mktemp("any")
    pairs = list(
        {pair.uid: pair for pair in (odd_pair(n, t) for n, (t, _) in enumerate(texts))}.values()
    )
    traces = [judgment("A", trace) for (_, trace), _ in zip(texts, pairs, strict=False)]

    async def write():
        with Ledger(folder / "ledger.sqlite") as ledger:
            for pair, trace in zip(pairs, traces, strict=True):
                attempt, _ = attempt_of(pair, "chosen_first", 1, text=trace)
                answer = sample_answer(trace)
                await ledger.answered(
                    attempt.key, "weak", "m", answer, cost_nusd=0, is_from_cache=False
                )
                await ledger.decide(Outcome(pair.uid, pair.source, "kept", (attempt,)))
            write_dataset(folder, form, pairs, ledger, TEMPLATE, FACTS)

    asyncio.run(write())
    found = list(read_pairs(traces_file(folder, form), every_trace=True))
    assert [(pair.uid, pair.trace) for pair in found] == [
        (pair.uid, trace) for pair, trace in zip(pairs, traces, strict=True)
    ]


# ---- other trainers ------------------------------------------------------------------------------

LOADING = """
import json, sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], split="train", cache_dir=sys.argv[2])
print(json.dumps({"count": len(rows), "columns": rows.column_names, "first": rows[0]}))
"""


@pytest.mark.integration
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_folder_is_a_data_set_of_the_hubs_library_and_trl_takes_its_messages(tmp_path, form):
    from datasets import load_dataset
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    path, count, _ = made(tmp_path / "run", form)
    command = [sys.executable, "-c", LOADING, str(path.parent), str(tmp_path / "cache")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["count"] == count
    assert found["columns"][:3] == ["messages", "trace", "verdict"]
    rows = load_dataset(str(path.parent), split="train", cache_dir=str(tmp_path / "cache"))
    taken = rows.select_columns("messages")[0]  # as SFTTrainer does by its signature columns
    assert is_conversational(taken)
    assert taken["messages"][-1] == {"role": "assistant", "content": found["first"]["trace"]}

    class Tokenizer:
        chat_template = "any"

        def apply_chat_template(self, messages, tools=None, tokenize=True, **options):
            assert not tokenize
            return "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages)

    text = maybe_apply_chat_template(taken, Tokenizer())["text"]
    assert text.endswith(f"<assistant>{found['first']['trace']}</assistant>")
    assert text.startswith(f"<{taken['messages'][0]['role']}>")
