"""toto ablate and toto report --paper, as a user types them."""

from __future__ import annotations

import json
import subprocess

import pytest
from command_line import toto

from toto.jobs import ablate
from toto.jobs.runs import RunState


@pytest.fixture
def steps(monkeypatch):
    """The commands that would be run; each training ends well, unless its name is in `stopped`."""
    commands, done, stopped = [], set(), set()

    class Finished:
        def __init__(self, words, **_):
            commands.append(words[4:])
            name = words[5]
            self.code = 130 if name in stopped else 0
            if words[4] == "train" and name not in stopped:
                done.add(name)

        def wait(self):
            return self.code

    def state(run):
        return RunState(run=str(run), state="done" if run.name in done else "stopped", checkpoint=3)

    monkeypatch.setattr(subprocess, "Popen", Finished)
    monkeypatch.setattr(ablate, "look_at", state)
    monkeypatch.setattr(ablate, "_done", lambda run: run.name in done)
    return commands, done, stopped


def write_probing(run, *heads, norm="pooled"):
    """Probes of step 3 without a protocol; `norm` None is what earlier versions left."""
    folder = run / ("probe" if norm is None else "eval/probe-pictures-0a1b2c3d")
    folder.mkdir(parents=True)
    row = {"layer": 0, "lr": 0.1, "accuracy": 0.1, "low": 0, "high": 1, "loss": 1, "chance": 0.1}
    lines = [json.dumps(row | {"head": head}) + "\n" for head in heads]
    (folder / "results.jsonl").write_text("".join(lines))
    summary = {"step": 3, "source": "pictures", "protocol": {"name": "default"}}
    if norm is not None:
        summary |= {"evaluation": "probe", "conditions": {"batch_norm_on": {"average": norm}}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_what_is_missing_is_trained_and_probed_in_the_order_of_the_table(tmp_path, steps):
    commands, done, _ = steps
    done.add("arch_mamba_small")
    write_probing(tmp_path / "runs/arch_mamba_small", "average", "attention")
    (tmp_path / "runs/arch_llama_small").mkdir()
    printed = toto("ablate", "architecture", "--small", "--gpus", 2, cwd=tmp_path).stdout
    assert [words[:2] for words in commands] == [
        ["train", "arch_gpt2_small"],
        ["probe", "runs/arch_gpt2_small"],
        ["train", "arch_llama_small"],
        ["probe", "runs/arch_llama_small"],
    ]
    assert commands[0][2:] == ["--gpus", "2"]
    assert commands[2][2:] == ["--resume", "--gpus", "2"]
    assert "$ toto train arch_llama_small --resume --gpus 2" in printed
    record = json.loads((tmp_path / "runs/ablate-architecture-small.json").read_text())
    assert [row["paper"]["top-1, %"] for row in record] == [48.5, 40.7, 53.2]


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(ablate, "look_at", lambda run: RunState(run=str(run), state="killed"))
    (tmp_path / "runs/arch_gpt2_small").mkdir(parents=True)
    toto("ablate", "architecture", "--small", "--only", "arch_gpt2_small", cwd=tmp_path)
    # `toto train` alone would refuse the folder.
    assert steps[0][0] == ["train", "arch_gpt2_small", "--resume"]


def test_a_stopped_training_stops_the_table(tmp_path, steps):
    commands, _, stopped = steps
    stopped.add("arch_gpt2_small")
    ended = toto("ablate", "architecture", "--small", cwd=tmp_path, code=130)
    assert commands == [["train", "arch_gpt2_small"]]
    assert "stopped: Ctrl-C ended this step. The same command resumes it" in ended.stderr


def test_the_papers_size_is_probed_by_its_protocols(tmp_path, steps):
    commands, done, _ = steps
    done.add("ablation_dvae16")
    toto("ablate", "pooling", cwd=tmp_path)
    assert commands == [
        ["probe", "runs/ablation_dvae16", "--recipe", "probe_imagenet_linear_128"],
        ["probe", "runs/ablation_dvae16", "--recipe", "probe_imagenet_attention_128"],
    ]


def test_one_row_alone(tmp_path, steps):
    commands, _, _ = steps
    only = ("--only", "arch_mamba_small")
    toto("ablate", "architecture", "--small", *only, cwd=tmp_path)
    assert [words[1] for words in commands] == ["arch_mamba_small", "runs/arch_mamba_small"]


def test_a_probing_without_a_pooling_of_the_table_is_made_anew(tmp_path, steps):
    commands, done, _ = steps
    done.add("ablation_dvae16_small")
    write_probing(tmp_path / "runs/ablation_dvae16_small", "average")
    toto("ablate", "pooling", "--small", cwd=tmp_path)
    assert commands[0] == [
        "probe", "runs/ablation_dvae16_small", "--pool", "average", "--pool", "attention",
        "--set", "max_samples=10000", "--set", "epochs=5", "--set", "batch_size=64",
        "--set", "learning_rates=[0.003]", "--set", "cache_gb=10",
    ]  # fmt: skip


def test_average_probes_of_the_old_norm_are_made_again(tmp_path, steps):
    commands, done, _ = steps
    done.add("arch_mamba_small")
    only = ("--only", "arch_mamba_small")
    write_probing(tmp_path / "runs/arch_mamba_small", "average", "attention", norm=None)
    toto("ablate", "architecture", "--small", *only, cwd=tmp_path)
    assert [words[:2] for words in commands] == [["probe", "runs/arch_mamba_small"]]


def test_a_row_alone_does_not_go_on_from_a_run_that_is_not_done(tmp_path, steps):
    commands, done, _ = steps
    only = ("--only", "resolution_16to32_small")
    refused = toto("ablate", "resolution", "--small", *only, cwd=tmp_path, code=2)
    assert "goes on from runs/resolution_16_small, which is not done" in refused.stderr
    assert commands == []
    done.add("resolution_16_small")
    toto("ablate", "resolution", "--small", *only, cwd=tmp_path)
    assert commands[0] == ["train", "resolution_16to32_small"]


def test_the_mistake_of_a_step_ends_the_command_as_its_own(tmp_path):
    # Nothing is faked: the data of the recipe are not there.
    only = ("--only", "arch_llama_small")
    done = toto("ablate", "architecture", "--small", *only, cwd=tmp_path, code=2)
    assert "`toto train arch_llama_small` failed; what it said stands above" in done.stderr


def test_showing_runs_nothing(tmp_path, steps):
    printed = toto("ablate", "tokenizers", "--show", cwd=tmp_path).stdout
    assert steps[0] == []
    assert printed.count("not run") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokens"], "There are tokenizers, resolution, pooling, architecture"),
        (["pooling", "--only", "arch_llama"], "not of Table 5. It has ablation_dvae16"),
    ],
)
def test_mistakes_are_named(tmp_path, words, message):
    assert message in toto("ablate", *words, cwd=tmp_path, code=2).stderr


def test_the_page_of_the_paper_is_written_without_any_run(tmp_path):
    done = toto("report", "--paper", cwd=tmp_path)
    assert "runs/paper.html: 30 tables and figures" in done.stdout
    assert "Table 13" in (tmp_path / "runs/paper.html").read_text()
    refused = toto("report", "runs/x", "--paper", cwd=tmp_path, code=2)
    assert "Leave the RUN out" in refused.stderr
