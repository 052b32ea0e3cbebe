import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from judging.errors import DataError
from judging.mixing import Source, SourcePairs, mix, read_source
from judging.readers import read_pairs, write_pairs
from judging.records import Message, PreferencePair


def write(path: Path, rows: Iterable[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(number: int, **columns: str) -> dict:
    return {"prompt": f"question {number}", "chosen": "yes", "rejected": "no"} | columns


def mixed(sources: dict[str, Source], seed: int = 1, limit: int | None = None):
    read = {name: read_source(name, source) for name, source in sources.items()}
    return mix(read, similarity=0.8, limit=limit, seed=seed), read


def counts(read: dict[str, SourcePairs]) -> dict[str, dict[str, int]]:
    return {name: each.report.reasons() | {"kept": each.report.kept} for name, each in read.items()}


def test_rows_of_the_three_sources_of_rm_r1_are_read(tmp_path):
    asked = {"role": "user", "content": "Hello"}
    skywork = {
        "chosen": [asked, {"role": "assistant", "content": "Hi"}],
        "rejected": [asked, {"role": "assistant", "content": "Go"}],
        "source": "magpie_pro",
    }
    code = {"input": "Sort", "accepted": "a.sort()", "rejected": "a.sor()", "ID": "1"}
    math = {
        "dataset": "MATH",
        "prompt": "1+1?",
        "initial_reason_steps": "Step 1: we add.\nStep 2:",
        "chosen": " next",
        "rejected": " other",
        "full_chosen": " 2.",
        "full_rejected": " 3.",
        "answer": "2",
    }
    rows = {"skywork": skywork, "code": code, "math": math}
    pairs = {
        name: read_source(name, Source(path=write(tmp_path / f"{name}.jsonl", [each]))).pairs[0]
        for name, each in rows.items()
    }
    assert {name: (pair.source, pair.category) for name, pair in pairs.items()} == {
        "skywork": ("skywork", "magpie_pro"),
        "code": ("code", ""),
        "math": ("math", "MATH"),
    }
    assert (pairs["skywork"].chosen, pairs["skywork"].rejected) == ("Hi", "Go")
    assert pairs["code"].conversation == (Message("user", "Sort"),)
    assert (pairs["code"].chosen, pairs["code"].rejected) == ("a.sort()", "a.sor()")
    assert pairs["math"].conversation == (Message("user", "1+1?"),)
    assert pairs["math"].chosen == "Step 1: we add.\nStep 2: 2."
    assert pairs["math"].rejected == "Step 1: we add.\nStep 2: 3."


def test_filters_go_by_columns_and_what_no_row_has_is_named(tmp_path):
    rows = [row(n, kind="abc"[n % 3], split="xy"[n % 2]) for n in range(12)]
    source = Source(
        path=write(tmp_path / "a.jsonl", rows),
        include={"split": ("x",)},
        exclude={"kind": ("a", "d")},
    )
    pairs, read = mixed({"a": source})
    expected = {f"question {n}" for n in range(12) if n % 2 == 0 and n % 3 != 0}
    assert {pair.conversation[0].content for pair in pairs} == expected
    assert counts(read) == {"a": {"excluded": 8, "kept": 4}}
    assert read["a"].unmet == ["kind=d"]


def test_a_filter_of_a_column_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(1)])
    with pytest.raises(DataError, match=r"a\.jsonl:1: no column kind, which exclude.*prompt"):
        read_source("a", Source(path=path, exclude={"kind": ("x",)}))


def test_the_first_source_keeps_what_several_have_and_all_is_counted(tmp_path):
    long = " ".join(f"word{number}" for number in range(80))
    a = [row(1), row(1), row(2), row(3, prompt=long), row(4, chosen=" "), row(5, chosen="no")]
    b = [row(1, prompt="Question  1"), row(3, prompt=f"{long} more"), row(6)]
    sources = {
        "a": Source(path=write(tmp_path / "a.jsonl", a)),
        "b": Source(path=write(tmp_path / "b.jsonl", b)),
    }
    pairs, read = mixed(sources)
    assert counts(read) == {
        "a": {"duplicate": 1, "empty": 1, "identical": 1, "kept": 3},
        "b": {"duplicate": 1, "near duplicate": 1, "kept": 1},
    }
    assert [pair.source for pair in pairs] == ["a", "a", "a", "b"]
    for each in read.values():
        assert each.report.rows == each.report.kept + sum(each.report.reasons().values())
    read = {name: read_source(name, source) for name, source in sources.items()}
    assert len(mix(read, similarity=None, limit=None, seed=1)) == 5


def test_a_cap_is_drawn_by_seed(tmp_path):
    source = Source(path=write(tmp_path / "a.jsonl", map(row, range(50))), limit=10)
    first, read = mixed({"a": source})
    assert first == mixed({"a": source})[0] != mixed({"a": source}, seed=2)[0]
    assert counts(read) == {"a": {"over limit": 40, "kept": 10}}


@pytest.mark.parametrize(
    ("weights", "limit", "kept"),
    [
        ((1.0, 1.0), None, (30, 30)),
        ((2.0, 1.0), None, (60, 30)),
        ((0.3, 0.1), None, (90, 30)),
        ((1.0, 0.1), None, (100, 10)),
        ((2.0, 1.0), 20, (40, 20)),
    ],
)
def test_weights_give_the_largest_mix_in_their_proportion(tmp_path, weights, limit, kept):
    sources = {
        name: Source(
            path=write(tmp_path / f"{name}.jsonl", map(row, range(start, start + count))),
            weight=weight,
            limit=limit if name == "b" else None,
        )
        for name, start, count, weight in (("a", 0, 100, weights[0]), ("b", 1000, 30, weights[1]))
    }
    pairs, read = mixed(sources)
    assert (read["a"].report.kept, read["b"].report.kept) == kept
    assert read["a"].report.over_weight == 100 - kept[0]
    assert len(pairs) == len({pair.uid for pair in pairs}) == sum(kept)


def test_the_limit_of_the_whole_is_counted_by_source(tmp_path):
    sources = {
        name: Source(path=write(tmp_path / f"{name}.jsonl", map(row, range(start, start + 40))))
        for name, start in (("a", 0), ("b", 100))
    }
    pairs, read = mixed(sources, limit=30)
    assert len(pairs) == 30 == sum(each.report.kept for each in read.values())
    assert all(each.report.over_limit == 40 - each.report.kept for each in read.values())
    assert min(each.report.kept for each in read.values()) > 5


def test_a_source_of_which_nothing_is_left_is_refused_with_the_reasons(tmp_path):
    path = write(tmp_path / "a.jsonl", map(row, range(3)))
    with pytest.raises(DataError, match=r"data\.sources\.b: no pair is left: .*3 duplicate"):
        mixed({"a": Source(path=path), "b": Source(path=path)})
    with pytest.raises(DataError, match=r"no pair is left: .*3 excluded"):
        read_source("a", Source(path=path, include={"prompt": ("x",)}))


def test_real_text_with_a_word_changed_is_found_and_what_is_real_stays(shared_data, tmp_path):
    path = shared_data / "rmb" / "Pairwise_set" / "Harmlessness"
    longest = sorted(read_pairs(path), key=lambda pair: -min(map(len, texts_of(pair))))[:40]
    changed = [replace(pair, chosen=f"Well, {pair.chosen}") for pair in longest]
    write_pairs(tmp_path / "changed.jsonl", changed)
    sources = {
        "rmb": Source(path=str(path)),
        "changed": Source(path=str(tmp_path / "changed.jsonl")),
        "code": Source(path=write(tmp_path / "code.jsonl", map(row, range(5)))),
    }
    read = {name: read_source(name, source) for name, source in sources.items()}
    with pytest.raises(DataError, match=r"data\.sources\.changed: no pair.*40 near duplicate"):
        mix(read, similarity=0.8, limit=None, seed=1)
    report = read["rmb"].report
    assert report.near_duplicate + report.duplicate < 0.02 * report.rows


def texts_of(pair: PreferencePair) -> tuple[str, str, str]:
    return pair.conversation[0].content, pair.chosen, pair.rejected
