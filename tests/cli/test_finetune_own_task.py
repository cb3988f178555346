"""`toto finetune` of runs with tasks other than plain next-token prediction keeps their task."""

from __future__ import annotations

import json

import pytest
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

from toto.recipe.yaml_reader import read_yaml

TASK = '''
from toto.tasks.config import ModelTaskConfig, TASKS
from toto.tasks.next_token import NextTokenTask
from toto.training.task import Mean, TaskOutput
import torch


class Doubled(NextTokenTask):
    """The next-token loss, times a factor."""

    factor = 1.0

    def forward(self, batch):
        output = super().forward(batch)
        factor = torch.tensor([self.factor, 1.0])
        metrics = dict(output.metrics) | {"factor": Mean(factor[0], factor[1])}
        return TaskOutput(output.loss * self.factor, metrics)


@TASKS.register("doubled")
class DoubledConfig(ModelTaskConfig):
    """Next tokens, with a factor."""

    factor: float = 2.0

    def build(self, parts):
        task = Doubled(parts.model, parts.tokenizer, parts.target_tokenizer,
                       num_sources=parts.num_sources)
        task.factor = self.factor
        return task
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny_datasets):
    """A folder with a run of a user's own task, on labelled videos."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "doubled.py").write_text(TASK)
    raw = tiny_recipe(tiny_datasets, steps=2) | {
        "imports": ["doubled.py"],
        "task": {"name": "doubled", "factor": 3.0},
    }
    toto("train", write_recipe(folder, raw), cwd=folder)
    return folder


def test_a_task_of_a_plug_in_is_kept_with_its_settings(own):
    done = toto("finetune", "runs/tiny", "--steps", "2", "--import", "doubled.py", cwd=own)
    run = own / "runs/tiny-finetune"
    assert read_yaml(run / "recipe.yaml")["task"] == {"name": "doubled", "factor": 3.0}
    assert "task doubled of the run, with its settings; no probes" in done.stdout
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert {line["metrics"]["factor"] for line in metrics if line["kind"] == "train"} == {3.0}


def test_classes_are_learned_where_they_are_asked_for(own):
    toto("finetune", "runs/tiny", "--classify", "--steps", "2", "--import", "doubled.py", cwd=own)
    recipe = read_yaml(own / "runs/tiny-classify/recipe.yaml")
    assert recipe["task"]["name"] == "classify"


def test_settings_of_probes_and_of_the_classifier_are_kept(own):
    task = "task={name: next_token_probes, probes: {sources: [videos], heads: [average]}}"
    toto("finetune", "runs/tiny", "--steps", "2", "--import", "doubled.py", "--set", task,
         "--output", "runs/probed", cwd=own)  # fmt: skip
    toto("finetune", "runs/probed", "--steps", "2", "--output", "runs/again", cwd=own)
    probes = read_yaml(own / "runs/again/recipe.yaml")["task"]["probes"]
    assert probes["heads"] == [{"name": "average"}]

    toto("finetune", "runs/tiny", "--classify", "--steps", "2", "--import", "doubled.py",
         "--set", "task.label_smoothing=0.1", "--output", "runs/classes", cwd=own)  # fmt: skip
    toto("finetune", "runs/classes", "--classify", "--steps", "2", "--output", "runs/more", cwd=own)
    assert read_yaml(own / "runs/more/recipe.yaml")["task"]["label_smoothing"] == 0.1
    done = toto("finetune", "runs/classes", "--steps", "2", "--output", "runs/no", cwd=own, code=2)
    assert "no longer predicts tokens" in " ".join(done.stderr.split())
    done = toto("export", "hf", "runs/classes", "exported", cwd=own, code=2)
    assert "no longer predicts tokens" in " ".join(done.stderr.split())
    done = toto("export", "hf", "runs/again", "exported", cwd=own)
    assert "left out: 8 tensors of the task next_token_probes (probes." in done.stdout
