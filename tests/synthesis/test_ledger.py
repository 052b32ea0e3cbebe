"""What is written down before and after each request, and outlives the process."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from synthesis_samples import sample_answer, sample_outcome

from judging.errors import ConfigurationError, DataError, InfrastructureError
from synthesis.ledger import Ledger
from synthesis.records import Attempt, Usage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "synthesis" / "ledger.sqlite"


def rows(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


async def test_other_settings_take_outcomes_back_and_leave_what_was_paid_for(path):
    with Ledger(path) as ledger:
        assert ledger.decide_by("these") == 0
        await answered(ledger, "k")
        await ledger.decide(sample_outcome("a"))
        assert ledger.decide_by("these") == 0
        assert ledger.decided() == {"a"}
        await ledger.keep_batch("b", "strong", {"keys": ["k"]}, instead_of=None)
        with pytest.raises(ConfigurationError, match="batches that were asked with other settings"):
            ledger.decide_by("others")
        assert ledger.decide_by("these") == 0
        await ledger.end_batch("b")
    with Ledger(path) as ledger:
        assert ledger.decide_by("others") == 1
        assert ledger.decided() == set()
        assert await ledger.find("k") == sample_answer()
        await ledger.decide(sample_outcome("a"))
        assert ledger.decide_by("others") == 0
        assert ledger.decided() == {"a"}


async def test_outcomes_of_before_settings_were_written_down_stay(path):
    with Ledger(path) as ledger:
        await ledger.decide(sample_outcome("a"))
        assert ledger.decide_by("these") == 0
        assert ledger.decided() == {"a"}
        assert ledger.decide_by("others") == 1


async def answered(ledger, key, answer=None, cost_nusd=0, is_from_cache=False):
    await ledger.answered(
        key,
        "strong",
        "m",
        answer or sample_answer(),
        cost_nusd=cost_nusd,
        is_from_cache=is_from_cache,
    )


def spent(ledger):
    (found,) = ledger.spending()
    return found


async def test_answers_that_belong_to_no_outcome_are_told(path):
    with Ledger(path) as ledger:
        assert (list(ledger.undecided()), ledger.undecided_counts()) == ([], (0, 0))
        for number in range(4):
            text = sample_answer(f"text {number}")
            await answered(ledger, f"key {number}", text, is_from_cache=number == 3)
        await ledger.begin("not answered", "strong", "m")
        attempts = tuple(Attempt("chosen_first", n, 0, "strong", f"key {n}") for n in (0, 2))
        await ledger.decide(sample_outcome("pair", attempts=attempts))
        await ledger.decide(sample_outcome("other", "unasked"))
        found = [(each.text, each.is_from_cache) for each in ledger.undecided()]
        assert found == [("text 1", 0), ("text 3", 1)]
        assert ledger.undecided_counts() == (1, 1)


async def test_an_answer_is_found_again_as_it_was(path):
    answer = sample_answer("käse \0 🦜\n", (7, 9), is_truncated=True, usage_is_estimate=True)
    with Ledger(path) as ledger:
        assert await ledger.find("key") is None
        await ledger.begin("key", "strong", "m")
        assert await ledger.find("key") is None
        await answered(ledger, "key", answer)
    with Ledger(path) as ledger:
        assert await ledger.find("key") == answer
        assert ledger.text_of("key") == answer.text


async def test_the_first_answer_and_the_first_outcome_stand(path):
    attempt = Attempt("chosen_first", 1, 0, "strong", "key", ("grammar", "quotes"))
    with Ledger(path) as ledger:
        await answered(ledger, "key", sample_answer("first", (1, 2)), cost_nusd=5)
        await answered(ledger, "key", sample_answer("second", (10, 20)), cost_nusd=50)
        await ledger.decide(sample_outcome("a", "rejected", (attempt,)))
        await ledger.decide(sample_outcome("a", "kept"))
        assert ledger.text_of("key") == "first"
        assert (spent(ledger).cost_nusd, spent(ledger).output_tokens) == (5, 2)
        assert ledger.outcome("a") == sample_outcome("a", "rejected", (attempt,))
        assert ledger.outcome("b") is None
        assert list(ledger.outcomes()) == [sample_outcome("a", "rejected", (attempt,))]
        assert ledger.decided() == {"a"}


Known = st.tuples(
    st.integers(0, 10**12), st.integers(0, 10**6), st.integers(0, 10**6), st.booleans()
)


@given(st.lists(Known, min_size=1, max_size=30))
@hypothesis_settings(max_examples=15)
def test_sums_of_what_was_spent_are_exact_and_leave_out_the_cache(tmp_path_factory, known):
    async def drive():
        with Ledger(tmp_path_factory.mktemp("run") / "ledger.sqlite") as ledger:
            for number, (cost, inputs, outputs, is_cached) in enumerate(known):
                if not is_cached:
                    await ledger.begin(f"{number}", "strong", "m")
                cost = 0 if is_cached else cost
                answer = sample_answer(tokens=(inputs, outputs))
                await answered(ledger, f"{number}", answer, cost, is_cached)
            return spent(ledger)

    found = asyncio.run(drive())
    paid = [each for each in known if not each[3]]
    assert found.cost_nusd == sum(cost for cost, *_ in paid)
    assert found.input_tokens == sum(inputs for _, inputs, _, _ in paid)
    assert found.output_tokens == sum(outputs for _, _, outputs, _ in paid)
    assert (found.answers, found.tries, found.from_cache) == (
        len(paid),
        len(paid),
        len(known) - len(paid),
    )


async def test_tries_of_which_nobody_knows_what_became_are_told(path):
    with Ledger(path) as ledger:
        for key in ("doubtful", "failed", "answered"):
            await ledger.begin(key, "strong", "m")
        await ledger.failed("failed")
        await ledger.begin("answered", "strong", "m")
        await answered(ledger, "answered")
        assert (spent(ledger).in_doubt, spent(ledger).tries, spent(ledger).answers) == (1, 4, 1)


async def test_writes_of_many_tasks_are_together_and_each_is_on_the_disk_when_it_goes_on(path):
    with Ledger(path) as ledger:
        commits = []
        ledger._connection.set_trace_callback(
            lambda text: commits.append(text) if text == "COMMIT" else None
        )
        await asyncio.gather(*(ledger.begin(f"{n}", "strong", "m") for n in range(2000)))
        assert len(commits) < 200
        await answered(ledger, "7", sample_answer("on the disk"))
        # What another process would find after this one was killed: the file and its log alone.
        copy = path.parent / "copy.sqlite"
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
        assert rows(copy, "SELECT text FROM requests WHERE key = '7'") == [("on the disk",)]
        assert rows(copy, "SELECT COUNT(*) FROM requests") == [(2000,)]


KILLED = """
import asyncio, sys
from pathlib import Path
from synthesis.ledger import Ledger
from synthesis.records import Answer

async def main():
    with Ledger(Path(sys.argv[1])) as ledger:
        await ledger.begin("answered", "strong", "m")
        await ledger.answered("answered", "strong", "m", Answer("kept"), cost_nusd=3,
                              is_from_cache=False)
        await ledger.begin("sent", "strong", "m")
        print("sent", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.integration
async def test_a_kill_between_sending_and_the_answer_leaves_the_request_open(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"sent\n"
        refusal = pytest.raises(ConfigurationError, match="another process writes it: wait for")
        with refusal, Ledger(path):
            pass
        process.send_signal(signal.SIGKILL)
    with Ledger(path) as ledger:
        assert (await ledger.find("answered")).text == "kept"
        assert await ledger.find("sent") is None
        assert (spent(ledger).in_doubt, spent(ledger).tries, spent(ledger).cost_nusd) == (1, 2, 3)


SHARING = """
import asyncio, sys
from pathlib import Path
from synthesis.ledger import Ledger
from synthesis.records import Answer

async def main():
    name = sys.argv[2]
    with Ledger(Path(sys.argv[1]), is_shared=True) as ledger:
        print("open", flush=True)
        sys.stdin.readline()
        async def one(number):
            key = f"{number}"
            await ledger.find(key)
            await ledger.answered(key, "t", "m", Answer(f"{name} {number}"), cost_nusd=0,
                                  is_from_cache=False)
            assert (await ledger.find(key)).text.endswith(f" {number}")
        for some in range(0, 200, 20):
            await asyncio.gather(*(one(number) for number in range(some, some + 20)))

asyncio.run(main())
"""


@pytest.mark.integration
async def test_two_processes_write_one_cache_at_once_and_the_first_answers_stand(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        for name in ("one", "other")
    ]
    for process in processes:
        assert process.stdout.readline() == b"open\n"
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with Ledger(path, is_shared=True) as ledger:
        texts = [(await ledger.find(f"{number}")).text for number in range(200)]
    assert [text.split()[1] for text in texts] == [f"{number}" for number in range(200)]


def test_a_cache_is_refused_where_it_answers_another_version_of_a_template(path):
    with Ledger(path, is_shared=True) as ledger:
        ledger.check_templates({"compact": "1a", "corrected": "2b"})
    with Ledger(path, is_shared=True) as ledger:
        ledger.check_templates({"compact": "1a", "mine": "3c"})
        with pytest.raises(ConfigurationError) as caught:
            ledger.check_templates({"mine": "3c", "compact": "9f"})
    for part in ("synthesize.cache", "compact", "1a", "9f", "name another folder", str(path)):
        assert part in str(caught.value)
    with Ledger(path, is_shared=True) as ledger:
        ledger.check_templates({"compact": "1a", "mine": "3c"})  # nothing was taken over


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 99])
def test_a_file_that_is_no_ledger_is_refused_with_the_mend(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match="not a ledger of answers, or spoilt") as caught,
        Ledger(path),
    ):
        pass
    assert "put it back from a copy, or move it away" in str(caught.value)
    assert path.read_bytes() == content


async def test_a_ledger_that_is_spoilt_in_the_middle_is_refused_when_that_is_read(path):
    with Ledger(path) as ledger:
        for number in range(200):
            await answered(ledger, f"{number}", sample_answer("x" * 500))
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 4096] = b"\xff" * (len(content) - 12288)
    path.write_bytes(content)

    async def read_all():
        with Ledger(path) as ledger:
            for number in range(200):
                await ledger.find(f"{number}")

    with pytest.raises(DataError, match="spoilt"):
        await read_all()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InfrastructureError, match="cannot write"),
        Ledger(tmp_path / "file" / "ledger.sqlite"),
    ):
        pass


async def test_a_write_that_cannot_be_made_fails_for_those_who_wait_and_no_others(path):
    with Ledger(path) as ledger:
        odd = sample_answer(usage=Usage(2**70, 0, 1))  # more than SQLite's numbers
        with pytest.raises(InfrastructureError, match="cannot write"):
            await asyncio.wait_for(answered(ledger, "odd", odd), 10)
        await asyncio.wait_for(answered(ledger, "good"), 10)
        assert await ledger.find("odd") is None
        assert await ledger.find("good") == sample_answer()


async def test_halves_of_surrogate_pairs_do_not_stop_it(path):
    answer = sample_answer("half \ud83e of a parrot, and \U0001f99c whole")
    with Ledger(path) as ledger:
        await asyncio.wait_for(answered(ledger, "key", answer), 10)
        assert await ledger.find("key") == answer
        assert "\U0001f99c whole" in ledger.text_of("key")
        assert ledger.text_of("key").isprintable()


async def test_a_write_whose_task_was_cancelled_holds_nobody_up(path):
    with Ledger(path) as ledger:
        tasks = [asyncio.ensure_future(ledger.begin(f"{n}", "strong", "m")) for n in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert found[1::2] == [None] * 25
        await ledger.begin("after", "strong", "m")


async def test_those_who_want_the_same_take_turns(path):
    inside, most = 0, 0
    with Ledger(path) as ledger:

        async def one(key):
            nonlocal inside, most
            async with ledger.alone(key):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(one("same") for _ in range(20)))
        assert most == 1
        await asyncio.gather(*(one(f"{number}") for number in range(20)))
        assert most == 20


async def test_open_batches_are_found_again_until_they_end(path):
    with Ledger(path) as ledger:
        await ledger.keep_batch("ours", "strong", {"keys": ["a"]})
        await ledger.keep_batch("theirs", "strong", {"keys": ["a"]}, instead_of="ours")
        await ledger.keep_batch("other", "weak", {"keys": []})
    with Ledger(path) as ledger:
        assert ledger.open_batches("strong") == [("theirs", {"keys": ["a"]})]
        await ledger.end_batch("theirs")
        assert ledger.open_batches("strong") == []
        assert [name for name, _ in ledger.open_batches("weak")] == ["other"]
