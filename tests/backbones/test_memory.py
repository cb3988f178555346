"""What autograd keeps of real blocks, beside what their Configs say."""

from __future__ import annotations

import pytest
import torch

from toto.backbones.config import BackboneConfig, Gpt2Config, LlamaConfig, MambaConfig
from toto.backbones.memory import Pass
from toto.layers.masks import CAUSAL

CONFIGS = {
    "llama": LlamaConfig(width=64, num_layers=1, num_heads=4, ffn_dim=192),
    "one key head": LlamaConfig(width=64, num_layers=1, num_heads=4, num_kv_heads=1, ffn_dim=192),
    "llama, µP": LlamaConfig(width=64, num_layers=1, num_heads=4, ffn_dim=192, mup_base_width=32),
    "gpt2": Gpt2Config(width=64, num_layers=1, num_heads=4, ffn_dim=256),
    "gpt2, µP": Gpt2Config(width=64, num_layers=1, num_heads=4, ffn_dim=256, mup_base_width=32),
    "mamba": MambaConfig(width=64, num_layers=1),
    "mamba of eight states": MambaConfig(width=64, num_layers=1, state_size=8, expand=3),
}
ONE = Pass(batch=2, length=513, precision="fp32", device="cpu", compiled=False)


def kept_bytes(config: BackboneConfig, one: Pass) -> int:
    """Storages that the block's graph holds, its parameters and the shared rotation left out."""
    torch.manual_seed(0)
    backbone = config.build()
    x_BLD = torch.randn(one.batch, one.length, config.width, requires_grad=True)
    x_BLD, context = backbone.enter(x_BLD, 0, CAUSAL)
    given = [*backbone.parameters(), *(context.rotation or ())]
    outside = {tensor.untyped_storage().data_ptr() for tensor in given}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=one.precision == "bf16")
    if one.compiled:  # partitioned as by inductor, but no kernel is built
        backbone.blocks[0].compile(dynamic=False, backend="aot_eager_decomp_partition")
    with bf16, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out_BLD = backbone.blocks[0](x_BLD, context)
    assert out_BLD.grad_fn is not None
    return sum(found.values())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_block_keeps_what_its_config_says(name, precision, compiled):
    one = Pass(ONE.batch, ONE.length, precision, "cpu", compiled)
    memory = CONFIGS[name].block_memory(one)
    assert memory is not None
    said = memory.entry.bytes + memory.inside_bytes + memory.matrices.bytes
    # Of two tensors that give each other, the compiler at times takes the larger one.
    assert said == pytest.approx(kept_bytes(CONFIGS[name], one), rel=0.06 if compiled else 0.005)


@pytest.mark.parametrize("name", CONFIGS)
def test_formulas_give_the_values(name):
    config = CONFIGS[name]
    memory = config.block_memory(ONE)
    assert memory is not None
    sizes = {"B": ONE.batch, "L": ONE.length, "D": config.width}
    for letter, field in (
        ("N", "num_heads"),
        ("F", "ffn_dim"),
        ("R", "dt_rank"),
        ("S", "state_size"),
    ):
        sizes[letter] = getattr(config, field, 0)
    if isinstance(config, LlamaConfig):
        sizes["M"] = config.num_kv_heads * config.head_dim
    if isinstance(config, MambaConfig):
        sizes["E"] = config.inner_width
    for kept in (memory.entry, *memory.inside, *memory.working):
        if "C" in kept.formula:  # the length of a chunk is no size of the Config
            continue
        formula = kept.formula.replace("·", "*").replace("**", "*")
        assert eval(formula, sizes) == kept.values, kept


def test_a_backbone_that_nobody_counted_says_so():
    class Own(BackboneConfig):
        def num_params(self):
            return 0

        def forward_macs(self, length):
            return 0

        def build(self):
            raise NotImplementedError

    assert Own(width=8, num_layers=1).block_memory(ONE) is None
