"""The example that ranks RMB's lists, against the application over a stand-in judge."""

import json
import re

import httpx
import pytest
from fake_engine import FakeEngine
from in_process import InProcess
from served import build

from examples.best_of_n.rank import METHODS, main, read_lists

LISTS = 30


def answer(text):
    return {"llm_name": "a model", "answer": text}


@pytest.fixture
def folder(tmp_path):
    """Lists of 3 to 6 answers, the best of which is worth 9; and pairs, which are none."""
    lists = [
        {
            "bon_uid": str(number),
            "conversation_input": [{"role": "user", "content": f"Which of {number}?"}],
            "bon_best": answer(f"worth 9 in {number}."),
            "loser_list": [
                answer(f"worth {worth} in {number}.") for worth in range(2 + number % 4)
            ],
            "category_path": "BoN_set/Harmlessness/S1",
        }
        for number in range(LISTS)
    ]
    file = tmp_path / "rmb/BoN_set/Harmlessness/S1.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(lists))
    return tmp_path / "rmb"


def ranked(folder, capsys, *flags, engine=None, token=None, **settings):
    app, _ = build(engine, token=token, **settings)
    status = main([str(folder), *flags], transport=InProcess(app))
    said = capsys.readouterr()
    return status, said.out, said.err


def shares(text):
    """The column `best first`, by the line's name."""
    return {name: float(share) for name, share in re.findall(r"^(\S+) +([\d.]+)%", text, re.M)}


def test_who_knows_the_best_finds_it_always(folder, capsys):
    engine = FakeEngine(seconds=0.001)
    status, text, _ = ranked(folder, capsys, "--concurrency", "4", engine=engine)
    chance = 100 * sum(1 / (3 + number % 4) for number in range(LISTS)) / LISTS
    assert status == 0
    assert shares(text) == dict.fromkeys(METHODS, 100.0) | {
        "chance": pytest.approx(chance, abs=0.1)
    }
    knockout = sum(2 + number % 4 for number in range(LISTS))
    pairs = sum((3 + number % 4) * (2 + number % 4) // 2 for number in range(LISTS))
    spent = [int(line.split()[3]) for line in text.splitlines()[2:5]]
    assert spent == [knockout, pairs, pairs]
    assert engine.most <= 4 * 15  # of each list at most all pairs


def test_who_always_says_a_finds_it_by_lot(folder, capsys):
    status, text, _ = ranked(folder, capsys, engine=FakeEngine(bias=("A",)))
    first = [answers.best == 0 for answers in read_lists(str(folder), None, seed=0)]
    assert status == 0
    wanted = pytest.approx(100 * sum(first) / LISTS, abs=0.1)
    assert [shares(text)[method] for method in METHODS] == [wanted] * 3
    assert 0 < sum(first) < LISTS / 2  # the shuffle hides the best one


def test_some_lists_some_methods_and_fewer_comparisons(folder, capsys):
    flags = "--items", "5", "--methods", "bradley-terry", "--opponents", "1"
    status, text, _ = ranked(folder, capsys, *flags)
    lists = read_lists(str(folder), 5, seed=0)
    assert (status, len(lists), text.startswith("5 lists\n")) == (0, 5, True)
    assert set(shares(text)) == {"bradley-terry", "chance"}
    assert int(text.splitlines()[2].split()[3]) == sum(len(each.candidates) for each in lists)


def test_lists_that_cannot_be_judged_are_counted_and_left_out(folder, capsys):
    status, text, _ = ranked(folder, capsys, max_candidates=5)
    assert status == 0
    assert text.startswith(
        "23 lists, 7 left out, as BoN_set/Harmlessness/S1/3: /v1/rank: status 422"
    )
    assert shares(text)["knockout"] == 100.0
    status, _, said = ranked(folder, capsys, max_candidates=2)
    assert (status, "none of 30 lists could be judged: " in said) == (2, True)


def test_what_is_wrong_is_said(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GAVEL_SERVE_TOKEN", "open")
    status, _, said = ranked(folder, capsys, token="sesame")
    assert (status, "status 401: send Authorization: Bearer" in said) == (1, True)
    status, _, said = ranked(tmp_path / "nothing", capsys)
    assert (status, "no such file or folder" in said) == (2, True)
    refusal = InProcess(None, [httpx.ConnectError("refused")])
    assert main([str(folder)], transport=refusal) == 1
    assert "no server answers at http://127.0.0.1:8000 (refused)" in capsys.readouterr().err
    assert main([str(folder)], transport=InProcess(None, [httpx.Response(404)])) == 1
    assert "/health answers 404" in capsys.readouterr().err
    for flag, value, wrong in (
        ("--methods", "lot", "no lot: give of knockout"),
        ("--items", "0", "0: give a whole number, 1 or more"),
    ):
        with pytest.raises(SystemExit):
            main([str(folder), flag, value])
        assert wrong in capsys.readouterr().err
