"""Every parameter of every task is in one group of the optimizer, and a step changes it.

What other engines do is in tests/distributed/test_engine_parity.py.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from test_dvae_task import make_batch as dvae_batch
from test_dvae_task import make_task as dvae_task
from test_vqgan_task import make_batch as vqgan_batch
from test_vqgan_task import make_task as vqgan_task
from toy_classes import LLAMA, PLAIN, PROBES, toy_batch, toy_task

from toto.model import AutoregressiveModel
from toto.tasks.config import TASKS, ClassifyConfig, DvaeTaskConfig
from toto.tasks.next_token import NextTokenTask
from toto.tokenizers.config import PatchConfig
from toto.training.config import OptimizerConfig
from toto.training.engine_local import LocalEngine
from toto.training.optim import parameter_groups


def patch_task() -> NextTokenTask:
    config = PatchConfig(patch_size=4)
    readout = LLAMA.model_copy(update={"patch_readout": "mlp"})
    return NextTokenTask(AutoregressiveModel(config, readout), config.build())


CASES = {
    "next_token": (lambda: toy_task(PLAIN, labels=False), toy_batch),
    "next_token, patches": (patch_task, toy_batch),
    "next_token_probes": (lambda: toy_task(PROBES), toy_batch),
    "classify": (
        lambda: toy_task(ClassifyConfig.model_validate({"name": "classify", "head": "attention"})),
        lambda: toy_batch(frames=1),
    ),
    "dvae": (lambda: dvae_task(DvaeTaskConfig()), dvae_batch),
    "vqgan": (vqgan_task, vqgan_batch),
}
# Features are read in front of the last norm.
WITHOUT_GRADIENT = {"classify": ("backbone.norm.weight",)}


def test_no_task_is_left_out():
    trained_elsewhere = {"probe_bank"}  # evaluation/classification.py
    assert {name.partition(",")[0] for name in CASES} == set(TASKS.names()) - trained_elsewhere


@pytest.mark.parametrize(("make", "batch"), CASES.values(), ids=CASES)
def test_each_is_in_one_group_and_moves(request, make, batch):
    torch.manual_seed(0)
    task = make()
    optimizer = OptimizerConfig(lr=1e-2, weight_decay=0.0)
    groups = parameter_groups(task.trainable, task.param_roles(), 0.1)
    trained = {name: p for name, p in task.trainable.named_parameters() if p.requires_grad}
    assert Counter(name for group in groups for name, _ in group["params"]) == Counter(
        dict.fromkeys(trained, 1)
    )
    engine = LocalEngine(
        task, optimizer, lambda _: 1e-2, device=torch.device("cpu"), precision="fp32"
    )
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    for _ in range(2):  # a classifier starts at zero, and stops the gradient of what it reads
        engine.step([batch()])
    same = [name for name, p in trained.items() if torch.equal(p, before[name])]
    assert same == list(WITHOUT_GRADIENT.get(request.node.callspec.id, ()))
