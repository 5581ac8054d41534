"""Masks of attention: pairs counted by hand, FlexAttention's blocks, and torch's attention under a mask."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from src.kernels.attention import causal_attention, mask
from src.kernels.attention.mask import Mask, build_masks, find_allowed

CPU = torch.device("cpu")
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])


def draw(B: int = 2, T: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, 2, T, 16, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def attend_by_loops(q: Tensor, k: Tensor, v: Tensor, window: int | None, document_BT: Tensor | None) -> Tensor:
    """Attend from each token over the others that it may see, one list of them at a time."""
    y = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[2]):
            seen = [
                s
                for s in range(t + 1)
                if (window is None or t - s <= window)
                and (document_BT is None or document_BT[b, s] == document_BT[b, t])
            ]
            weight = torch.einsum("hk,hsk->hs", q[b, :, t], k[b][:, seen]).div(4).softmax(-1)
            y[b, :, t] = torch.einsum("hs,hsk->hk", weight, v[b][:, seen])
    return y


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("document_BT", [None, DOCUMENTS])
def test_attention_under_a_mask_equals_a_loop_over_tokens(window: int | None, document_BT: Tensor | None) -> None:
    q, k, v = draw()
    (layer_mask,) = build_masks(q[:, 0], [window], document_BT, head_size=16, dropout=False)
    assert (layer_mask is None) == (window is None and document_BT is None)
    ours, wanted = causal_attention(q, k, v, layer_mask), attend_by_loops(q, k, v, window, document_BT)
    assert torch.allclose(ours, wanted, rtol=0, atol=1e-12)
    dy = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = [torch.autograd.grad((y * dy).sum(), [q, k, v]) for y in (ours, wanted)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_layers_of_one_window_share_a_mask_and_a_window_of_all_tokens_is_none() -> None:
    x = torch.zeros(1, 6, 16)
    first, full, second, too_long = build_masks(x, [2, None, 2, 5], None, head_size=16, dropout=False)
    assert first is second
    assert full is too_long is None
    assert first is not None
    assert first.allowed is not None
    assert first.allowed.sum(-1).tolist() == [1, 2, 3, 3, 3, 3]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_blocks_of_flex_attention_are_the_same_mask(window: int | None, packed: bool) -> None:
    """FlexAttention has no backward on a CPU; its forward there reads the same blocks as its kernel."""
    q, k, v = (x.detach() for x in draw(2, 300))
    document_BT = torch.arange(600).view(2, 300).div(70, rounding_mode="floor") if packed else None
    blocks = mask._find_blocks(q[:, 0], window, document_BT)
    ours = causal_attention(q, k, v, Mask(None, blocks))
    wanted = causal_attention(q, k, v, Mask(find_allowed(300, window, document_BT, CPU), None))
    assert torch.allclose(ours, wanted, rtol=0, atol=1e-12)
    # Of the 9 blocks of 128 x 128 pairs, those without a pair that attends are left out: above the diagonal, and the
    # lower left one if tokens 256 and 127 are further apart than the window or of two documents.
    n_left_out = 3 + (window == 100 or packed)
    assert blocks.kv_num_blocks.sum(-1).flatten()[0] + blocks.full_kv_num_blocks.sum(-1).flatten()[0] == 9 - n_left_out


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function:DeprecationWarning")  # torch's, as it traces vmap
@torch.no_grad()
def test_blocks_are_part_of_one_graph() -> None:
    """Traced as on a GPU, where FlexAttention's kernel runs them."""
    q, k, v = (x.detach().float() for x in draw())

    def attend(q: Tensor, k: Tensor, v: Tensor, document_BT: Tensor) -> Tensor:
        return causal_attention(q, k, v, Mask(None, mask._find_blocks(q[:, 0], 3, document_BT)))

    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="eager")
    wanted = attend_by_loops(q, k, v, 3, DOCUMENTS)
    assert torch.allclose(compiled(q, k, v, DOCUMENTS), wanted, atol=1e-6)


def test_blocks_are_for_compiled_training_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mask.OPERATION, "backend_for", lambda x, head_size: "triton" if head_size >= 16 else "reference"
    )
    x = torch.zeros(1, 6, 16)

    def kind(*, compiling: bool, dropout: bool = False, head_size: int = 16) -> type:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
        (found,) = build_masks(x, [2], None, head_size=head_size, dropout=dropout)
        assert found is not None
        return BlockMask if found.blocks is not None else Tensor

    assert kind(compiling=True) is BlockMask
    assert kind(compiling=False) is kind(compiling=True, dropout=True) is kind(compiling=True, head_size=8) is Tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_gpu_compiled_attention_equals_the_matrix(packed: bool) -> None:
    q, k, v = (x.detach().float().cuda().requires_grad_() for x in draw(2, 300))
    document_BT = torch.arange(600, device="cuda").view(2, 300).div(70, rounding_mode="floor") if packed else None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (layer_mask,) = build_masks(q[:, 0], [100], document_BT, head_size=16, dropout=False)
        assert (layer_mask.blocks is not None) == torch.compiler.is_compiling()  # type: ignore[union-attr]  # a window
        return causal_attention(q, k, v, layer_mask)

    found = [run(q, k, v) for run in (attend, torch.compile(attend, fullgraph=True))]
    grads = [torch.autograd.grad(y.square().sum(), [q, k, v]) for y in found]
    for a, b in zip((found[0], *grads[0]), (found[1], *grads[1]), strict=True):
        assert torch.allclose(a, b, atol=2e-3 * float(a.abs().max()))
