"""The numbers of a tokenizer's run that a reader wants first: as sentences, and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.analysis.summary import NO_VALUE
from toto.analysis.tokenizer_runs import BASELINES
from toto.data.config import TOGETHER
from toto.evaluation.tokenizer_baselines import CELL_MEAN, K_MEANS
from toto.tokenizers.quality import collapse_bound
from toto.wording import number_of

if TYPE_CHECKING:
    from toto.analysis.tokenizer_runs import TokenizerRecord

__all__ = ["QualityTable", "quality_table", "summary"]


@dataclass(frozen=True)
class QualityTable:
    """The last evaluation: a row for each source; no rows before there is one."""

    head: list[str]
    rows: list[list[str]]


def summary(record: TokenizerRecord, num_codes: int, checkpoint_step: int) -> list[str]:
    """What came out, in one or two sentences; another where the pictures are of an earlier step.

    Args:
        record: of the run.
        num_codes: size of the codebook.
        checkpoint_step: of the checkpoint that the pictures of the report were made with.
    """
    sentences = _quality_sentences(record, num_codes)
    if checkpoint_step != record.last_step:
        sentences.append(
            f"The reconstructions are of the checkpoint of step {checkpoint_step:,}; the run has "
            f"gone on to step {record.last_step:,}."
        )
    return sentences


def quality_table(record: TokenizerRecord, num_codes: int) -> QualityTable:
    """PSNR, codes in use and perplexity of each source, and what else the task measures.

    Args:
        record: of the run.
        num_codes: size of the codebook.
    """
    if not record.evals:
        return QualityTable([], [])
    sources = record.evals[-1].sources
    others = [
        name
        for name in record.terms
        if name != "psnr" and any(name in sources[source] for source in record.series)
    ]
    baselines = [f"{name} (dB)" for name in record.baselines]
    head = [
        "source",
        "PSNR (dB)",
        *baselines,
        "codes in use",
        "of all codes",
        "perplexity",
        *others,
    ]
    rows = []
    for source in record.series:
        values = sources[source]
        rows.append([
            "all together" if source == TOGETHER else source,
            _number(values["psnr"], ".2f"),
            *(_number(found.get(source, math.nan), ".2f") for found in record.baselines.values()),
            f"{round(values['codebook_use'] * num_codes):,}",
            f"{values['codebook_use']:.1%}",
            _number(values["perplexity"], ",.0f"),
            *(_number(values.get(name, math.nan), ".4f") for name in others),
        ])  # fmt: skip
    return QualityTable(head, rows)


def _quality_sentences(record: TokenizerRecord, num_codes: int) -> list[str]:
    if not record.evals:
        return ["No evaluation stands yet."]
    last = record.evals[-1]
    values = last.sources[record.series[-1]]
    sentences = [
        f"After {number_of(last.step, 'step')}, held-out pictures come back from their "
        "tokens with a PSNR of "
        f"{values['psnr']:.2f} dB; {round(values['codebook_use'] * num_codes):,} of the "
        f"{num_codes:,} codes are in use ({values['codebook_use']:.1%}), with a perplexity of "
        f"{values['perplexity']:,.0f}."
    ]
    sentences.append(_baseline_sentence(record, values["psnr"]))
    bound = collapse_bound(num_codes)
    if values["perplexity"] < bound:
        sentences.append(
            f"Warning: the codes have collapsed, as the perplexity is below {bound:,.1f} (1 % of "
            "the codes, at least 2): nearly all tokens are the same few codes, and a model of them "
            "learns next to nothing of the images."
        )
    if len(record.series) > 1:
        by_source = [
            f"{last.sources[name]['psnr']:.2f} dB and {last.sources[name]['perplexity']:,.0f} on "
            f"{name}"
            for name in record.series
            if name != TOGETHER
        ]
        sentences.append(f"PSNR and perplexity by source: {', '.join(by_source)}.")
    return sentences


def _baseline_sentence(record: TokenizerRecord, psnr: float) -> str:
    if not record.baselines:
        return f"Its baselines are not measured: there is no {BASELINES}, which a run writes last."
    found = {name: values[TOGETHER] for name, values in record.baselines.items()}
    kept = [f"the mean colour of each cell keeps {found[CELL_MEAN]:.2f} dB"]
    if K_MEANS in found:
        kept.append(f"k-means of the cells with as many codes {found[K_MEANS]:.2f} dB")
    sentence = f"At the same grid {', and '.join(kept)}."
    if psnr < found[CELL_MEAN]:
        return f"Warning: the tokenizer is worse than mean colours. {sentence}"
    return sentence


def _number(value: float, spec: str) -> str:
    return NO_VALUE if math.isnan(value) else format(value, spec).replace("-", "−")
