"""Where a run goes on, by what the journal tells and which files are whole; without either."""

from dataclasses import dataclass, field, replace

import pytest
from run_samples import step_commit

from judging.errors import DataError, InfrastructureError
from orchestrator.journal_records import Checkpoint
from orchestrator.position import Damage, History, locate

KINDS = ["evaluate", "distill", "evaluate", "reinforce", "evaluate"]


@dataclass
class Disk:
    """Damaged files, by a checkpoint's step or a batch's phase and step; and what was asked for."""

    checkpoints: set[int] = field(default_factory=set)
    batches: set[tuple[int, int]] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def checkpoint_name(self, step):
        return f"checkpoints/{step}"

    def checkpoint_damage(self, path):
        self.asked.append(path)
        return "spoilt" if int(path.partition("/")[2]) in self.checkpoints else None

    def batch_damage(self, digest):
        self.asked.append(digest)
        phase, step = digest.split("/")
        return f"{digest} is spoilt" if (int(phase), int(step)) in self.batches else None


def history(ended, steps, checkpoints) -> History:
    """`steps` of each phase, and `checkpoints` as (phase, step of the phase)."""
    before = [sum(steps[:phase]) for phase in range(len(steps))]
    return History(
        kinds=KINDS,
        ended={phase: 10 * phase for phase in range(ended)},
        commits=[
            tuple(
                step_commit(
                    step, phase, weight_version=100 * phase + step, batch_hash=f"{phase}/{step}"
                )
                for step in range(1, count + 1)
            )
            for phase, count in enumerate(steps)
        ],
        checkpoints=[
            Checkpoint(
                f"checkpoints/{before[phase] + step}", before[phase] + step, phase, step, 0.0
            )
            for phase, step in checkpoints
        ],
        weight_version=999,
    )


def place(position):
    """What matters of a position: start of the learners, steps replayed, steps lost, rebuilds."""
    return (
        position.weights,
        [commit.step for commit in position.replay],
        [commit.step for commit in position.lost],
        [(r.phase, r.weights, [c.step for c in r.replay]) for r in position.rebuilds],
    )


IN_DISTILL = (1, [0, 9], [(1, 3), (1, 6)])
IN_REINFORCE = (
    3,
    [0, 6, 0, 9],
    [(1, 3), (1, 6), (3, 3), (3, 6)],
)  # steps 3, 6, 9 and 12 of the run
AGAIN = (1, "checkpoints/3", [4, 5, 6])  # the last one of distillation, from the one before
ALL_SIX = [1, 2, 3, 4, 5, 6]
AFTER_DISTILL = (2, [0, 6, 0], [(1, 3), (1, 6)])


@pytest.mark.parametrize(
    ("told", "checkpoints", "batches", "expected"),
    [
        # All is whole, or what is damaged is not needed.
        (IN_DISTILL, (), (), ("checkpoints/6", [7, 8, 9], [], [])),
        (IN_DISTILL, (3,), [(1, 1), (1, 6)], ("checkpoints/6", [7, 8, 9], [], [])),
        # A damaged checkpoint: the one before, and more steps replayed.
        (IN_DISTILL, (6,), [(1, 3)], ("checkpoints/3", [4, 5, 6, 7, 8, 9], [], [])),
        (IN_DISTILL, (3, 6), (), (None, [1, 2, 3, 4, 5, 6, 7, 8, 9], [], [])),
        # A damaged batch: the steps from its own on are lost.
        (IN_DISTILL, (), [(1, 7)], ("checkpoints/6", [], [7, 8, 9], [])),
        (IN_DISTILL, (), [(1, 9), (1, 8)], ("checkpoints/6", [7], [8, 9], [])),
        (IN_DISTILL, (6,), [(1, 5)], ("checkpoints/3", [4], [5, 6, 7, 8, 9], [])),
        (IN_DISTILL, (3, 6), [(1, 4)], (None, [1, 2, 3], [4, 5, 6, 7, 8, 9], [])),
        ((1, [0, 2], []), (), [(1, 1)], (None, [], [1, 2], [])),
        # The checkpoint that an ended phase left is needed as a start, or as the KL reference.
        (AFTER_DISTILL, (), (), ("checkpoints/6", [], [], [])),
        (AFTER_DISTILL, (6,), (), ("checkpoints/6", [], [], [AGAIN])),
        (IN_REINFORCE, (6,), (), ("checkpoints/12", [7, 8, 9], [], [AGAIN])),
        (IN_REINFORCE, (3, 6), (), ("checkpoints/12", [7, 8, 9], [], [(1, None, ALL_SIX)])),
        (
            IN_REINFORCE,
            (6, 9, 12),
            [(3, 8)],
            ("checkpoints/6", [1, 2, 3, 4, 5, 6, 7], [8, 9], [AGAIN]),
        ),
        # The journal forgot a damaged one, and the driver died before it was written again.
        ((2, [0, 6, 0], [(1, 3)]), (), (), ("checkpoints/6", [], [], [AGAIN])),
        # All phases have ended: what the run made is whole.
        ((5, [0, 6, 0, 3, 0], [(1, 6), (3, 3)]), (), (), ("checkpoints/9", [], [], [])),
        (
            (5, [0, 6, 0, 3, 0], [(1, 3), (1, 6), (3, 3)]),
            (6, 9),
            (),
            ("checkpoints/9", [], [], [AGAIN, (3, "checkpoints/6", [1, 2, 3])]),
        ),
    ],
)  # fmt: skip
def test_the_newest_files_that_are_whole_are_used(told, checkpoints, batches, expected):
    disk = Disk(set(checkpoints), set(batches))
    assert place(locate(history(*told), disk)) == expected


@pytest.mark.parametrize(
    ("told", "checkpoints", "batches", "named"),
    [
        (IN_DISTILL, (3, 6), [(1, 1), (1, 2)], ["checkpoints/6", "checkpoints/3", "1/1 is spoilt"]),
        (IN_DISTILL, (3, 6), [(1, 3)], ["step 3 of phase 1: 1/3 is spoilt"]),
        (AFTER_DISTILL, (6,), [(1, 5)], ["checkpoints/6 is damaged: spoilt", "1/5 is spoilt"]),
        (IN_REINFORCE, (6, 3), [(1, 1)], ["checkpoints/6", "checkpoints/3", "1/1 is spoilt"]),
        (IN_REINFORCE, (6, 9, 12), [(1, 4)], ["checkpoints/12", "checkpoints/9", "checkpoints/6"]),
    ],
)
def test_steps_of_the_oldest_checkpoint_or_an_ended_phase_are_not_given_up(
    told, checkpoints, batches, named
):
    with pytest.raises(DataError) as refused:
        locate(history(*told), Disk(set(checkpoints), set(batches)))
    message = str(refused.value)
    assert all(name in message for name in named), message
    assert "put it back from a copy, or begin anew under another run id" in message


def test_only_what_is_used_is_read():
    disk = Disk()
    locate(history(*IN_REINFORCE), disk)
    assert disk.asked == ["checkpoints/12", "checkpoints/6", "3/7", "3/8", "3/9"]
    disk = Disk()
    locate(history(*IN_DISTILL), disk)
    assert disk.asked == ["checkpoints/6", "1/7", "1/8", "1/9"]


def test_without_a_kl_term_the_weights_before_are_read_only_as_a_start():
    told = replace(history(*IN_REINFORCE), without_reference=[3])
    assert place(locate(told, Disk({6}, {(1, 4)}))) == ("checkpoints/12", [7, 8, 9], [], [])
    again = place(locate(told, Disk({6, 9, 12})))
    assert again == ("checkpoints/6", list(range(1, 10)), [], [AGAIN])


def test_what_is_damaged_is_told():
    position = locate(history(*IN_REINFORCE), Disk({6, 12}, {(3, 5)}))
    assert position.damaged == (
        Damage("checkpoints/12", "spoilt"),
        Damage("checkpoints/6", "spoilt"),
    )
    assert position.lost_why == "3/5 is spoilt"


@pytest.mark.parametrize(
    ("phase", "batch", "version"),
    [(1, 2, 101), (1, 1, 0), (3, 9, 308), (3, 7, 306)],
)
def test_the_weight_version_is_that_of_the_last_step_that_stands(phase, batch, version):
    told = (1, [0, 3], []) if phase == 1 else IN_REINFORCE
    position = locate(history(*told), Disk(batches={(phase, batch)}))
    assert (position.step, position.weight_version) == (batch - 1, version)
    assert locate(history(*told), Disk()).weight_version == 999


def test_a_first_step_that_is_lost_leaves_the_version_at_the_end_of_the_phase_before():
    position = locate(history(3, [0, 6, 0, 2], [(1, 6)]), Disk(batches={(3, 1)}))
    assert (position.step, position.weight_version, position.steps) == (0, 20, 6)


def test_going_back_is_done_once():
    """A second look, after the journal was brought to the position, finds the same one."""
    disk = Disk({12}, {(3, 5)})
    first = locate(history(*IN_REINFORCE), disk)
    again = locate(history(3, [0, 6, 0, 4], [(1, 3), (1, 6), (3, 3)]), disk)
    assert place(again)[:2] == place(first)[:2] == ("checkpoints/9", [4])
    assert not again.lost
    assert not again.damaged


def test_a_hole_in_the_journal_is_refused():
    told = history(1, [0, 3], [])
    told.commits[1] = (told.commits[1][0], told.commits[1][2])
    with pytest.raises(InfrastructureError, match="lacks steps of phase 1"):
        locate(told, Disk())
