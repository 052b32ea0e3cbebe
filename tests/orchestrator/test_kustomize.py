"""The part of Kustomize that is built in. That it does what Kustomize does is in tests/cluster."""

import pytest

from judging.errors import ConfigurationError
from orchestrator.kustomize import FILE, build, image_name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("helmCharts: []", "helmCharts"),
        ("resources: [absent.yaml]", "absent.yaml"),
        ("patches: [{target: {kind: RayJob}, patch: '[]'}]", "there is none"),
        (
            "resources: [a.yaml]\npatches: [{target: {kind: A}, patch: '[{op: test, path: /kind, "
            "value: B}]'}]",
            "kind is 'A'",
        ),
        (
            "resources: [a.yaml]\npatches: [{target: {kind: A}, patch: '[{op: replace, path: /b/c, "
            "value: 1}]'}]",
            "KeyError",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text("kind: A\nmetadata: {name: a}\n")
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        build(tmp_path)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("gavel", "gavel"),
        ("gavel:1.0", "gavel"),
        ("host:5000/gavel", "host:5000/gavel"),
        ("host:5000/gavel:1@sha256:ab", "host:5000/gavel"),
    ],
)
def test_an_images_name(image, name):
    assert image_name(image) == name
