import pytest
import torch
from conftest import ROOT, small_space

from vitas import recipe
from vitas.models.fast import fast
from vitas.models.supernet import Supernet
from vitas.models.vit import VisionTransformer
from vitas.spaces.architecture import Architecture, Block

SPACE = small_space()
IMAGES = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def lively(architecture: Architecture) -> VisionTransformer:
    """A model whose class token, positions, norms and biases are not those of the start."""
    torch.manual_seed(0)
    model = VisionTransformer(architecture, 10).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.inference_mode()
def assert_same(model: VisionTransformer, images: torch.Tensor, usual: int) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given, expected = images.clone(), model(images)
    logits = fast(model, usual)
    for _ in range(2):
        assert (logits(images) - expected).abs().max() < 3e-6 * expected.abs().max()
    assert torch.equal(images, given)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("step", range(6))
def test_the_logits_are_those_of_the_model(step, onednn, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", onednn)
    model = lively(SPACE.sample(0, step, skip=0.4))
    for usual in (7, 64):
        assert_same(model, IMAGES, usual)


@pytest.mark.parametrize(("heads", "width"), [(1, 3), (2, 15), (4, 16), (1, 17)])
def test_heads_of_any_width(heads, width):
    block = Block(heads=heads, qkv_dim=3 * heads * width, mlp_dim=5)
    assert_same(lively(Architecture(image_size=16, patch_size=4, embed_dim=9, blocks=(block, None, block))), IMAGES, 7)


@pytest.mark.parametrize("blocks", [(), (Block(heads=2, qkv_dim=24, mlp_dim=8),)])
def test_no_block_and_one_block(blocks):
    assert_same(lively(Architecture(image_size=16, patch_size=8, embed_dim=12, blocks=(*blocks, None))), IMAGES, 7)


def test_a_full_size_subnet_of_either_side():
    space = recipe.load(ROOT / "recipes" / "search_1G.yaml").space
    torch.manual_seed(0)
    net, architecture = Supernet(space, 1000).eval(), space.sample(0, 3, skip=0.5)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        for side in net.sides:
            expected = net._forward_side(images, architecture, side)
            logits = fast(net.extract(architecture, side), 2)(images)
            assert (logits - expected).abs().max() < 3e-6 * expected.abs().max()


def test_under_autocast_too():
    model = lively(SPACE.corner(-1, 4))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, logits = model(IMAGES), fast(model, 7)(IMAGES)
    assert logits.dtype == expected.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
