import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from judging.errors import DataError
from judging.presentation import both_orders
from judging.prompts import load_template
from judging.readers import ReadReport, read_pairs, write_pairs
from judging.records import Message, PreferencePair, pair_uid

QUESTION = (Message("user", "Why is the sky blue?"),)
TRACE = "<type>Chat</type>\n<eval>B cites.</eval>\n<answer>[[B]]</answer>"


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_row(number: int = 0, **columns) -> dict:
    return {"prompt": f"question {number}", "chosen": "good", "rejected": "bad"} | columns


def rm_r1_row(winner: str, *, order: str = "chosen_first") -> dict:
    pair = PreferencePair("", QUESTION, chosen="Scattering.", rejected="Magic.")
    shown = both_orders(pair)[order == "rejected_first"]
    messages = load_template("instruct").render(shown)
    return {
        "context_messages": [{"role": m.role, "content": m.content} for m in messages],
        "winner": winner,
    }


LAYOUT_ROWS = [
    pytest.param(text_row(prompt="Why is the sky blue?"), QUESTION, id="text"),
    pytest.param(
        text_row(prompt=[{"role": "system", "content": "Be brief."}, user("Why?")]),
        (Message("system", "Be brief."), Message("user", "Why?")),
        id="text with a prompt of messages",
    ),
    pytest.param(
        {
            "chosen": [user("Why?"), assistant("good")],
            "rejected": [user("Why?"), assistant("bad")],
            "source": "magpie",
        },
        (Message("user", "Why?"),),
        id="Skywork",
    ),
    pytest.param(
        {
            "prompt": "Why?",
            "prompt_id": "17",
            "messages": [user("Why?"), assistant("good")],
            "chosen": [user("Why?"), assistant("good")],
            "rejected": [user("Why?"), assistant("bad")],
            "score_chosen": 8.5,
            "score_rejected": 4,
        },
        (Message("user", "Why?"),),
        id="UltraFeedback",
    ),
    pytest.param(
        {
            "prompt": [user("Hi"), assistant("Hello"), user("Why?")],
            "chosen": [assistant("good")],
            "rejected": [assistant("bad")],
        },
        (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")),
        id="prompt and completions as messages",
    ),
    pytest.param(
        {
            "chosen": [user("Hi"), assistant("Hello"), user("Why?"), assistant("good")],
            "rejected": [user("Hi"), assistant("Hello"), user("Why?"), assistant("bad")],
        },
        (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")),
        id="several turns",
    ),
    pytest.param(
        {
            "pair_uid": "1",
            "conversation_input": [user("Why?") | {"language": "en"}],
            "chosen": {"llm_name": "x", "answer": "good"},
            "reject": {"llm_name": "y", "answer": "bad"},
            "category_path": "Pairwise_set/Chat",
        },
        (Message("user", "Why?"),),
        id="RMB",
    ),
]


@pytest.mark.parametrize(("row", "conversation"), LAYOUT_ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_every_layout_in_every_format(tmp_path, row, conversation, suffix):
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if suffix == "json" else row))
    (pair,) = read_pairs(path)
    assert (pair.conversation, pair.chosen, pair.rejected) == (conversation, "good", "bad")
    assert pair.uid == pair_uid(conversation, "good", "bad")
    assert pair.source == row.get("source", "pairs")
    assert pair.category == row.get("category_path", "")
    assert pair.trace is None


@pytest.mark.parametrize(("winner", "chosen"), [("model_a", "Scattering."), ("model_b", "Magic.")])
def test_rm_r1_labels(tmp_path, winner, chosen):
    (pair,) = read_pairs(write_lines(tmp_path / "rl.jsonl", [rm_r1_row(winner)]))
    assert pair.conversation == QUESTION
    assert pair.chosen == chosen
    assert pair.trace is pair.trace_order is None


@pytest.mark.parametrize(
    ("letter", "chosen", "order"),
    [("A", "Scattering.", "chosen_first"), ("B", "Magic.", "rejected_first")],
)
def test_rm_r1_traces_decide_which_answer_is_preferred(tmp_path, letter, chosen, order):
    trace = TRACE.replace("[[B]]", f"[[{letter}]]")
    (pair,) = read_pairs(write_lines(tmp_path / "sft.jsonl", [rm_r1_row(trace)]))
    assert (pair.chosen, pair.trace, pair.trace_order) == (chosen, trace, order)


def test_both_orders_of_a_rendered_pair_are_the_same_pair(tmp_path):
    rows = [rm_r1_row("model_a"), rm_r1_row("model_b", order="rejected_first")]
    report = ReadReport()
    assert len(list(read_pairs(write_lines(tmp_path / "rl.jsonl", rows), report))) == 1
    assert report.duplicate == 1


def test_trace_without_a_verdict_is_left_out_and_counted(tmp_path):
    rows = [rm_r1_row("<eval>Both are fine.</eval>"), rm_r1_row(TRACE)]
    report = ReadReport()
    (pair,) = read_pairs(write_lines(tmp_path / "sft.jsonl", rows), report)
    assert pair.trace == TRACE
    assert report == ReadReport(rows=2, kept=1, no_verdict=1)


def test_unusable_pairs_are_left_out_and_counted(tmp_path):
    rows = [
        text_row(0),
        text_row(0),
        text_row(0, chosen="bad", rejected="good"),
        text_row(1, chosen="same", rejected=" same\n"),
        text_row(2, rejected="  "),
        text_row(3, prompt="\n"),
    ]
    report = ReadReport()
    pairs = list(read_pairs(write_lines(tmp_path / "pairs.jsonl", rows), report))
    assert [pair.chosen for pair in pairs] == ["good", "bad"]
    assert report == ReadReport(rows=6, kept=2, identical=1, empty=2, duplicate=1)
    assert str(report) == "2 of 6 rows kept, 4 left out (1 identical, 2 empty, 1 duplicate)"


def test_folder_is_read_in_order_with_one_layout_per_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    write_lines(tmp_path / "c.jsonl", [text_row(3)])
    (tmp_path / "b" / "x.json").write_text(json.dumps([text_row(1), text_row(2)]))
    write_lines(tmp_path / ".cache" / "hidden.jsonl", [text_row(4)])
    (tmp_path / "notes.txt").write_text("no data")
    write_lines(
        tmp_path / "a.jsonl", [{k: [user("q"), assistant(k)] for k in ("chosen", "rejected")}]
    )
    pairs = list(read_pairs(tmp_path))
    assert [pair.conversation[0].content for pair in pairs] == [
        "q",
        "question 1",
        "question 2",
        "question 3",
    ]


def test_jsonl_is_read_as_a_stream(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", [text_row(0), text_row(1)])
    with path.open("a") as file:
        file.write("{broken\n")
    pairs = read_pairs(path)
    assert [next(pairs).conversation[0].content for _ in range(2)] == ["question 0", "question 1"]
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: not JSON"):
        next(pairs)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "file is empty"),
        ("x.jsonl", b"\n\n", "file is empty"),
        ("x.json", b" ", "file is empty"),
        ("x.json", b"[]", "file is empty"),
        ("x.json", b'{"prompt": 1}\n{"prompt": 2}', "rename it to .jsonl"),
        ("x.json", b'[\n{"a": 1},\n{"b" 2}]', r"x\.json:2: unknown layout"),
        ("x.json", b'[\n\n{"a" 1}]', r"x\.json:3: not JSON"),
        ("x.json", b"[\n[1]]", r"x\.json:2: a row must be an object.*list"),
        ("x.json", b'[\n"\xff"]', r"x\.json:2: not UTF-8"),
        ("x.jsonl", b'\n{"prompt": "\xff"}', r"x\.jsonl:2: not JSON"),
        ("x.jsonl", b"7", r"x\.jsonl:1: a row must be an object.*int"),
        ("x.jsonl", b'\n{"a": \n', r"x\.jsonl:2: not JSON: Expecting value \(column 6\): mend"),
        ("x.jsonl", b"9" * 5000, r"x\.jsonl:1: not JSON"),
        ("x.jsonl", b"[" * 100_000, r"x\.jsonl:1: not JSON"),
        ("x.json", b"[" * 100_000, r"x\.json:1: not JSON"),
        ("x.jsonl", b'{"instruction": "q", "output": "a"}', "columns instruction, output; known"),
        ("x.parquet", b"PAR1 no", "not Parquet"),
        ("x.csv", b"a,b", r"unknown kind of file \.csv"),
    ],
)
def test_bad_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_pairs(tmp_path / name))


def test_json_array_broken_between_rows_names_the_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(f"[{json.dumps(text_row(0))},\n{json.dumps(text_row(1))}\n\n; ]")
    with pytest.raises(DataError, match=r"x\.json:4: not JSON"):
        list(read_pairs(path))
    path.write_text(f"[{json.dumps(text_row(0))}")
    with pytest.raises(DataError, match=r"x\.json:1: not JSON"):
        list(read_pairs(path))


def test_nothing_to_read_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_pairs(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="holds no file"):
        read_pairs(tmp_path)


def test_no_pair_left_is_refused_with_the_counts(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [text_row(rejected="good")])
    with pytest.raises(DataError, match=r"no pair is left.*1 identical"):
        list(read_pairs(path))


BROKEN_PROMPT = {"context_messages": [user("no headers")], "winner": "model_a"}
MESSAGES = [user("q"), assistant("a")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (rm_r1_row("tie (bothbad)"), r"winner is 'tie \(bothbad\)', not model_a or model_b"),
        (rm_r1_row("model_c"), "winner is 'model_c'"),
        (rm_r1_row("") | {"winner": 3}, "winner must be text, it is int"),
        (BROKEN_PROMPT, r"no header '\[Client Question\]'"),
        (text_row(rejected=None), "rejected must be text, it is missing or null"),
        (text_row(prompt=5), "prompt must be a list of messages, it is int"),
        ({"chosen": "x", "rejected": "y"}, "a column prompt"),
        (text_row(chosen=7), "chosen must be a list of messages, it is int"),
        (text_row(prompt="\ud800"), "surrogate"),
        (text_row(trace=TRACE), "trace_order go together"),
        (text_row(trace=TRACE, trace_order="A"), "trace_order must be chosen_first or"),
        ({"chosen": MESSAGES, "rejected": [user("p"), assistant("b")]}, "before their last turn"),
        ({"chosen": MESSAGES, "rejected": [user("q")]}, "rejected does not end with an assistant"),
        ({"chosen": MESSAGES, "rejected": []}, "rejected does not end with an assistant"),
        ({"chosen": MESSAGES, "rejected": ["b"]}, r"rejected\[0\] must be an object"),
        (
            {"chosen": [{"role": "gpt", "content": "x"}], "rejected": MESSAGES},
            r"chosen\[0\]\.role must be system, user or assistant, it is 'gpt'",
        ),
        (
            {"chosen": [user("q"), {"role": "assistant"}], "rejected": MESSAGES},
            r"chosen\[1\]\.content must be text, it is missing or null",
        ),
        (
            {"chosen": [assistant("x")], "rejected": [assistant("y")]},
            "does not end with a user turn",
        ),
        (
            {"conversation_input": [user("q")], "chosen": "x", "reject": {"answer": "y"}},
            "chosen must be an object with the field answer",
        ),
    ],
)
def test_wrong_value_is_refused_with_file_line_and_field(tmp_path, row, message):
    path = write_lines(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=r"x\.jsonl:1: .*" + message) as refused:
        list(read_pairs(path))
    assert str(path) in str(refused.value)


def test_column_missing_later_is_refused_with_its_line(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [text_row(), {"prompt": "q", "chosen": "x"}])
    with pytest.raises(DataError, match=r"x\.jsonl:2: no rejected, which the first row has"):
        list(read_pairs(path))


def test_wrong_value_in_parquet_names_the_row(tmp_path):
    path = tmp_path / "x.parquet"
    rows = [text_row(number) for number in range(300)] + [text_row(rejected=None)]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"x\.parquet: row 301: rejected"):
        list(read_pairs(path))


def test_written_pairs_are_read_back(tmp_path):
    conversation = (
        Message("system", "Be kind."),
        Message("user", "Grüße\u2028世界"),
        Message("assistant", "<b>"),
        Message("user", "and?"),
    )
    pairs = [
        PreferencePair(pair_uid(QUESTION, "x", "y"), QUESTION, "x", "y", source="made"),
        PreferencePair(
            pair_uid(conversation, " x\n", "y"),
            conversation,
            " x\n",
            "y",
            source="made",
            category="chat/sky",
            trace=TRACE,
            trace_order="rejected_first",
        ),
    ]
    path = tmp_path / "pairs.jsonl"
    assert write_pairs(path, iter(pairs)) == 2
    assert list(read_pairs(path)) == pairs


@pytest.fixture
def rmb(shared_data) -> Path:
    return shared_data / "rmb" / "Pairwise_set"


def test_rmb_is_read_whole(rmb, tmp_path):
    report = ReadReport()
    pairs = list(read_pairs(rmb, report))
    assert report == ReadReport(rows=1799, kept=1794, identical=2, empty=1, duplicate=2)
    assert len({pair.uid for pair in pairs}) == len(pairs) == 1794
    assert sum(len(pair.conversation) > 1 for pair in pairs) > 200
    assert all("/" in pair.category for pair in pairs)
    write_pairs(tmp_path / "rmb.jsonl", pairs)
    assert list(read_pairs(tmp_path / "rmb.jsonl")) == pairs


def test_rmb_survives_rendering_as_rm_r1_rows(rmb, tmp_path):
    template = load_template("instruct")
    pairs = list(read_pairs(rmb))
    rows = []
    for number, pair in enumerate(pairs):
        shown = both_orders(pair)[number % 2]
        messages = [{"role": m.role, "content": m.content} for m in template.render(shown)]
        winner = "model_a" if shown.gold == "A" else "model_b"
        rows.append({"context_messages": messages, "winner": winner})
    back = list(read_pairs(write_lines(tmp_path / "rl.jsonl", rows)))
    differing = [pair for pair, read in zip(pairs, back, strict=True) if pair.uid != read.uid]
    # One pair's earlier turns quote a dialogue with the renderer's own speaker labels.
    assert len(differing) <= 1
    assert all(
        (a.chosen, a.rejected) == (b.chosen, b.rejected) for a, b in zip(pairs, back, strict=True)
    )
