"""Commands about models: train, finetune, probe, features, generate, report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from toto.cli.options import (
    AnyRunsArgument,
    GpusOption,
    ImportOption,
    OutputOption,
    OverwriteOption,
    RecipeArgument,
    ResumeOption,
    RunArgument,
    SetOption,
)

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    for command in (train, finetune, probe, features, ablate, generate, report):
        app.command()(command)
    group = typer.Typer(no_args_is_help=True, help="Models in the formats of other libraries.")
    group.command("hf")(export_hf)
    group.callback()(lambda: None)  # one command alone would lose its name
    app.add_typer(group, name="export")


def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    gpus: GpusOption = None,
) -> None:
    """Train the model of a recipe."""
    from toto.jobs.launcher import launched

    if launched(gpus):
        return
    from toto.jobs.train import start_training

    start_training(recipe, overrides or [], output=output, resume=resume)


def finetune(
    run: RunArgument = None,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="the new token grid, for example 32x32"),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="frames a sequence; else as many as keep the trained context's length"
        ),
    ] = None,
    rope_base: Annotated[
        float | None, typer.Option(min=1.0, help="RoPE's base; the paper takes 50000 for 32x32")
    ] = None,
    classify: Annotated[
        bool,
        typer.Option("--classify", help="learn the classes alone, through the whole model"),
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="optimizer steps")] = None,
    overrides: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    gpus: GpusOption = None,
    imports: ImportOption = None,
) -> None:
    """Continue training a model: at another resolution or RoPE base, or to classify.

    The next-token loss continues, and where the run's data have labels, probes are trained at every
    layer in the same run. --resume without RUN resumes the newest fine-tuning.
    """
    from toto.jobs.launcher import launched

    if launched(gpus):
        return
    from toto.jobs.finetune import FinetuneRequest, start_finetuning

    request = FinetuneRequest(
        run=run, resolution=resolution, frames=frames, rope_base=rope_base, steps=steps,
        overrides=tuple(overrides or ()), output=output, resume=resume,
        imports=tuple(imports or ()), task="classify" if classify else "next_token_probes",
    )  # fmt: skip
    start_finetuning(request)


def probe(
    run: RunArgument = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            "--pool",
            metavar="HEAD",
            help="pooling head; repeatable; average and attention unless given",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="a protocol of `verb: probe`, such as probe_imagenet_linear_128"
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="all, which is the default, or a list such as 0,3,6; negatives count from the end"
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="which labelled source of the data to probe on")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="any field of the probe's settings"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="the folder of the results, instead of one under RUN/eval, which the report shows",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    imports: ImportOption = None,
) -> None:
    """Train probes on every layer of a frozen model, on the run's own labelled data.

    All layers, poolings, learning rates, weight decays and seeds are trained in one pass. Writes
    results.jsonl, summary.json and curve.png to RUN/eval/PROTOCOL-SOURCE-DIGEST.
    """
    from toto.jobs.probe import ProbeRequest, start_probing

    request = ProbeRequest(
        run=run, recipe=recipe, heads=tuple(pool or ()), layers=layers, source=source,
        overrides=tuple(overrides or ()), imports=tuple(imports or ()), out=out,
        overwrite=overwrite,
    )  # fmt: skip
    start_probing(request)


def ablate(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="tokenizers, resolution, pooling or architecture")
    ],
    small: Annotated[
        bool, typer.Option("--small", help="the small recipes, on Tiny-ImageNet")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="RECIPE", help="this recipe of the table alone; repeatable"),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="print the table as it is, and run nothing")
    ] = False,
    gpus: GpusOption = None,
) -> None:
    """Train and probe what one of the paper's tables needs, and print it: paper, ours, gap, cost.

    Finished runs are left alone, and interrupted ones are resumed.
    """
    from toto.jobs.ablate import ablate as run_ablation

    run_ablation(table, small=small, only=only or [], gpus=gpus, show=show)


def features(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run directory or checkpoint")],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="a packed dataset, or a folder or a file of images and videos"
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder")],
    layers: Annotated[
        str, typer.Option(help="all, or a list such as 0,3,6; negatives count from the end")
    ] = "all",
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="of each video, from its middle; else the trained context's"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="every N-th decoded frame, instead of the trained")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="side in pixels, instead of the trained one")
    ] = None,
    rope_base: Annotated[
        float | None, typer.Option(min=1.0, help="RoPE's base, instead of the trained one")
    ] = None,
    attention: Annotated[
        Literal["causal", "full"] | None,
        typer.Option(help="who reads whom, instead of the trained mask"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="samples in one pass of the model")] = 8,
    dtype: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="of the files; NumPy reads fp32 alone")
    ] = "fp32",
    imports: ImportOption = None,
) -> None:
    """Write the features of your own videos and images, [T, H, W, D] per sample and layer.

    OUT gets safetensors files and index.json. The same command resumes after an interruption.
    """
    from toto.jobs.features import FeaturesRequest, start_features
    from toto.jobs.seen_as import Seen

    seen = Seen(resolution=resolution, frames=frames, rope_base=rope_base, attention=attention)
    request = FeaturesRequest(
        run=run, data=data, out=out, layers=layers, seen=seen, stride=stride, batch=batch,
        dtype=dtype, imports=tuple(imports or ()),
    )  # fmt: skip
    start_features(request)


def generate(
    run: RunArgument = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompt",
            metavar="FILE",
            help="begin with the first frames of this video, or with this image, instead of "
            "validation videos; repeatable",
        ),
    ] = None,
    sequences: Annotated[
        list[str] | None,
        typer.Option(
            "--sequence",
            metavar="FILE,FILE,...",
            help="begin with these images as the frames of one prompt, in order; repeatable",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="frames to generate, any number")] = 8,
    prompt_frames: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="frames given of each video; half of the trained ones unless set; 0 begins with "
            "the start alone",
        ),
    ] = None,
    start: Annotated[
        Literal["video", "image"],
        typer.Option(help="what begins each sequence: frames of a video, or separate images"),
    ] = "video",
    samples: Annotated[
        int,
        typer.Option(
            min=1,
            help="how many validation videos to continue; sequences of each --prompt, of each "
            "--sequence and of the start alone",
        ),
    ] = 3,
    source: Annotated[
        str | None,
        typer.Option(help="which source of the run's recipe the validation videos come from"),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most likely token")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="sample among the k most likely; 0: all")] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="sample among the most likely tokens that sum to this probability",
        ),
    ] = 1.0,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**63 - 1, help="of the first sample of a prompt; the next take the next"
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="the folder, instead of one under RUN/eval, which the report shows"
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    imports: ImportOption = None,
) -> None:
    """Continue videos or images, or generate without a prompt; real next to generated frames.

    Without --prompt, --sequence or --prompt-frames 0, validation videos of the run are continued.
    Writes RUN/eval/generate-SOURCE-DIGEST.
    """
    from toto.jobs.generate import GenerateRequest, start_generating
    from toto.jobs.prompts import PromptRequest

    chosen = PromptRequest(
        files=tuple(prompts or ()), sequences=tuple(sequences or ()), source=source,
        prompt_frames=prompt_frames, frames=frames, samples=samples, seed=seed,
    )  # fmt: skip
    request = GenerateRequest(
        run=run, prompts=chosen, start=start, temperature=temperature, top_k=top_k, top_p=top_p,
        out=out, overwrite=overwrite, imports=tuple(imports or ()),
    )  # fmt: skip
    start_generating(request)


def report(
    runs: AnyRunsArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="the page, instead of RUN/report.html or, of several runs, comparison.html in "
            "the folder that they share",
        ),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="instead the paper's tables and figures, with what ./runs has of each",
        ),
    ] = False,
    imports: ImportOption = None,
) -> None:
    """Write RUN/report.html, of a model's run or a tokenizer's; or compare several runs.

    One page: of a model with curves, probes, reconstructions and continuations; of a tokenizer with
    curves, reconstructions and the use of its codes; of several runs with their losses against
    tokens and the settings in which they differ.
    """
    if paper:
        _report_paper(runs, out)
        return
    if runs is not None and len(runs) > 1:
        from toto.jobs.compare import compare_runs

        compare_runs(runs, out=out, imports=imports or [])
        return
    from toto.jobs.report import start_report

    start_report(runs[0] if runs else None, out=out, imports=imports or [])


def _report_paper(runs: list[str] | None, out: Path | None) -> None:
    from toto.errors import UserError
    from toto.jobs.paper import report_paper

    if runs:
        raise UserError("--paper looks at all runs under ./runs. Leave the RUN out")
    report_paper(out)


def export_hf(
    run: Annotated[str, typer.Argument(help="a run directory or checkpoint")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder")],
    imports: ImportOption = None,
) -> None:
    """Write a model as a directory that transformers loads, with a model card.

    `init_from: hf:OUT` in a recipe takes it in again.
    """
    from toto.jobs.export import export_to_hf

    export_to_hf(run, out, imports=imports or [])
