"""Find what was measured on a run: RUN/eval, and where earlier versions of toto left results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from toto.analysis.records import json_lines, json_object, parse
from toto.evaluation.results import ProbeRow

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CLASSES",
    "EVALUATIONS",
    "FINETUNED",
    "PROBES",
    "Probing",
    "read_probings",
    "results_of_kind",
]

EVALUATIONS = "eval"
PROBES = "probe"
"""Probes without a protocol."""
FINETUNED = "finetune"
"""Probes that were trained beside the model's own loss."""
CLASSES = "classify"
"""The classifier of a model that learned classes."""
KINDS = (PROBES, FINETUNED, CLASSES)
SUMMARY = "summary.json"
ROWS = "results.jsonl"
PROBE_ROW = TypeAdapter(ProbeRow)
OLD_NORM = (
    "Average pooling was normalised over tokens here, a rule of earlier versions under which its "
    "probes underfit: probe again before you compare."
)
NO_NORM = (
    "Average pooling has no norm over samples in probes that learn next to the model, and "
    "underfits: compare layers here, and probe the run before you compare poolings."
)


@dataclass(frozen=True)
class Probing:
    """One result of probes or classifiers, as its folder holds it.

    Attributes:
        folder: that holds it.
        name: the protocol's, or PROBES, FINETUNED or CLASSES.
        source: whose labels were learned and scored.
        step: of the checkpoint; None where an earlier version left it out.
        train_samples: None where an earlier version left it out.
        validation_samples: likewise.
        protocol: every choice; empty where an earlier version left it out.
        old_norm: whether average pooling was normalised over tokens, as in earlier versions.
        rows: a probe each.
    """

    folder: Path
    name: str
    source: str
    step: int | None
    train_samples: int | None
    validation_samples: int | None
    protocol: dict[str, Any]
    old_norm: bool
    rows: list[ProbeRow]

    @property
    def samples(self) -> str:
        """How many samples were learned from and scored on, in words."""
        if self.train_samples is None or self.validation_samples is None:
            return "an unknown number of samples"
        return f"{self.train_samples:,} training and {self.validation_samples:,} validation samples"

    @property
    def notes(self) -> list[str]:
        """What a reader must know before comparing the figures."""
        if self.old_norm:
            return [OLD_NORM]
        averages = any(row.head == "average" for row in self.rows)
        return [NO_NORM] if self.name == FINETUNED and averages else []


@dataclass(frozen=True)
class _Summary:
    """What is read of a summary.json; what earlier versions did not write has a default."""

    step: int | None = None
    source: str = "an unknown source"
    evaluation: str | None = None
    train_samples: int | None = None
    validation_samples: int | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)


_SUMMARY = TypeAdapter(_Summary)


def results_of_kind(run: Path, kind: Literal["track", "token_loss", "generate"]) -> list[Path]:
    """Return the records of one kind of result, the newest first.

    Args:
        run: the run's folder.
        kind: `track` gives summary.json, `token_loss` token_loss.json, `generate` generated.json.
    """
    record, earlier = {
        "track": (SUMMARY, "track*"),
        "token_loss": ("token_loss.json", "token_loss"),
        "generate": ("generated.json", "generated"),
    }[kind]
    found = [*run.glob(f"{EVALUATIONS}/*/{record}")]
    if kind == "track":
        found = [path for path in found if _kind(path) == kind]
    return sorted([*found, *run.glob(f"{earlier}/{record}")], key=_age)


def read_probings(run: Path) -> list[Probing]:
    """Return the results of all probes and classifiers of a run, the newest first.

    Raises:
        DataError: a record that is not as toto writes it, with file and line.
    """
    summaries = [path for path in run.glob(f"{EVALUATIONS}/*/{SUMMARY}") if _kind(path) in KINDS]
    found = [path.with_name(ROWS) for path in summaries]
    for earlier in (PROBES, f"{PROBES}/*", CLASSES):
        found += run.glob(f"{earlier}/{ROWS}")
    return [_probing(path.parent) for path in sorted(found, key=_age)]


def _kind(path: Path) -> str | None:
    """Which evaluation wrote a summary.json under RUN/eval."""
    kind = json_object(path.read_bytes(), str(path)).get("evaluation")
    return kind if isinstance(kind, str) else None


def _probing(folder: Path) -> Probing:
    path = folder / SUMMARY
    summary = _Summary()
    if path.is_file():
        summary = parse(_SUMMARY, json_object(path.read_bytes(), str(path)), str(path))
    lines = json_lines(folder / ROWS)
    rows = [parse(PROBE_ROW, value, where) for where, value in lines]
    kind = summary.evaluation or _earlier_kind(folder, summary)
    named = summary.protocol.get("name", folder.name)
    return Probing(
        folder=folder,
        name=named if kind == PROBES and named != "default" else kind,
        source=summary.source,
        step=summary.step,
        train_samples=summary.train_samples,
        validation_samples=summary.validation_samples,
        protocol=summary.protocol,
        old_norm=kind == PROBES and _has_old_norm(summary, rows),
        rows=rows,
    )


def _earlier_kind(folder: Path, summary: _Summary) -> str:
    """What earlier versions left in RUN/classify, in RUN/probe and in RUN/probe/PROTOCOL."""
    if folder.name == CLASSES:
        return CLASSES
    return FINETUNED if summary.protocol.get("name") == "next_token_probes" else PROBES


def _has_old_norm(summary: _Summary, rows: list[ProbeRow]) -> bool:
    if "batch_norm_on" in summary.conditions or not any(row.head == "average" for row in rows):
        return False
    settings: dict[str, Any] = summary.protocol.get("probes") or {}
    return bool(settings.get("batch_norm", True))


def _age(path: Path) -> float:
    return -path.stat().st_mtime
