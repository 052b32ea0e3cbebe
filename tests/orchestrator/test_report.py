import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from run_samples import evaluation, trace_record

from orchestrator.measurements import StepRow
from orchestrator.report import write_report
from orchestrator.rundir import RunDirectory, Summary


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.open(tmp_path, "run-1")
    run.write_config("model: tiny # <b>\n")
    return run


@pytest.fixture
def finished(tmp_path):
    return finished_run(tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The report of the finished run."""
    run = finished_run(tmp_path_factory.mktemp("runs"))
    path = write_report(run)
    assert path == run.report
    return path.read_text("utf-8")


def finished_run(runs):
    run = RunDirectory.open(runs, "run-1")
    run.write_config("model: tiny # <b>\n")
    evaluations = (
        evaluation("base", 0, 0.5, flip_rate=None),
        evaluation("distill", 3, 0.65),
        evaluation("reinforce", 2, 0.86),
    )
    for step in (1, 2, 3):
        run.append_step(StepRow("distill", 0, 3, step, 0.0, {"loss": 1 / step, "grad_norm": 1.0}))
    for step in (1, 2):
        metrics = {
            "reward/mean": 0.1 * step,
            "accuracy": 0.6,
            "parseable": 0.99,
            "kl": 1e-4,
            "logprob_gap": 1e-5,
            "mismatch/k3_kl": 1e-9,
            "mismatch/ratio_p01": 0.99,
            "mismatch/ratio_p50": 1.0,
            "mismatch/ratio_p99": 1.01,
            "time/generate_s": 1.0,
            "time/train_s": 0.5,
            "time/other_s": 0.1,
            "time/step_s": 1.6,
        }
        run.append_step(StepRow("reinforce", 1, 2, step, 0.0, metrics))
    for made in evaluations:
        run.append_evaluation(made, 0.0)
    run.write_summary(Summary("run-1", "done", 7, 90.0, evaluations, 3 * 2**30, {"ray": "2.55.0"}))
    return run


class Page(HTMLParser):
    """The elements of a page, and the figures' titles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def test_report_has_plots_tables_and_settings(drawn):
    titles = re.findall(r"<figcaption><b>(.*?)</b>", drawn)
    assert titles == [
        "Held-out accuracy",
        "Loss (distill)",
        "Gradient norm (distill)",
        "Reward (reinforce)",
        "Verdicts (reinforce)",
        "KL to the reference (reinforce)",
        "Learner against engine (reinforce)",
        "Ratio of learner to engine (reinforce)",
        "Time of a step (reinforce)",
    ]
    assert drawn.count("<svg") == len(titles)
    for shown in ("0.860", "0.810 to 0.910", "+0.210", "done after 1 min 30 s", "2.55.0"):
        assert shown in drawn
    assert "model: tiny # &lt;b&gt;" in drawn


def test_report_stands_on_its_own(drawn):
    page = Page(drawn)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_ids_of_the_pictures_do_not_clash(drawn):
    clips = re.findall(r'<clipPath id="([^"]+)"', drawn)
    assert len(clips) == len(set(clips)) > 0


def test_text_of_a_model_is_escaped(finished):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\x1b[2J\ud83d"
    records = [
        trace_record(0, evil, question=evil),
        trace_record(1, "cut", verdict=None, reason="truncated", score=None, status="timeout"),
    ]
    finished.write_traces(1, "reinforce", 1, [trace_record(9, "an earlier step")])
    finished.write_traces(1, "reinforce", 2, records)
    text = write_report(finished).read_text("utf-8")
    tags = [tag for tag, _ in Page(text).elements]
    assert "script" not in tags
    assert "img" not in tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    assert "Sample judgments: reinforce, step 2" in text
    assert "reward timeout" in text
    assert "an earlier step" not in text


def test_report_of_a_run_that_has_done_nothing_yet(run):
    text = write_report(run).read_text("utf-8")
    assert "no summary yet" in text
    assert "<svg" not in text


def test_report_of_one_step_and_one_evaluation(run):
    run.append_step(StepRow("distill", 0, 1, 1, 0.0, {"loss": 1.0, "time/other_s": 1.0}))
    run.append_evaluation(evaluation("base", 0, 0.5), 0.0)
    assert write_report(run).read_text("utf-8").count("<svg") == 3


def test_each_phase_that_comes_again_has_bar_and_plots_of_its_own(run):
    for index, step in ((1, 1), (3, 2)):
        run.append_step(StepRow("distill", index, 1, step, 0.0, {"loss": 1 / step}))
        run.append_evaluation(evaluation("distill", step, 0.5 + 0.1 * step, made_in=index), 0.0)
        run.append_evaluation(evaluation("reinforce", step, 0.75, made_in=index + 1), 0.0)
    text = write_report(run).read_text("utf-8")
    assert re.findall(r"<figcaption><b>(.*?)</b>", text) == [
        "Held-out accuracy",
        "Loss (distill, phase 2)",
        "Loss (distill, phase 4)",
    ]
    bars = re.search(r"<figure>.*?</figure>", text, re.DOTALL)
    assert bars is not None
    assert [bars[0].count(shown) for shown in ("0.600", "0.700", "0.750")] == [1, 1, 2]


def test_report_leaves_no_global_plotting_state(run):
    run.append_step(StepRow("distill", 0, 1, 1, 0.0, {"loss": 1.0}))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from orchestrator.report import write_report\n"
        "from orchestrator.rundir import RunDirectory\n"
        "write_report(RunDirectory(Path(sys.argv[1])))\n"
        "sys.exit('pyplot' if 'matplotlib.pyplot' in sys.modules else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
