"""The main job, shortened: real Ray, vLLM, DeepSpeed and Redis, from pairs to a judge."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from judging.quickstart import QuickstartTask, generate

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(900)]

SHORT = [
    "data.generate.heldout_pairs=24",
    "distill.max_steps=40",
    "reinforce.max_steps=3",
    "reinforce.prompts_per_step=16",
    "reinforce.mini_batch_prompts=8",
    "output.samples_every_steps=1",
]
EVALUATED = [
    "evaluate.every_steps=20",
    "evaluate.pairs=16",
    "evaluate.benchmarks=[rm-bench]",
    "checkpoint.best_by=accuracy",
    "distill.validation_fraction=0.1",
    "distill.validate_every_steps=15",
    "checkpoint.keep=1",
]


def gavel(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *arguments]


def rm_bench(file: Path) -> Path:
    """Problems of the quickstart's kind, in RM-Bench's layout."""
    made = generate(QuickstartTask(distill_pairs=1, reinforce_pairs=2, heldout_pairs=4, seed=5))
    rows = [
        {
            "id": str(number),
            "domain": "chat",
            "prompt": pair.conversation[-1].content,
            "chosen": [pair.chosen + end for end in ("", ".", "!")],
            "rejected": [pair.rejected + end for end in ("", ".", "!")],
        }
        for number, pair in enumerate(made.heldout)
    ]
    file.parent.mkdir()
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory and the output of one shortened run."""
    runs = tmp_path_factory.mktemp("runs")
    data = rm_bench(tmp_path_factory.mktemp("data") / "rm-bench" / "total_dataset.json")
    settings = (f"run.dir={runs}", "run.id=short", f"evaluate.data={data.parent}")
    command = gavel("run", "configs/quickstart.yaml", *settings, *SHORT, *EVALUATED)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return runs / "short", done.stdout


def rows(run: Path, phase: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase and "loss" in row]


def test_every_phase_ran_and_was_evaluated(finished: tuple[Path, str]) -> None:
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert summary["status"] == "done"
    places = [(row["phase"], row["step"]) for row in summary["evaluations"]]
    assert places == [("base", 0), ("distill", 20), ("distill", 40), ("reinforce", 43)]
    base, _, distilled, _ = summary["evaluations"]
    assert base["parseable"] == 0.0  # random weights
    assert distilled["parseable"] > 0.5
    assert summary["peak_rss_bytes"] < 8e9


def test_benchmarks_are_judged_between_steps_and_the_best_checkpoint_is_kept(
    finished: tuple[Path, str],
) -> None:
    run, output = finished
    summary = json.loads((run / "summary.json").read_text())
    later = summary["evaluations"][1:]
    best = max(later, key=lambda row: row["accuracy"])  # the first of equals
    assert summary["best"] == {
        "path": f"checkpoints/step-{best['step']:06d}",
        "steps": best["step"],
        "by": "accuracy",
        "score": best["accuracy"],
    }
    assert (run / summary["best"]["path"] / "model.safetensors").exists()
    for row in summary["evaluations"]:
        (folder,) = (run / "benchmarks").glob(f"*-step-{row['step']:06d}")
        results = json.loads((folder / "results.json").read_text())
        (result,) = (each["result"] for each in results["benchmarks"])
        assert result["total"] == row["benchmarks"]["rm-bench"]
        judgments = (folder / "judgments.jsonl").read_text().splitlines()
        assert len(judgments) == 4 * 9 * 2  # items, styles and orders
        assert "<svg" in (folder / "report.html").read_text()
    assert f"rm-bench {best['benchmarks']['rm-bench']:.3f}" in output
    assert "Accuracy over the run" in (run / "report.html").read_text()


def test_losses_and_gaps_are_as_they_should_be(finished: tuple[Path, str]) -> None:
    distill, reinforce = rows(finished[0], "distill"), rows(finished[0], "reinforce")
    assert len(distill) == 40
    assert distill[-1]["loss"] < 0.25 * distill[0]["loss"]
    assert len(reinforce) == 3
    for row in reinforce:
        assert row["logprob_gap"] < 1e-4  # fp32
        assert row["probe_gap"] < 1e-4
        assert row["groups"] == 16
        assert row["time/other_s"] < 0.15 * row["time/step_s"]
    assert reinforce[-1]["kl"] > 0  # the policy has moved off its reference
    assert [row["weight_version"] for row in reinforce] == sorted(
        {row["weight_version"] for row in reinforce}
    )


def test_held_out_traces_are_measured_while_others_are_learned(finished: tuple[Path, str]) -> None:
    run, output = finished
    distill = rows(run, "distill")
    measured = {row["step"]: row for row in distill if "validation/loss" in row}
    assert list(measured) == [15, 30, 40]
    losses = [row["validation/loss"] for row in measured.values()]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(distill[-1]["loss"], rel=0.3)
    assert measured[40]["validation/perplexity"] == pytest.approx(math.exp(losses[-1]))
    assert "  validation 0." in output
    report = (run / "report.html").read_text()
    assert "negative log-likelihood of a token of held-out traces" in report


def test_the_run_directory_is_whole(finished: tuple[Path, str]) -> None:
    run, output = finished
    for name in ("config.yaml", "events.jsonl", "report.html", "tensorboard", "journal"):
        assert (run / name).exists(), name
    assert list((run / "traces").glob("3-reinforce/step-*.jsonl"))
    assert "reinforced" in output
    assert not list(run.glob("checkpoints/.*")), "an unfinished checkpoint is left"


def test_the_checkpoint_is_an_ordinary_model(finished: tuple[Path, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    newest = max((finished[0] / "checkpoints").iterdir())
    model = AutoModelForCausalLM.from_pretrained(newest)
    tokenizer = AutoTokenizer.from_pretrained(newest)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q: what is 1+1\nA: it is 2\nB: it is 3"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > ids["input_ids"].shape[1]


def test_status_reads_the_finished_run(finished: tuple[Path, str]) -> None:
    command = gavel("status", "short", "--dir", str(finished[0].parent), "--json")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
