"""The command that writes pairs for measurements of a synthesis."""

import runpy
import sys
from pathlib import Path

from judging.readers import read_pairs

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "teacher_pairs.py"


def test_as_many_pairs_are_written_as_are_asked_for(tmp_path, monkeypatch, capsys):
    path = tmp_path / "pairs.jsonl"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path), "--count", "30"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert f"{path}: 30 pairs" in capsys.readouterr().out
    assert len({pair.uid for pair in read_pairs(path)}) == 30
