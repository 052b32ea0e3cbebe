"""Fixtures that tests of several packages share: small models, and data from outside."""

import os
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Ray reads these when it is imported, which other tests do before one starts a cluster.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

# A shared machine may stop for longer than any example takes.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

INTEGRATION_ONLY = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.integration", re.MULTILINE)
ModelMaker = Callable[..., Path]

TEXTS = (
    "Which answer names the city? One of them says Lima, the other one says Cusco.",
    "<type>Chat</type><rubric> names the city</rubric><answer>[[A]]</answer>",
    "<type>Reasoning</type><solution> 2 + 3 = 5</solution><answer>[[B]]</answer>",
)
GAIN = 2.0  # fresh weights give every token nearly the same probability, which would hide errors


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A module whose tests are all left out is not imported for that: some import much."""
    if not (collection_path.name.startswith("test_") and collection_path.suffix == ".py"):
        return None
    text = collection_path.read_text("utf-8")
    has_some, is_alone = "pytest.mark.integration" in text, "pytest.mark.alone" in text
    is_left_out = {
        "not integration": bool(INTEGRATION_ONLY.search(text)),
        "integration": not has_some,
        "integration and not alone": not has_some or is_alone,
        "integration and alone": not is_alone,
    }
    return is_left_out.get(config.option.markexpr) or None


@pytest.fixture(scope="session")
def make_model(tmp_path_factory) -> ModelMaker:
    """`make_model(seed=0, tied=True)`: the folder of a two-layer Qwen2 with random weights."""
    made: dict[tuple[int, bool], Path] = {}

    def make(*, seed: int = 0, tied: bool = True) -> Path:
        if (seed, tied) not in made:
            folder = tmp_path_factory.mktemp("model")
            _write_model(folder, seed, tied)
            made[seed, tied] = folder
        return made[seed, tied]

    return make


def _write_model(folder: Path, seed: int, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from learning.tiny import TinyModel, make_tiny_model

    shape = TinyModel(layers=2, seed=seed, tie_word_embeddings=tied, initializer_range=0.02)
    make_tiny_model(folder, TEXTS, shape)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(GAIN)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data that is not part of the repository."""
    root = os.environ.get("GAVEL_SHARED_DATA")
    if not root:
        pytest.skip("GAVEL_SHARED_DATA is not set: no data from outside to read")
    return Path(root)


@pytest.fixture
def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
