from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toto.layers import selective_scan as scans
from toto.layers.chunks import CHUNK_ELEMENTS
from toto.layers.selective_scan import (
    KERNEL_INSTALLED,
    chunk_length,
    chunked_scan,
    fastest_scan,
    kernel_scan,
    sequential_scan,
)

NAMES = ("u", "delta", "a", "b", "c", "d", "first")


def inputs(
    length: int, dtype: torch.dtype, *, batch: int = 2, channels: int = 6, states: int = 3
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return [
        tensor.requires_grad_()
        for tensor in (
            draw(batch, length, channels),
            draw(batch, length, channels).exp(),
            -draw(channels, states).exp(),
            draw(batch, length, states),
            draw(batch, length, states),
            draw(channels),
            draw(batch, channels, states),
        )
    ]


def results(scan: scans.Scan, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradients of a sum that weighs every output differently."""
    y_BLE, last_BES = scan(*tensors)
    weights = [torch.linspace(-1, 1, out.numel()).view(out.shape) for out in (y_BLE, last_BES)]
    total = (y_BLE * weights[0]).sum() + (last_BES * weights[1]).sum()
    gradients = torch.autograd.grad(total, tensors)
    return {"y": y_BLE, "last": last_BES} | dict(zip(NAMES, gradients, strict=False))


@pytest.fixture(params=[1, 4], ids=["runs of 1", "runs of 4"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scans.RUN, "cpu", request.param)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("length", [1, 5, 7, 8, 9, 16, 27])
def test_chunks_equal_the_sequence_in_float64(length: int) -> None:
    tensors = inputs(length, torch.float64)
    plain = results(sequential_scan, tensors)
    chunked = results(lambda *x: chunked_scan(*x, chunk=8), tensors)
    for name, expected in plain.items():
        assert expected.abs().max() > 1e-3, name
        torch.testing.assert_close(chunked[name], expected, atol=1e-12, rtol=1e-12, msg=name)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("length", [3, 16, 37])
@pytest.mark.parametrize("with_first", [True, False])
def test_chunks_equal_the_sequence_in_float32(length: int, with_first: bool) -> None:
    tensors = inputs(length, torch.float32)[: 7 if with_first else 6]
    plain = results(sequential_scan, tensors)
    chunked = results(lambda *x: chunked_scan(*x, chunk=16), tensors)
    for name, expected in plain.items():
        assert chunked[name].dtype == torch.float32
        torch.testing.assert_close(chunked[name], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("chunk", [2, 4])
def test_gradients_are_those_of_finite_differences(chunk: int) -> None:
    tensors = inputs(4, torch.float64, batch=1, channels=2, states=2)
    assert torch.autograd.gradcheck(lambda *x: chunked_scan(*x, chunk=chunk), tensors)


def test_the_custom_operation_keeps_torchs_rules() -> None:
    u, delta, a, b, c, _, first = inputs(5, torch.float64)
    arguments = (u, delta, a.detach().mT.contiguous(), b, c, first.detach().mT.contiguous(), 4)
    torch.library.opcheck(torch.ops.toto.selective_scan.default, arguments)


def test_large_steps_and_long_sequences_stay_finite() -> None:
    u, delta, a, b, c, d, first = inputs(600, torch.float32)
    tensors = [u, (delta * 50).detach().requires_grad_(), a, b, c, d, first]
    plain = results(sequential_scan, tensors)
    for name, value in results(chunked_scan, tensors).items():
        assert torch.isfinite(value).all()
        scale = plain[name].abs().max().item()
        torch.testing.assert_close(value, plain[name], atol=1e-5 * scale, rtol=1e-4)


def test_two_halves_equal_the_whole() -> None:
    u, delta, a, b, c, d, first = inputs(23, torch.float64)
    whole, last = chunked_scan(u, delta, a, b, c, d, first, chunk=4)
    begun, state = chunked_scan(u[:, :9], delta[:, :9], a, b[:, :9], c[:, :9], d, first, chunk=4)
    ended, end = chunked_scan(u[:, 9:], delta[:, 9:], a, b[:, 9:], c[:, 9:], d, state, chunk=4)
    torch.testing.assert_close(torch.cat((begun, ended), dim=1), whole)
    torch.testing.assert_close(end, last)


def test_autocast_does_not_lower_the_scan() -> None:
    u, delta, a, b, c, d, first = (x.detach() for x in inputs(40, torch.float32))
    b, c = b.bfloat16(), c.bfloat16()
    expected, last = sequential_scan(u, delta, a, b.float(), c.float(), d, first)
    with torch.autocast("cpu", torch.bfloat16):
        for scan in (sequential_scan, chunked_scan):
            y_BLE, state = scan(u, delta, a, b, c, d, first)
            torch.testing.assert_close(y_BLE, expected)
            torch.testing.assert_close(state, last)
            low_BLE, state = scan(u.bfloat16(), delta, a, b, c, d, first)
            assert (low_BLE.dtype, state.dtype) == (torch.bfloat16, torch.float32)
            torch.testing.assert_close(low_BLE.float(), expected, atol=0.1, rtol=0.02)


def test_kept_memory_is_no_more_than_another_u() -> None:
    states = 4
    tensors = inputs(512, torch.float32, channels=5, states=states)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    chunk = 4 * states
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        chunked_scan(*tensors, chunk=chunk)
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    extra = sum(size for address, size in kept.items() if address not in given)
    begins = 512 // chunk * tensors[6].numel()
    assert begins <= extra <= begins + 2 * tensors[6].numel()
    assert begins < tensors[0].numel()


def test_a_chunk_holds_whole_multiples_of_the_states() -> None:
    for shape in [(4, 16, 512), (1, 16, 32), (3, 5, 7)]:
        state_BSE = torch.empty(shape)
        chunk = chunk_length(state_BSE)
        assert chunk % shape[1] == 0
        fits = chunk * state_BSE.numel() <= CHUNK_ELEMENTS["cpu"]
        assert fits or chunk == shape[1]


def test_the_path_is_chosen_by_device_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(scans, "KERNEL_INSTALLED", False)
    assert fastest_scan(cpu, 9) is fastest_scan(cuda, 9) is chunked_scan
    assert fastest_scan(cpu, 1) is sequential_scan
    monkeypatch.setattr(scans, "KERNEL_INSTALLED", True)
    assert fastest_scan(cpu, 9) is chunked_scan
    assert fastest_scan(cuda, 9) is scans.kernel_scan
    assert fastest_scan(cuda, 1) is sequential_scan


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and KERNEL_INSTALLED), reason="needs a CUDA device and mamba-ssm"
)
def test_all_scans_agree_on_a_gpu_with_gradients() -> None:
    found = []
    for scan in (sequential_scan, chunked_scan, kernel_scan):
        tensors = inputs(40, torch.float32, channels=16, states=16)[:-1]
        tensors = [tensor.detach().cuda().requires_grad_() for tensor in tensors]
        y_BLE, last_BES = scan(*tensors)
        weight = torch.linspace(-1, 1, y_BLE.numel(), device="cuda").view(y_BLE.shape)
        found.append([y_BLE, last_BES, *torch.autograd.grad((y_BLE * weight).sum(), tensors)])
    for name, plain, *others in zip(("y", "last", *NAMES[:-1]), *found, strict=True):
        for other in others:
            torch.testing.assert_close(other, plain, atol=1e-3, rtol=1e-3, msg=name)
