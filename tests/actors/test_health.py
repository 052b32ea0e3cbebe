"""An engine's health: every event in every state, and long histories on a virtual clock."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.health import EngineHealth, Health

HANG_S = 10.0
HEARTBEAT_S = 1.0
MAX_RESTARTS = 2
HEALTHY, SUSPECT, DEAD, RESTARTING, STALE = Health
REFUSED = None


def engine_in(state: Health, *, max_restarts: int = MAX_RESTARTS) -> EngineHealth:
    """An engine that came into `state` at 0 s, its last sign then (SUSPECT: half of hang_s ago)."""
    engine = EngineHealth(-20.0, hang_s=HANG_S, max_restarts=max_restarts)
    if state is RESTARTING:
        return engine
    begin_s = -HANG_S / 2 if state is SUSPECT else 0.0
    engine.started(begin_s)
    if state is not STALE:
        engine.current(begin_s)
    if state is SUSPECT:
        engine.unanswered(0.0)
    if state is DEAD:
        engine.failed("killed")
    assert engine.state is state
    return engine


EVENTS = {
    "progress": lambda engine: engine.observed(1.0, 5, 3),
    "idle": lambda engine: engine.observed(1.0, 0, 0),
    "no progress yet": lambda engine: engine.observed(1.0, 0, 3),
    "no progress for half": lambda engine: engine.observed(HANG_S / 2, 0, 3),
    "no progress in time": lambda engine: engine.observed(HANG_S, 0, 3),
    "unanswered once": lambda engine: engine.unanswered(1.0),
    "unanswered for half": lambda engine: engine.unanswered(HANG_S / 2),
    "unanswered in time": lambda engine: engine.unanswered(HANG_S),
    "count fell": lambda engine: engine.observed(1.0, -1, 0),
    "failed": lambda engine: engine.failed("garbage"),
    "paused": lambda engine: engine.paused(1.0),
    "resumed": lambda engine: engine.resumed(1.0),
    "restarting": lambda engine: engine.restarting(),
    "started": lambda engine: engine.started(1.0),
    "current": lambda engine: engine.current(1.0),
}
# The state after each event, by the state before.
TABLE = {
    #                         HEALTHY  SUSPECT  DEAD        RESTARTING  STALE
    "progress":              (HEALTHY, HEALTHY, DEAD,       RESTARTING, STALE),
    "idle":                  (HEALTHY, HEALTHY, DEAD,       RESTARTING, STALE),
    "no progress yet":       (HEALTHY, SUSPECT, DEAD,       RESTARTING, STALE),
    "no progress for half":  (SUSPECT, DEAD,    DEAD,       RESTARTING, STALE),
    "no progress in time":   (DEAD,    DEAD,    DEAD,       RESTARTING, DEAD),
    "unanswered once":       (HEALTHY, SUSPECT, DEAD,       RESTARTING, STALE),
    "unanswered for half":   (SUSPECT, DEAD,    DEAD,       RESTARTING, STALE),
    "unanswered in time":    (DEAD,    DEAD,    DEAD,       RESTARTING, DEAD),
    "count fell":            (DEAD,    DEAD,    DEAD,       RESTARTING, DEAD),
    "failed":                (DEAD,    DEAD,    DEAD,       DEAD,       DEAD),
    "paused":                (HEALTHY, SUSPECT, DEAD,       RESTARTING, STALE),
    "resumed":               (HEALTHY, SUSPECT, DEAD,       RESTARTING, STALE),
    "restarting":            (REFUSED, REFUSED, RESTARTING, REFUSED,    REFUSED),
    "started":               (REFUSED, REFUSED, REFUSED,    STALE,      REFUSED),
    "current":               (HEALTHY, HEALTHY, REFUSED,    REFUSED,    HEALTHY),
}  # fmt: skip
REFUSED_STATE = {"restarting": RESTARTING, "started": STALE, "current": HEALTHY}


@pytest.mark.parametrize(("event", "state"), list(itertools.product(TABLE, Health)))
def test_each_event_in_each_state(event, state):
    engine = engine_in(state)
    expected = TABLE[event][list(Health).index(state)]
    if expected is REFUSED:
        with pytest.raises(ValueError, match=f"from {state} to {REFUSED_STATE[event]}"):
            EVENTS[event](engine)
        assert engine.state is state
    else:
        EVENTS[event](engine)
        assert engine.state is expected
    assert engine.takes_work == (engine.state is HEALTHY)


def test_every_event_is_in_the_table():
    assert EVENTS.keys() == TABLE.keys()


def test_the_reason_is_the_first_one_and_goes_with_health():
    engine = engine_in(HEALTHY)
    engine.observed(4.0, 7, 2)
    engine.observed(14.5, 7, 2)
    engine.failed("its requests were given up")
    assert engine.reason == "no progress with 2 requests in flight for 10 s"
    engine.restarting()
    engine.started(20.0)
    assert engine.reason
    engine.current(21.0)
    assert engine.reason == ""


def test_the_budget_of_restarts_is_for_the_whole_run():
    engine = engine_in(DEAD, max_restarts=1)
    assert engine.may_restart
    engine.restarting()
    assert not engine.may_restart  # it is under way
    engine.started(2.0)
    engine.current(3.0)
    engine.failed("killed again")
    assert not engine.may_restart
    with pytest.raises(ValueError, match="from dead to restarting: all 1 restarts are spent"):
        engine.restarting()
    assert (engine.state, engine.restarts) == (DEAD, 1)


def test_a_pause_stops_the_clock_and_does_not_set_it_back():
    """Or engines that publications reach more often than they could hang would never be hung."""
    engine = engine_in(HEALTHY)
    engine.observed(4.0, 0, 3)
    engine.paused(4.0)
    engine.observed(100.0, 0, 3)
    engine.unanswered(101.0)
    assert engine.state is HEALTHY
    engine.resumed(104.0)
    engine.observed(104.5, 0, 3)
    assert engine.state is HEALTHY
    engine.observed(105.0, 0, 3)
    assert engine.state is SUSPECT
    engine.observed(110.0, 0, 3)
    assert engine.state is DEAD


@given(gap_s=st.floats(0.01, 2 * HANG_S), works=st.lists(st.booleans(), max_size=60))
def test_an_engine_that_works_or_idles_stays_healthy(gap_s, works):
    engine = engine_in(HEALTHY)
    for beat in range(1, len(works) + 1):
        in_flight = int(works[beat - 1])
        engine.observed(beat * gap_s, sum(works[:beat]), in_flight)
        assert engine.state is HEALTHY


class Histories(RuleBasedStateMachine):
    """An engine that works, hangs and falls silent, and a shell that reports as it should.

    `model_*` is kept apart from the machine: what an observer with a stop watch knows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.engine = EngineHealth(0.0, hang_s=HANG_S, max_restarts=MAX_RESTARTS)
        self.before = self.engine.state
        self.iterations = self.seen = 0  # in truth; as the last answer told
        self.silent_s = 0.0  # since the last sign, pauses not counted
        self.is_paused = False
        self.holds_current = False

    def is_up(self) -> bool:
        return self.engine.state not in (DEAD, RESTARTING)

    @rule(works=st.booleans(), in_flight=st.integers(0, 3), answers=st.booleans())
    def heartbeat(self, works, in_flight, answers):
        self.now_s += HEARTBEAT_S
        self.silent_s += 0.0 if self.is_paused else HEARTBEAT_S
        self.iterations += works and in_flight > 0
        if not answers:
            self.engine.unanswered(self.now_s)
            return
        if self.iterations > self.seen or in_flight == 0:
            self.seen, self.silent_s = self.iterations, 0.0
        self.engine.observed(self.now_s, self.iterations, in_flight)

    @rule(beats=st.integers(1, 12))
    def hang(self, beats):
        for _ in range(beats):
            self.heartbeat(works=False, in_flight=1, answers=True)

    @rule()
    def fail(self):
        self.engine.failed("killed")

    @rule()
    def pause(self):
        self.engine.paused(self.now_s)
        self.is_paused = True

    @rule()
    def resume(self):
        self.engine.resumed(self.now_s)
        self.is_paused = False

    @precondition(lambda self: self.engine.may_restart)
    @rule()
    def restart(self):
        self.engine.restarting()
        self.holds_current = False

    @precondition(lambda self: self.engine.state is RESTARTING)
    @rule()
    def start(self):
        self.engine.started(self.now_s)
        assert self.engine.state is STALE
        self.iterations = self.seen = 0
        self.silent_s, self.is_paused = 0.0, False

    @precondition(lambda self: self.is_up())
    @rule()
    def take_current_weights(self):
        self.engine.current(self.now_s)
        self.holds_current, self.silent_s = True, 0.0

    @invariant()
    def only_what_holds_the_current_weights_takes_work(self):
        assert not self.engine.takes_work or self.holds_current

    @invariant()
    def a_hung_engine_is_dead_in_time_and_a_suspect_is_given_nothing(self):
        if self.is_up():
            assert self.silent_s < HANG_S
        if self.engine.takes_work:
            assert self.silent_s < HANG_S / 2

    @invariant()
    def the_budget_holds(self):
        assert self.engine.restarts <= MAX_RESTARTS

    @invariant()
    def what_is_out_has_a_reason(self):
        assert bool(self.engine.reason) or self.engine.state is not DEAD
        assert not (self.engine.reason and self.engine.takes_work)

    @invariant()
    def no_way_leads_from_out_to_healthy_but_through_stale(self):
        if self.before in (DEAD, RESTARTING):
            assert self.engine.state in (DEAD, RESTARTING, STALE)
        self.before = self.engine.state


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_histories = Histories.TestCase
