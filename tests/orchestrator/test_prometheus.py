"""What the table's names are called in Prometheus, and that the board asks for nothing else."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.metrics import METRICS, RUN_METRICS, Metric, metric
from orchestrator.prometheus import families, family_of, series_of

BOARD = Path(__file__).parents[2] / "cluster/components/monitoring/gavel-board.json"


@pytest.mark.parametrize(
    ("name", "exposed"),
    [
        ("reward/mean", "ray_gavel_reward_mean_score"),
        ("accuracy", "ray_gavel_accuracy_ratio"),
        ("tokens", "ray_gavel_tokens_total"),
        ("tokens_per_s", "ray_gavel_tokens_per_second"),
        ("kl", "ray_gavel_kl_nats"),
        ("grad_norm", "ray_gavel_grad_norm"),
        ("mismatch/ratio_p99", "ray_gavel_mismatch_ratio_p99"),
        ("staleness", "ray_gavel_staleness_versions"),
        ("engines", "ray_gavel_engines"),
        ("engine_restarts", "ray_gavel_engine_restarts_total"),
        ("time/train_s", "ray_gavel_time_train_seconds"),
        ("time/step_s", "ray_gavel_time_step_seconds_bucket"),
        ("eval/accuracy", "ray_gavel_eval_accuracy_ratio"),
    ],
)
def test_names_follow_prometheus_rules(name, exposed):
    assert exposed in family_of(metric(name)).exposed


def test_every_row_has_a_valid_name_of_its_own_and_its_meaning():
    made = families()
    assert len(made) == len(METRICS) + len(RUN_METRICS) + 5 + 1  # of each reward, of each pass
    names = Counter(name for family in made for name in family.exposed)
    assert set(names.values()) == {1}
    for family in made:
        assert re.fullmatch(r"gavel_[a-z][a-z0-9_]*[a-z0-9]", family.name)
        assert family.help
        assert "{" not in family.help
        assert family.labels[:2] == ("run", "phase")
    assert "(nats)" in family_of(METRICS["kl"]).help
    assert METRICS["kl"].meaning in family_of(METRICS["kl"]).help


def test_a_unit_that_no_row_has_yet_is_valid_too():
    assert family_of(Metric("disk/free", "MB/s", "")).name == "gavel_disk_free_MB_s"


def test_keep_rates_share_a_name_and_differ_by_label():
    family, labels = series_of("synthesis/kept/magpie/pro/pass_2")
    assert family.exposed == ("ray_gavel_synthesis_kept_in_pass_ratio",)
    assert labels == {"source": "magpie/pro", "number": "2"}


def test_rewards_share_names_and_differ_by_label():
    family, labels = series_of("reward/brevity/score")
    assert (family.name, labels) == ("gavel_each_reward_score", {"reward": "brevity"})
    family, labels = series_of("reward/brevity/words/long ones")
    assert family.name == "gavel_each_reward_component"
    assert labels == {"reward": "brevity", "component": "words/long ones"}
    assert family.labels == ("run", "phase", "reward", "component")
    assert series_of("reward/mean")[1] == {}


def test_the_board_asks_for_what_is_told():
    board = json.loads(BOARD.read_text())
    told = {name: family for family in families() for name in family.exposed}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    asked: set[str] = set()
    for panel in panels:
        assert panel["description"]
        for target in panel["targets"]:
            query, legend = target["expr"], target["legendFormat"]
            assert query.count("(") == query.count(")")
            assert set(re.findall(r"\$([a-z]+)", query)) <= variables
            ours = re.findall(r"ray_gavel_\w+", query)
            asked |= set(ours)
            for name in ours:
                assert name in told, query
                labels = {*told[name].labels, "ray_io_cluster"}
                assert set(re.findall(r"{{(\w+)}}", legend)) <= labels
                assert f'{name}{{ray_io_cluster=~"$cluster", run=~"$run"}}' in query
    for variable in board["templating"]["list"]:
        assert all(name in told for name in re.findall(r"ray_gavel_\w+", str(variable["query"])))
    rows = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(rows) == len(panels)
    assert len(asked) >= 20
