import pytest
import torch
from conftest import small_space

from vitas.models.elastic import take
from vitas.models.saved import load_model, save_model
from vitas.models.supernet import Supernet
from vitas.spaces.space import SearchSpace, Widths
from vitas.train.objectives import cross_entropy

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def randomised(space: SearchSpace, **options) -> Supernet:
    torch.manual_seed(0)
    net = Supernet(space, 7, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic"])
@pytest.mark.parametrize("attention", ["private_qk", "shared", "private_v", "private"])
def test_extracted_equals_sliced_and_every_weight_gets_a_gradient(sharing, attention):
    net = randomised(small_space(), sharing=sharing, attention=attention)
    for step in range(5):
        architecture = net.space.sample(0, step, skip=0.4)
        logits = net(IMAGES, architecture)
        extracted = sum(net.extract(architecture, side)(IMAGES) for side in net.sides)
        torch.testing.assert_close(logits, extracted, atol=1e-5, rtol=0)
        net.zero_grad()
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_two_sides_differ_and_train_different_channels():
    net = randomised(small_space())
    narrow = net.space.decode(torch.zeros(len(net.space.cardinality), dtype=torch.long).numpy())
    left, right = (net.extract(narrow, side)(IMAGES) for side in ("left", "right"))
    assert (left - right).abs().max() > 1e-2


@pytest.mark.parametrize(("attention", "private"), [("private_qk", "qk"), ("private", ["q", "k", "v", "proj"])])
def test_each_patch_size_and_head_choice_has_its_own_weights(attention, private):
    net = randomised(small_space(identity="none"), attention=attention)
    architecture = net.space.sample(0, 0)
    net(IMAGES, architecture).sum().backward()
    used = net.space.patch_size.index(architecture.patch_size)
    for index, stem in enumerate(net.stems):
        for parameter in stem.parameters():
            assert (parameter.grad.abs().sum() > 0) == (index == used)
    for layer, block in zip(net.blocks, architecture.blocks, strict=True):
        chosen = net.space.heads.index(block.heads)
        for name in private:
            for index, part in enumerate(layer.attn.get_submodule(name)):
                assert (part.weight.grad.abs().sum() > 0) == (index == chosen)
        assert attention == "private" or len(layer.attn.v) == 1


@pytest.mark.parametrize("attention", ["private_qk", "private_v", "private"])
def test_several_subnets_in_one_forward_are_those_of_separate_ones(attention):
    net = randomised(small_space(), attention=attention)
    architectures = [*net.space.ends(0, 3), *(net.space.sample(0, step, skip=0.4) for step in range(2))]
    labels = torch.tensor([0, 3, 6])
    apart = torch.stack([net(IMAGES, architecture) for architecture in architectures])
    torch.stack([cross_entropy(logits, labels, 0.1) / 4 for logits in apart]).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    together = net(IMAGES, *architectures)
    torch.testing.assert_close(together, apart, atol=0, rtol=0)
    cross_entropy(together, labels, 0.1).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=0, msg=name)


def test_a_space_without_idle_layers_runs():
    space = small_space(patch_size=[4], heads=[2], identity="none")
    assert randomised(space)(IMAGES, space.sample(0, 0)).shape == (3, 7)


@pytest.mark.parametrize("choices", [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (3, 5, 7), (4, 8), (38, 77, 115, 154, 192, 384)])
def test_cyclic_windows_use_every_channel_as_evenly_as_possible(choices):
    maximum = choices[-1]
    usage = torch.zeros(maximum, dtype=torch.long)
    for width in choices:
        channels = take(width, "left", maximum=maximum, choices=choices, sharing="cyclic")
        index = torch.cat([torch.arange(run.start, run.stop) for run in channels])
        assert len(index) == width == len(index.unique())
        usage[index] += 1
    assert usage.max() - usage.min() <= 1
    assert usage.sum() == sum(choices)


def test_bilateral_takes_the_first_and_the_last_channels():
    arguments = {"maximum": 10, "choices": (3, 10), "sharing": "bilateral"}
    assert take(3, "left", **arguments) == (slice(0, 3),)
    assert take(3, "right", **arguments) == (slice(7, 10),)


def test_a_saved_model_is_loaded_with_the_same_logits(tmp_path):
    net = randomised(small_space(mlp_dim=Widths(max=64)))
    model = net.extract(net.space.sample(0, 1, skip=0.4))
    save_model(tmp_path, model)
    torch.testing.assert_close(load_model(tmp_path)(IMAGES), model(IMAGES), atol=0, rtol=0)
