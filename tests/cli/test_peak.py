from __future__ import annotations

import pytest
import torch

from toto.jobs import peak
from toto.jobs.peak import device_peak, measure_peak

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_of_a_cpu_it_is_measured_and_no_product_is_faster(precision):
    found = device_peak(CPU, precision)
    assert f"measured: the fastest {precision} product of " in found.origin
    seconds = peak._fastest_product(CPU, torch.float32, 256)
    slower_than_measured = 2 * 256**3 / seconds
    assert found.flops > 0.2 * slower_than_measured, "another load may have been beside one of them"


def test_products_grow_until_their_start_does_not_count(monkeypatch):
    sides = []

    def product(device, dtype, side):
        sides.append(side)
        return side / 512 * 0.0002

    monkeypatch.setattr(peak, "_fastest_product", product)
    assert measure_peak(CPU, "fp32").flops == 2 * 1024**3 / 0.0004
    assert sides == [512, 1024]


@pytest.mark.parametrize(
    ("name", "precision", "flops"),
    [
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 66.9e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100 80GB PCIe", "bf16", 312e12),
        ("NVIDIA L4", "bf16", 121e12),
    ],
)
def test_of_a_known_gpu_it_is_its_makers(monkeypatch, name, precision, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = device_peak(torch.device("cuda"), precision)
    assert found.flops == pytest.approx(flops)
    assert found.origin.startswith("stated for NVIDIA ")
    assert "datasheet" in found.origin


@pytest.mark.parametrize("name", ["Unheard-of 1", "NVIDIA H100 PCIe", "NVIDIA H200 NVL"])
def test_of_an_unknown_gpu_it_is_measured(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peak, "_fastest_product", lambda device, dtype, side: 1.0)
    assert device_peak(torch.device("cuda"), "bf16").origin.startswith("measured: ")
