"""The numbers of a run that a reader wants first, as sentences and as rows of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.analysis.evaluations import CLASSES, FINETUNED
from toto.analysis.runs import peaks
from toto.wording import number_of

if TYPE_CHECKING:
    from toto.analysis.evaluations import Probing
    from toto.analysis.runs import RunRecord

__all__ = ["age", "probe_table", "summary", "validation_table"]

NO_VALUE = "–"


def summary(record: RunRecord, unit: str, *, can_generate: bool = True) -> list[str]:
    """Return what came out, in one sentence for each validation source, the probes and the videos.

    Args:
        record: of the run.
        unit: of its loss.
        can_generate: whether the model could make videos.
    """
    return [
        *_validation_sentences(record, unit),
        *_probe_sentences(record),
        *([_generation_sentence(record)] if can_generate else []),
    ]


def validation_table(record: RunRecord) -> list[list[str]]:
    """Return the losses of the last evaluation: a head, then a row for each source.

    Columns are the model and each baseline that was measured, and the model less each of these.
    """
    if not record.evals:
        return []
    losses = record.evals[-1].sources
    baselines = {
        "copy last frame": {name: loss.copy for name, loss in losses.items()},
        "unigram": {name: loss.unigram for name, loss in losses.items()},
    }
    measured = {
        what: values
        for what, values in baselines.items()
        if any(value is not None for value in values.values())
    }
    head = ["source", "model", *measured, *(f"model − {what.split()[0]}" for what in measured)]
    rows = [
        [
            name,
            f"{loss.loss:.3f}",
            *(_number(values[name]) for values in measured.values()),
            *(_gap(loss.loss, values[name]) for values in measured.values()),
        ]
        for name, loss in losses.items()
    ]
    return [head, *rows]


def probe_table(probing: Probing) -> list[list[str]]:
    """Pooling, best layer, rate, decay, accuracy, both intervals, chance; best pooling first."""
    return [
        [
            row.head,
            str(row.layer),
            f"{row.lr:g}",
            f"{row.weight_decay:g}",
            f"{row.accuracy:.1%}",
            f"{row.low:.1%} to {row.high:.1%}",
            row.seed_text() or NO_VALUE,
            f"{row.chance:.1%}",
        ]
        for row in peaks(probing.rows)
    ]


def _validation_sentences(record: RunRecord, unit: str) -> list[str]:
    if not record.evals:
        return ["The run has not been evaluated yet."]
    last = record.evals[-1]
    # The accuracy on all held-out samples is shown too: that of an evaluation, on
    # `training.eval_sequences` of them, would contradict it.
    scored = {one.source for one in record.probings if one.name in (CLASSES, FINETUNED)}
    opening = (
        f"After {last.tokens:,} visual tokens ({number_of(last.step, 'step')}), the validation loss"
    )
    sentences = []
    for source, loss in last.sources.items():
        against = [
            f"{abs(loss.loss - value):.2f} {'below' if loss.loss < value else 'above'} "
            f"{name} ({value:.2f})"
            for name, value in (("copying the last frame", loss.copy), ("unigram", loss.unigram))
            if value is not None
        ]
        comparison = f", {' and '.join(against)}" if against else ""
        classes = ""
        if loss.accuracy is not None and source not in scored:
            classes = f"; {loss.accuracy:.1%} of classes are right"
        sentences.append(f"{opening} on {source} is {loss.loss:.2f} {unit}{comparison}{classes}.")
        opening = "The validation loss"
    return sentences


def _probe_sentences(record: RunRecord) -> list[str]:
    """Return one for each source, of its newest probing, and one for what the model itself tells.

    A probing does not replace the accuracy of the model's own classes. All are shown further down.
    """
    newest: dict[tuple[str, bool], Probing] = {}
    for probing in record.probings:
        if probing.rows:
            newest.setdefault((probing.source, probing.name == CLASSES), probing)
    if not newest:
        return ["The features have not been probed."]
    own_classes_first = sorted(newest.items(), key=lambda item: not item[0][1])
    return [_probe_sentence(record, probing) for _, probing in own_classes_first]


def _probe_sentence(record: RunRecord, probing: Probing) -> str:
    best = peaks(probing.rows)[0]
    reader = (
        f"The model classifies all validation samples of {probing.source}"
        if probing.name == CLASSES
        else f"The best probe on {probing.source} reads the label from layer {best.layer} with "
        f"{best.head} pooling"
    )
    sentence = (
        f"{reader}: {best.accuracy:.1%} correct (95% interval {best.low:.1%} to "
        f"{best.high:.1%}), {best.accuracy / best.chance:.1f} times chance ({best.chance:.1%})."
        f"{age(record, probing.step)}"
    )
    return " ".join([sentence, *probing.notes])


def _generation_sentence(record: RunRecord) -> str:
    generated = record.generated
    if generated is None:
        return "No video has been generated."
    count = len(generated.samples)
    shape = f"{number_of(count, 'sequence')} of {number_of(generated.frames, 'frame')}"
    origin = {
        "held-out": f"after the first frames of validation videos of {generated.source}",
        "files": "after prompts from files",
        "start": f"without a prompt, from the {generated.start} start",
    }
    return (
        f"{shape} {'was' if count == 1 else 'were'} generated {origin[generated.prompts]}."
        + age(record, generated.step)
    )


def age(record: RunRecord, step: int | None) -> str:
    """Nothing where `step` is the run's last; else a warning."""
    if step == record.last_step:
        return ""
    of = "an unknown step" if step is None else f"step {step:,}"
    return f" This is of {of}; the run has gone on to step {record.last_step:,}."


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.3f}"


def _gap(loss: float, baseline: float | None) -> str:
    return NO_VALUE if baseline is None else f"{loss - baseline:+.3f}".replace("-", "−")
