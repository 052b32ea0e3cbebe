"""A short disturbed run: each kind of fault once. The long one is benchmarks/chaos.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from chaos import KINDS, chaos

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(1200)]


# The head's death is to a driver what the raylet's is; an end that is asked for has a test of its
# own, in test_operation_end_to_end.
SHORT = [kind for kind in KINDS if kind.name not in ("head killed", "driver asked to end")]


def test_a_disturbed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    """What was committed is checked in `chaos_checks`, which raises SystemExit."""
    found = chaos(tmp_path, SHORT, steps=20, seed=1, pause_s=(0.0, 1.0))
    assert found["faults"] == len(SHORT)
    assert found["recovery_s"].keys() == {kind.name for kind in SHORT}
    assert found["drivers"] == 1 + sum(kind.ends_driver for kind in SHORT)
    assert found["steps"] == 20
    assert found["pairs"] == 20 * 8
    assert found["tensors"] > 0
