"""Layer Map on the host's networks."""

import sys

import pytest
import torch
from comfy_api.latest import io
from pack.nodes.helpers import LayerMap
from pack.nodes.pictures.drawing import CHOSEN, draw_layers
from pack.patches.host import layer_map, select_layers
from pack.tests.host import networks
from pack.tests.host.harness import network
from pack.tests.host.zoo import SPECIMENS

COLOR = torch.tensor([int(CHOSEN[at : at + 2], 16) for at in (1, 3, 5)]) / 255


def coloured(picture: torch.Tensor) -> int:
    """How many pixels have the colour of a chosen layer."""
    return int(((picture - COLOR).abs().amax(-1) < 0.01).sum())


@pytest.mark.parametrize("kind", ["unet", "sdxl", "sd3", "flux", "wan"])
def test_the_picture_shows_as_many_layers_as_are_chosen(kind):
    model = network(kind)
    every = select_layers(model, "all")
    areas = []
    for count in (1, len(every)):
        text = ", ".join(map(str, every[:count]))
        picture = draw_layers(layer_map(model, text, 256, 128))
        assert picture.ndim == 4 and picture.shape[3] == 3 and picture.min() >= 0 and picture.max() <= 1
        areas.append(coloured(picture[0]))
    assert areas[0] > 0
    assert areas[1] / areas[0] == pytest.approx(len(every), rel=0.35)


def test_tokens_are_those_that_the_network_attends_over():
    """By the networks of the table's tests, whose grids are read off the host's code."""
    for specimen in SPECIMENS:
        if specimen.row != "Stable Diffusion 1, 2, XL, SVD":
            continue
        _, height, width = specimen.latent
        found = layer_map(specimen.build(), "auto", width * 8, height * 8)
        for layer in found.layers:
            assert found.grids[layer.stack, layer.index] == specimen.grid_of(str(layer))


def test_the_node_gives_picture_and_list_and_shows_the_picture(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    found = LayerMap.execute(model=network("unet"), layers="middle", layers_of="attention", width=512, height=768)
    picture, text = found.result
    assert isinstance(found, io.NodeOutput) and coloured(picture[0]) and "chosen: middle" in text
    assert len(found.ui["images"]) == 1 and list(tmp_path.iterdir())
    (drawn,) = found.ui["beyond_cfg_layers"]
    assert drawn["chosen"] == ["middle"] and drawn["size"] == [512, 768]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"layers": "input.99"}, 'Layer Map: layers "input.99": there is no "input.99"'),
        ({"layers_of": "skip layer"}, "Layer Map: no layer of Stable Diffusion"),
        ({"model": "unknown"}, "Layer Map: BaseModel (Linear) is not supported"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(settings, part):
    given = {"model": "unet", "layers": "auto", "layers_of": "attention", "width": 512, "height": 512} | settings
    given["model"] = getattr(networks, given["model"])()
    with pytest.raises(ValueError) as error:
        LayerMap.execute(**given)
    assert str(error.value).startswith(part)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="Layer Map: drawing needs matplotlib, which is missing"):
        LayerMap.execute(model=networks.unet(), layers="auto", layers_of="attention", width=512, height=512)
