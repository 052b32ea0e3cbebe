"""Several sources in a configuration, and `gavel data`, which shows what came of them."""

import json
from pathlib import Path

import pytest

from judging.errors import ConfigurationError, DataError
from orchestrator.cli import main
from orchestrator.cluster_render import on_cluster
from orchestrator.config_loading import config_from_tree, load_config
from orchestrator.facts import absent_data, gather_facts
from orchestrator.pairs import load_pairs
from orchestrator.plan import make_plan, render_plan

RECIPES = Path(__file__).parents[2] / "configs" / "rm-r1"
TREE = {
    "model": {"make": {}},
    "phases": ["reinforce", "evaluate"],
    "reinforce": {"prompts_per_step": 1, "mini_batch_prompts": 1},
    "rollout": {"max_new_tokens": 64},
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sources(tmp_path) -> dict:
    """Small files of the layouts of RM-R1's three sources."""
    chat = [
        {
            "chosen": [
                {"role": "user", "content": f"chat {n}"},
                {"role": "assistant", "content": "+"},
            ],
            "rejected": [
                {"role": "user", "content": f"chat {n}"},
                {"role": "assistant", "content": "-"},
            ],
            "source": ["magpie_ultra", "<b>$helpsteer2</b>"][n % 2],
        }
        for n in range(60)
    ]
    code = [{"input": f"code {n}", "accepted": "good", "rejected": "bad"} for n in range(50)]
    math = [
        {
            "prompt": f"math {n // 2}",
            "initial_reason_steps": "Step 1:",
            "full_chosen": f" {n}",
            "full_rejected": " no",
            "dataset": "GSM",
        }
        for n in range(40)
    ]
    return {
        "skywork": {
            "path": write(tmp_path / "skywork.jsonl", chat),
            "exclude": {"source": ["magpie_ultra"]},
        },
        "code": {"path": write(tmp_path / "code.jsonl", code), "limit": 20},
        "math": {"path": write(tmp_path / "math.jsonl", [*math, math[0]])},
    }


def config_with(sources: dict | None, **data):
    fractions = {"heldout_fraction": 0.1, "distill_fraction": 0.2, "max_prompt_tokens": 96}
    return config_from_tree(TREE | {"data": fractions | {"sources": sources} | data})


@pytest.fixture
def file(tmp_path, sources) -> Path:
    path = tmp_path / "mix.yaml"
    data = {"sources": sources, "heldout_fraction": 0.1, "max_prompt_tokens": 96}
    path.write_text(json.dumps(TREE | {"data": data}))
    return path


def test_the_mix_is_split_by_source_and_its_counts_are_notes_of_the_plan(sources):
    config = config_with(sources)
    facts = gather_facts(config)
    assert facts.parts is not None
    split = load_pairs(config).split
    assert (facts.parts.reinforce, facts.parts.heldout) == (
        len(split.reinforce),
        len(split.heldout),
    )
    counted = [pair.source for pair in split.heldout]
    assert sorted(counted) == ["code"] * 2 + ["math"] * 4 + ["skywork"] * 3
    parts = (split.distill, split.reinforce, split.heldout)
    conversations = [{pair.conversation for pair in part} for part in parts]
    assert sum(map(len, conversations)) == len(set().union(*conversations)) == 30 + 20 + 20
    plan = render_plan(make_plan(config, facts))
    assert "data.sources.skywork: 30 of 60 rows kept, 30 left out (30 excluded)" in plan
    assert "data.sources.code: 20 of 50 rows kept, 30 left out (30 over limit)" in plan
    assert "data.sources.math: 40 of 41 rows kept, 1 left out (1 duplicate)" in plan
    again = load_pairs(config).split
    assert again == split
    assert load_pairs(config_with(sources, limit=45)).reports["math"].over_limit > 0


def test_training_pairs_of_the_mix_that_repeat_evaluation_are_counted_by_source(sources, tmp_path):
    rows = [{"prompt": f"code {n}", "chosen": "x", "rejected": "y"} for n in range(50)]
    heldout = write(tmp_path / "heldout.jsonl", rows)
    config = config_with(sources, heldout_path=heldout, overlap="drop")
    assert load_pairs(config).overlapping == {"code": 20}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": {"path": None}}, "data.sources.code.path"),
        ({"code": {"weight": 0}}, "data.sources.code.weight is 0"),
        ({"code": {"weight": 1.0}}, "data.sources.skywork has no weight, but other sources"),
        ({"code": {"limit": 0}}, "data.sources.code.limit is 0"),
        ({"code": {"limt": 5}}, "unknown key data.sources.code.limt: did you mean data.sources"),
        ({"code": {"exclude": {"a": "b"}}}, "data.sources.code.exclude.a"),
        ({"co de": {"path": "x"}}, "data.sources.co de: a source's name"),
    ],
)
def test_settings_of_sources_that_cannot_be_are_refused_by_name(sources, changes, message):
    for name, keys in changes.items():
        sources[name] = sources.get(name, {}) | keys
    if sources["code"].get("path", "") is None:
        del sources["code"]["path"]
    with pytest.raises(ConfigurationError) as caught:
        config_with(sources)
    assert message in str(caught.value)


def test_pairs_have_one_origin(sources):
    with pytest.raises(ConfigurationError, match=r"data\.path and data\.sources are both set"):
        config_with(sources, path="x")
    with pytest.raises(ConfigurationError, match=r"data\.sources and data\.generate"):
        config_with(sources, generate={})
    with pytest.raises(ConfigurationError, match=r"data\.sources names no source"):
        config_with({})
    with pytest.raises(ConfigurationError, match=r"none of data\.path, data\.sources"):
        config_with(None)


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ([{"a": 1}], {}, r"data\.sources\.code: .*code\.jsonl:1: unknown layout"),
        (None, {"exclude": {"kind": ["x"]}}, r"data\.sources\.code: .*no column kind"),
        (None, {"include": {"rejected": ["x"]}}, r"data\.sources\.code: .*50 excluded"),
    ],
)
def test_data_of_sources_that_cannot_be_used_is_refused_by_name(
    sources, tmp_path, rows, keys, message
):
    if rows is not None:
        write(tmp_path / "code.jsonl", rows)
    sources["code"] |= keys
    with pytest.raises(DataError, match=message):
        gather_facts(config_with(sources))


def test_a_dry_run_refuses_a_source_that_cannot_be_used_and_shows_the_counts(file, capsys):
    assert main(["run", str(file), "--dry-run"]) == 0
    assert "data.sources.code: 20 of 50 rows kept" in capsys.readouterr().out
    assert main(["run", str(file), "--dry-run", "data.sources.code.exclude={kind: [x]}"]) == 2
    assert "data.sources.code: " in capsys.readouterr().err


def test_a_value_that_no_row_has_is_noted(sources):
    sources["skywork"]["exclude"] = {"source": ["magpie_ultra", "magpie-ultra"]}
    notes = load_pairs(config_with(sources)).notes
    assert any("skywork: no row has source=magpie-ultra" in note for note in notes)


def test_sources_are_below_the_shared_volume_in_a_cluster(sources):
    sources["code"]["path"] = "data/code"
    in_cluster = on_cluster(config_with(sources), "mix").data.sources
    assert in_cluster is not None
    assert in_cluster["code"].path == "/runs/data/code"
    assert in_cluster["code"].limit == 20


def test_paths_of_sources_count_from_the_file_and_may_be_absent(tmp_path, sources):
    tree = TREE | {"data": {"sources": {"a": {"path": "code.jsonl"}, "b": {"path": "none"}}}}
    tree["rollout"] = {"max_new_tokens": 4}
    path = tmp_path / "here.yaml"
    path.write_text(json.dumps(tree))
    config = load_config(path, ["data.max_prompt_tokens=96"])
    assert config.data.sources is not None
    assert config.data.sources["a"].path == str(tmp_path / "code.jsonl")
    assert absent_data(config) == {"data.sources.b.path": "none"}
    assert gather_facts(config).parts is None


def test_rm_r1s_mix_is_a_configuration_that_recipes_extend(tmp_path):
    mix = load_config(RECIPES / "data.yaml").data.sources
    assert mix is not None
    assert mix["skywork"].exclude == {"source": ("magpie_ultra",)}
    assert mix["code"].limit == 8000
    assert mix["math"].limit is None
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"extends: {RECIPES / 'data.yaml'}\nphases: [reinforce]\nmodel: {{path: some/model-7B}}\n"
    )
    assert load_config(recipe).data.sources == mix
    alone = ["data.sources=null", "data.path=x"]
    assert load_config(recipe, alone).data.sources is None


def test_gavel_data_shows_counts_lengths_categories_and_examples(file, capsys):
    assert main(["data", str(file)]) == 0
    shown = capsys.readouterr().out
    for part in ("excluded", "over limit", "held out", "characters of 90 pairs", "GSM", "Step 1:"):
        assert part in shown
    assert "<b>$helpsteer2</b>" in shown
    assert main(["data", str(file), "--json", "data.sources.code.limit=10"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["sources"]["code"] == {"rows": 50, "kept": 10, "left_out": {"over limit": 40}}
    assert sum(tree["parts"]["math"].values()) == 40
    assert tree["categories"]["math"] == {"GSM": 40}
    assert tree["lengths"]["unit"] == "characters"
    assert tree["lengths"]["sources"]["math"]["chosen"]["max"] == len("Step 1: 10")
    assert 0.25 < tree["chosen_first"] < 0.75
    assert {example["source"] for example in tree["examples"]} == {"skywork", "code", "math"}


def test_the_page_of_gavel_data_holds_plots_and_escapes_text(file, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["data", str(file), "--html", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.count("<svg") == 2 + 3
    assert "&lt;b&gt;$helpsteer2&lt;/b&gt;" in text
    assert "<b>$helpsteer2</b>" not in text
    assert 'http-equiv="Content-Security-Policy"' in text


def test_lengths_are_in_tokens_of_the_models_tokenizer(file, tmp_path, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    model = ["model.make=null", f"model.path={tmp_path / 'model'}"]
    assert main(["data", str(file), "--json", *model]) == 0
    lengths = json.loads(capsys.readouterr().out)["lengths"]
    assert lengths["unit"] == "tokens"
    assert lengths["sources"]["math"]["chosen"]["max"] == 3


def test_gavel_data_takes_a_path_and_generated_problems(file, tmp_path, capsys):
    alone = ["data.sources=null", f"data.path={tmp_path / 'code.jsonl'}", "data.limit=30"]
    assert main(["data", str(file), "--json", *alone]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["sources"][str(tmp_path / "code.jsonl")]["left_out"] == {"over limit": 20}
    assert sum(tree["parts"]["code"].values()) == 30
    made = ["data.sources=null", "data.generate={reinforce_pairs: 20, heldout_pairs: 10}"]
    assert main(["data", str(file), *made]) == 0
    assert "quickstart" in capsys.readouterr().out


def test_gavel_data_refuses_data_that_is_not_here(file, capsys):
    assert main(["data", str(file), "data.sources.code.path=nowhere"]) == 2
    assert "data.sources.code.path: nowhere is not on this machine" in capsys.readouterr().err
