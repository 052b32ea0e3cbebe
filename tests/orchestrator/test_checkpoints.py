"""A checkpoint folder is whole or is known not to be."""

import hashlib
import json
import os
import shutil

import pytest

from orchestrator.checkpoints import MANIFEST, find_damage, hide_checkpoint, new_checkpoint, sweep

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "trainer/state.json": b'{"steps_done": 3}',
    "trainer/state-00001.safetensors": b"moments" * 1000,
}


async def write(final, files=FILES, error=None):
    async with new_checkpoint(final) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        if error:
            raise error


@pytest.fixture
async def checkpoint(tmp_path):
    final = tmp_path / "checkpoints" / "step-000003"
    await write(final)
    return final


def content(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_its_manifest_lists_every_file_those_of_the_trainer_too(checkpoint):
    listed = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert listed == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in FILES.items()
    }
    assert find_damage(checkpoint) is None
    assert set(content(checkpoint)) == {*FILES, MANIFEST}
    assert os.listdir(checkpoint.parent) == ["step-000003"]


async def test_what_was_not_written_to_its_end_gets_no_name(checkpoint):
    before = content(checkpoint)
    for final in (checkpoint, checkpoint.with_name("step-000004")):
        with pytest.raises(RuntimeError, match="the learner died"):
            await write(final, {"config.json": b"[]"}, RuntimeError("the learner died"))
    assert os.listdir(checkpoint.parent) == ["step-000003"]
    assert content(checkpoint) == before


async def test_it_takes_the_place_of_one_that_the_journal_does_not_know(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"half")
    (checkpoint / "stale").write_bytes(b"")
    await write(checkpoint)
    assert set(content(checkpoint)) == {*FILES, MANIFEST}
    assert find_damage(checkpoint) is None
    assert os.listdir(checkpoint.parent) == ["step-000003"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def edit_manifest(path):
    path.write_text('{"files": {"config.json": 3}}')


@pytest.mark.parametrize(
    ("name", "spoil", "found"),
    [
        ("", shutil.rmtree, "the folder is missing"),
        (MANIFEST, os.unlink, "gavel.json is missing: it was not written to its end"),
        (MANIFEST, cut, "gavel.json cannot be read: JSONDecodeError"),
        (MANIFEST, edit_manifest, "gavel.json cannot be read: TypeError"),
        ("model.safetensors", os.unlink, "model.safetensors is missing"),
        ("model.safetensors", cut, "model.safetensors has 100 bytes instead of 7000"),
        ("model.safetensors", flip, "model.safetensors does not have its SHA-256"),
        ("trainer/state-00001.safetensors", flip, "trainer/state-00001.safetensors does not have"),
        ("trainer", shutil.rmtree, "trainer/state-00001.safetensors is missing"),
    ],
)
async def test_damage_is_named_with_its_file(checkpoint, name, spoil, found):
    spoil(checkpoint / name)
    assert str(find_damage(checkpoint)).startswith(found)


async def test_a_file_that_cannot_be_read_is_damage(checkpoint):
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to("config.json")  # also for root: a loop of links
    assert str(find_damage(checkpoint)).startswith("config.json cannot be read: Too many levels")


async def test_a_file_that_a_person_added_is_no_damage(checkpoint):
    (checkpoint / "README.md").write_text("My judge.")
    assert find_damage(checkpoint) is None


async def test_what_is_hidden_goes_and_nothing_else(checkpoint):
    folder = checkpoint.parent
    await write(folder / "step-000006")
    hide_checkpoint(checkpoint)
    (folder / ".step-000009.partial").mkdir()
    (folder / ".mine").mkdir()
    assert not checkpoint.exists()
    sweep(folder)
    assert sorted(os.listdir(folder)) == [".mine", "step-000006"]
    sweep(folder / "none")
