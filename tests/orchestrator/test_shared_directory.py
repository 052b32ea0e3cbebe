"""What one machine finds out about a folder that another one says it has written to."""

import threading

from orchestrator.shared_directory import find_problem

VISIBLE_S = 0.5


def test_a_folder_that_is_seen_and_may_be_written_to_has_no_problem(tmp_path):
    marker = tmp_path / "marker"
    marker.write_text("this one")
    assert find_problem(marker, "this one", VISIBLE_S) is None
    assert list(tmp_path.iterdir()) == [marker]


def test_a_file_that_shows_late_is_waited_for(tmp_path):
    marker = tmp_path / "marker"
    late = threading.Timer(0.2, marker.write_text, ["this one"])
    late.start()
    assert find_problem(marker, "this one", VISIBLE_S) is None
    late.join()


def test_another_folder_of_the_same_name_is_told_and_left_as_it_is(tmp_path):
    (tmp_path / "marker").write_text("another one")
    assert find_problem(tmp_path / "marker", "this one", 0.1) == "does not see it"
    assert [path.name for path in tmp_path.iterdir()] == ["marker"]


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    assert find_problem(tmp_path / "runs" / "marker", "this one", 0.1) == "has no such folder"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_file_is_told_with_the_cause(tmp_path):
    marker = tmp_path / ("m" * 250)  # with what is added, too long a name for a file
    marker.write_text("this one")
    assert find_problem(marker, "this one", VISIBLE_S) == "cannot write to it (File name too long)"
