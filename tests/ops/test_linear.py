"""The linear map: values and gradients of torch's own, wherever it is used."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap
from torch.nn import functional

from pyro_vaes.nn import Linear
from pyro_vaes.ops import linear
from pyro_vaes.ops.linear import AVAILABLE

# torch announces at the first use of forward mode that it scripts a few formulae
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")
BIG, SMALL = (128, 96, 160), (3, 5, 2)  # above and below the size from which oneDNN pays


def operands(sizes: tuple[int, int, int], *, bias: bool = True) -> list[Tensor]:
    torch.manual_seed(0)
    n, i, o = sizes
    tensors = [torch.randn(n, i), torch.randn(o, i) / i**0.5, *([torch.randn(o)] if bias else [])]
    return [t.requires_grad_() for t in tensors]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("sizes", [BIG, SMALL])
@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_map_and_its_gradients_are_exact_to_single_precision(sizes, bias):
    given = operands(sizes, bias=bias)
    exact = [t.detach().double().requires_grad_() for t in given]
    weight = torch.randn(sizes[0], sizes[2])
    ours, theirs = linear(*given), functional.linear(*exact)
    assert relative(ours, theirs) < 1e-6
    gradients = torch.autograd.grad((ours * weight).sum(), given)
    expected = torch.autograd.grad((theirs * weight.double()).sum(), exact)
    assert all(relative(g, e) < 1e-6 for g, e in zip(gradients, expected, strict=True))


@pytest.mark.skipif(not AVAILABLE, reason="this build of torch has no oneDNN beside MKL")
def test_the_big_map_goes_through_onednn():
    assert type(linear(*operands(BIG)).grad_fn).__name__ == "_LinearBackward"
    assert type(linear(*operands(SMALL)).grad_fn).__name__ == "AddmmBackward0"


def test_gradients_of_the_linear_map_can_be_differentiated():
    def second(*tensors: Tensor) -> list[Tensor]:
        x, w = tensors
        (first,) = torch.autograd.grad((linear(x, w).tanh() ** 2).sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), (x, w)))

    given = operands(BIG, bias=False)
    exact = [t.detach().double().requires_grad_() for t in given]
    assert all(relative(g, e) < 1e-5 for g, e in zip(second(*given), second(*exact), strict=True))


def test_inputs_may_have_leading_dimensions_and_any_strides():
    x, w, b = operands(BIG)
    leading = x.detach().reshape(4, 32, -1).requires_grad_()
    y = linear(leading, w, b)
    assert torch.allclose(y.flatten(0, 1), linear(x, w, b), atol=1e-5)
    (of_rows,) = torch.autograd.grad(y.sum(), leading)  # its cotangent is an expanded number
    assert torch.allclose(of_rows, w.sum(0).expand_as(of_rows), atol=1e-4)
    turned = torch.randn(BIG[1], BIG[0]).T
    assert relative(linear(turned, w), functional.linear(turned.double(), w.double())) < 1e-6
    same = torch.randn(1, BIG[1]).expand(BIG[0], -1)
    assert relative(linear(same, w), functional.linear(same.double(), w.double())) < 1e-6


def test_transforms_see_torchs_own_operations():
    x, w, b = (t.detach() for t in operands(BIG))
    tangent = jvp(lambda x: linear(x, w, b), (x,), (x,))[1]
    assert torch.allclose(tangent, functional.linear(x, w), atol=1e-5)
    per_row = vmap(lambda row: linear(row.expand(128, -1), w, b))(x[:3])
    assert torch.allclose(per_row[:, 0], functional.linear(x[:3], w, b), atol=1e-5)
    jacobian = jacrev(lambda row: linear(row.expand(128, -1), w, b)[0])(x[0])
    assert torch.allclose(jacobian, w, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w, b).dtype is torch.bfloat16


def test_a_user_can_switch_onednn_off():
    x, w, b = operands(BIG)
    (enabled, *_) = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        assert type(linear(x, w, b).grad_fn).__name__ == "AddmmBackward0"
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled)


def test_shapes_that_do_not_fit_are_refused_as_torch_refuses_them():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.zeros(2000, 700), torch.zeros(500, 701))


def test_the_layer_is_torchs_own_by_another_product():
    torch.manual_seed(0)
    ours = Linear(96, 160)
    torch.manual_seed(0)
    theirs = nn.Linear(96, 160)
    assert torch.equal(ours.weight, theirs.weight)
    x = torch.randn(128, 96)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
