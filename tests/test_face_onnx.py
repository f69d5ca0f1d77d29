"""`gram export`: the classifier without torch."""

import json

import numpy as np
import pytest
import torch
from test_face import BACKBONE, picture, save_pictures

from gram import InputError, PromptClassifier, export


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    own = save_pictures(tmp_path_factory.mktemp("own") / "pictures")
    return PromptClassifier(BACKBONE, method="probe", folds=2).fit(own)


def test_the_graph_answers_as_torch_does(model, tmp_path):
    """Any number of pictures, and what is needed to prepare them."""
    ort = pytest.importorskip("onnxruntime")
    path = tmp_path / "m.onnx"
    assert export.export(model, path) <= export.TOLERANCE
    session = ort.InferenceSession(path)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == ["bus", "lion", "sea star"]
    assert json.loads(told["preprocessing"])["mean"] == [0.5, 0.5, 0.5]
    assert "composed on white" in told["opening"] and "centre cropped" in told["opening"]
    for count in (1, 2, 5):
        pictures = [picture((40 * i, 90, 90), i) for i in range(count)]
        views = [model.backbone_.test_view(p) for p in pictures]
        found = session.run(None, {"pixels": torch.stack(views).numpy()})[0]
        assert np.abs(found - model.predict_proba(pictures)).max() < 1e-4


def test_a_graph_that_differs_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="nothing is written"):
        export.export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_replaces_a_graph_and_nothing_else(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"a report that somebody called so")
    with pytest.raises(InputError, match="is no graph that `gram export` wrote"):
        export.export(model, path)
    assert path.read_bytes() == b"a report that somebody called so"
    other = onnx.helper.make_graph([], "other", [], [])
    onnx.save(onnx.helper.make_model(other), path)
    with pytest.raises(InputError, match="is no graph"):
        export.export(model, path)
    for place in (tmp_path, tmp_path / "link"):
        (tmp_path / "link").is_symlink() or (tmp_path / "link").symlink_to("gone")
        with pytest.raises(InputError, match="is there already"):
            export.export(model, place)
    path.unlink()
    assert export.export(model, path) == export.export(model, path)
