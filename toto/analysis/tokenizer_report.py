"""The report of a tokenizer's run: its page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.analysis import tokenizer_plots as plots
from toto.analysis.page import write_page
from toto.analysis.report import (
    COURSE_CAPTION,
    Reconstructions,
    ReportContent,
    Section,
    reconstruction_sheet,
)
from toto.analysis.tokenizer_runs import CODE_COUNTS
from toto.analysis.tokenizer_summary import quality_table, summary
from toto.data.config import TOGETHER
from toto.tasks.config import Term

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from toto.analysis.panels import Panel
    from toto.analysis.tokenizer_runs import TokenizerRecord

__all__ = ["TokenizerReport", "write_tokenizer_report"]

PSNR = Term("PSNR", "dB")


@dataclass(frozen=True, kw_only=True)
class TokenizerReport(ReportContent):
    """All that the page shows.

    Attributes:
        record: what the run wrote; parts that are missing are named so.
        num_codes: size of the codebook.
        checkpoint_step: of the checkpoint that the reconstructions were made with.
        reconstructions: source → held-out pictures; none where no source has any.
        terms: how the metrics of the task are called; one that is not here goes by its own name.
    """

    record: TokenizerRecord
    num_codes: int
    checkpoint_step: int
    reconstructions: dict[str, Reconstructions]
    terms: Mapping[str, Term]

    def term(self, name: str) -> Term:
        """How the metric is called."""
        return PSNR if name == "psnr" else self.terms.get(name, Term(name))


def write_tokenizer_report(out: Path, content: TokenizerReport) -> None:
    """Write the page to `out`; an older one is replaced only when the new one is complete."""
    record = content.record
    write_page(
        out,
        "tokenizer_report.html",
        {
            "content": content,
            "summary": summary(record, content.num_codes, content.checkpoint_step),
            "quality": quality_table(record, content.num_codes),
            "sheets": [
                {"source": source} | reconstruction_sheet(pictures)
                for source, pictures in content.reconstructions.items()
            ],
            "sections": _sections(content),
            "ranks": _ranks(content),
            "counts_file": CODE_COUNTS,
        },
    )


def _sections(content: TokenizerReport) -> list[Section]:
    record = content.record
    return [
        Section(
            "Loss and PSNR",
            "Grey is training: as it trains, the task may relax or restart codes, and compute in "
            "lower precision. In colour are the held-out pictures of each source, encoded and "
            "decoded as they will be in use.",
            [_term_panel(content, name) for name in record.terms],
            content.command,
        ),
        Section(
            "Codes in use",
            "Of the tokens of held-out pictures. A code that no token has is lost to a model of "
            f"these tokens; {content.num_codes:,} codes that are all equally frequent have "
            f"perplexity {content.num_codes:,}.",
            [plots.codes_in_use(record), plots.perplexity(record)] if record.evals else [],
            content.command,
        ),
        Section(
            "Training curves",
            COURSE_CAPTION,
            plots.training_curves(record) if record.train else [],
            content.command,
            small=True,
        ),
    ]


def _term_panel(content: TokenizerReport, name: str) -> Panel:
    """Under its title, with the name that it has in metrics.jsonl where that is another."""
    term = content.term(name)
    title = term.title if term.title.lower() == name else f"{term.title} ({name})"
    return plots.term(content.record, name, title, term.unit or name)


def _ranks(content: TokenizerReport) -> Section | None:
    counts = content.record.code_counts
    if not counts:
        return None
    return Section(
        "How often each code is used",
        f"Each code's share of the {sum(counts[TOGETHER]):,} tokens of the held-out pictures at "
        "the end, the most frequent code first, both axes logarithmic. A level line is even use; "
        "it ends at the last code that was used at all.",
        [plots.code_use_by_rank(content.record)],
        content.command,
    )
