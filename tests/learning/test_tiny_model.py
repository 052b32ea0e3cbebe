import hashlib
from pathlib import Path

import pytest

from learning.tiny import TinyModel, make_tiny_model

pytestmark = pytest.mark.integration  # imports transformers
TRACE = (
    "<type>Chat</type><rubric> names cat<justify> asked</justify></rubric><answer>[[A]]</answer>"
)
TEXTS = [f"Q: write about {noun}\nA: the {noun} sleeps\nB: it is 42" for noun in ("cat", "dog")]
TEXTS.append(TRACE)
TURNS = [
    {"role": "system", "content": "judge well"},
    {"role": "user", "content": TEXTS[0]},
    {"role": "assistant", "content": TRACE},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "model"
    make_tiny_model(path, TEXTS, TinyModel())
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "text", [*TEXTS, "Grüße, 世界! 🙂", "  two  spaces\n\nand lines\t", "cafe9+13=22"]
)
def test_text_survives_the_tokenizer_that_is_loaded(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_tag_is_one_token_as_is_a_word_and_a_digit(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(TRACE)["input_ids"])
    assert tokens[:4] == ["<type>", "Chat", "</type>", "<rubric>"]
    assert tokenizer.tokenize(" cat 42") == ["Ġcat", "Ġ", "4", "2"]


def test_the_loaded_tokenizer_splits_as_the_saved_one(folder, tokenizer):
    from tokenizers import Tokenizer

    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert saved.encode(text).ids == tokenizer(text)["input_ids"]


def test_chat_template_renders_all_roles_and_opens_the_assistants_turn(tokenizer):
    text = tokenizer.apply_chat_template(TURNS[:2], add_generation_prompt=True, tokenize=False)
    assert text == (
        f"<|im_start|>system\njudge well<|im_end|><|im_start|>user\n{TEXTS[0]}<|im_end|>"
        "<|im_start|>assistant\n"
    )
    whole = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False)
    assert whole[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(whole)[:3] == ["<|im_start|>", "system", "Ċ"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_loads_runs_and_has_a_token_for_every_id(tmp_path, tied):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tiny_model(tmp_path, TEXTS, TinyModel(tie_word_embeddings=tied))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(TEXTS[0])["input_ids"]])).logits
    assert torch.isfinite(logits).all()
    is_shared = model.lm_head.weight is model.model.embed_tokens.weight
    assert is_shared is tied


def test_the_same_seed_gives_the_same_files_and_another_seed_other_weights(folder, tmp_path):
    import torch

    before = torch.random.get_rng_state()
    make_tiny_model(tmp_path / "again", iter(TEXTS), TinyModel())
    assert torch.equal(torch.random.get_rng_state(), before)
    make_tiny_model(tmp_path / "other", TEXTS, TinyModel(seed=1))
    first, again, other = digests(folder), digests(tmp_path / "again"), digests(tmp_path / "other")
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


@pytest.mark.parametrize(
    ("settings", "texts", "message"),
    [
        (TinyModel(hidden_size=100, heads=8), TEXTS, "hidden_size 100"),
        (TinyModel(heads=4, kv_heads=3), TEXTS, "kv_heads 3"),
        (TinyModel(), [], "texts"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, settings, texts, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_model(tmp_path / "model", texts, settings)
