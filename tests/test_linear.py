"""What a CPU computes in its own way: the same, forwards and backwards."""

import pytest
import torch
from conftest import small_space

from vitas.models import linear, supernet
from vitas.models.linear import Norm
from vitas.models.supernet import Supernet
from vitas.models.vit import attend


def grown(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


@pytest.mark.parametrize("before", ["nothing", "norm", "gelu"])
@pytest.mark.parametrize("tokens", [(5, 7), (5,)])
def test_onednns_layers_are_torchs_own(monkeypatch, before, tokens):
    assert linear.has_onednn()
    whole = grown(20, 16)
    leaves = [grown(*tokens, 12), whole, grown(9, 12), grown(8), grown(9), grown(12), grown(12)]
    x, _, other, *biases, scale, shift = leaves
    layers = [(whole[4:12, 2:14], biases[0]), (other, biases[1])]  # a part of a wider matrix, and a whole one
    norm = Norm(scale, shift, 1e-6) if before == "norm" else None
    found = []
    for fewest in (0, float("inf")):
        monkeypatch.setattr(linear, "FEWEST", fewest)
        out = linear.linear(x, *layers, norm=norm, gelu=before == "gelu")
        assert ("_Linear" in type(out.grad_fn).__name__) == (fewest == 0)
        wanted = leaves if norm else leaves[:-2]
        found.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), wanted)])
    assert found[0][0].shape == (*tokens, 17)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_supernet_has_the_gradients_that_it_has_elsewhere(monkeypatch, checkpointing, precision):
    torch.manual_seed(0)
    net = Supernet(small_space(), 7).train()
    net.set_grad_checkpointing(checkpointing)
    images, one = torch.randn(3, 3, 16, 16), net.space.sample(0, 1, skip=0.2)
    monkeypatch.setattr(linear, "FEWEST", 0)
    found = []
    for elsewhere in (False, True):
        if elsewhere:
            monkeypatch.setattr(linear, "is_on_cpu", lambda x: False)
            monkeypatch.setattr(supernet, "is_on_cpu", lambda x: False)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = net(images, one).float().logsumexp(-1).sum()
        found.append(dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, net.parameters()), strict=True)))
    near = 1e-6 if precision == torch.float32 else 2e-2
    for name, gradient in found[0].items():
        size = found[1][name].abs().max()
        torch.testing.assert_close(gradient, found[1][name], atol=float(near * (1 + size)), rtol=0, msg=name)
    assert any(gradient.abs().max() > 10 * near for gradient in found[0].values())


def test_attention_in_half_precision_is_torchs_own():
    q, k, v = (grown(2, 9 + part, 24)[:, :9].bfloat16() for part in range(3))
    ours, fused = supernet._attend(q, k, v, 3), attend(q.float(), k.float(), v.float(), heads=3)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), fused, atol=2e-2, rtol=0)
