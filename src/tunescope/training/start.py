"""What a run starts from: the base, an entry that stays as it is below what is trained, or an entry's own tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunescope import bank
from tunescope.bank import Continued, Record
from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.data.template import Template, default_template
from tunescope.errors import TrainingError
from tunescope.methods import Customization, Customized, Method, customize
from tunescope.methods.customization import go_on
from tunescope.methods.effects import Effect
from tunescope.methods.fingerprint import hash_customization
from tunescope.objectives import Objective

if TYPE_CHECKING:
    from tunescope.training.run import Trained


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        base: what is computed on: the base that was given, or the one that a ``full`` entry is.
        method: what is trained.
        entry: what was found at the start; None for the base itself.
        record: the entry's certificate, with the sum of its tensors.
        name: of the entry.
        goes_on: whether the entry's own tensors are trained, and not new ones on top of it.
    """

    base: Base
    method: Method
    entry: Customized | None = None
    record: Record | None = None
    name: str = ""
    goes_on: bool = False

    def template(self, pattern: str | None, style: str) -> Template:
        """The entry's template, or the base's own where there is none.

        Args:
            pattern: how columns became rows; None keeps the entry's.
            style: ``auto``, or what the entry has.

        Raises:
            TrainingError: a style that is not the entry's.
        """
        if self.entry is None:
            return default_template(self.base.tokenizer, pattern=pattern, style=style)
        template = self.entry.template
        if style not in ("auto", template.style):
            raise TrainingError(
                f"--style is {style}, but {self.name} was trained in the style {template.style}: leave it out."
            )
        return template.model_copy(update={"pattern": pattern or template.pattern})

    def customize(
        self,
        template: Template,
        rows: Sequence[Row],
        labels: Sequence[str] | None,
        seed: int,
        added: Mapping[str, Effect],
    ) -> Customized:
        """What is trained, as training begins. Arguments as for ``methods.customize``."""
        if self.goes_on and self.entry is not None and self.record is not None:
            template.check_marks()
            return go_on(self.entry, template, _labels(self.record), added)
        return customize(self.base, self.method, template, rows, labels, seed, added, self._below)

    @property
    def _below(self) -> Customization | None:
        """The customization whose effects act before what is trained; a ``full`` entry is the base and has none."""
        return None if self.entry is None or self.entry.moves_base else self.entry.customization

    def chain(self) -> dict[str, Any]:
        """What the new record says of where it came from."""
        if self.record is None:
            return {}
        if not self.goes_on:
            return {"start": self.record}
        continued = Continued(
            name=self.name, tensors_sha256=self.record.tensors_sha256 or "", labels=_labels(self.record)
        )
        return {"start": self.record.start, "continued": continued}


def find_start(
    base: Base, method: Method, start: str | Path | Trained | None, continued: str | Path | Trained | None
) -> Start:
    """What a run starts from, checked against what it is to train.

    Args:
        base: that was given.
        method: what is to be trained.
        start: an entry to train on top of.
        continued: an entry whose tensors are to be trained on.

    Raises:
        TrainingError: both, or an entry that cannot be gone on with.
        BankError: no entry there, a damaged one, or one of another base.
    """
    if start is not None and continued is not None:
        raise TrainingError(
            "--from trains something new on top of an entry and --continue trains the entry's own tensors: give one."
        )
    given = start if start is not None else continued
    if given is None:
        return Start(base, method)
    entry, record, name = _loaded(base, given)
    if continued is not None:
        return Start(base, _same_method(method, entry, name), entry, record, name, goes_on=True)
    return Start(entry.base, method, entry, record, name)


def pattern_of(entry: str | Path | Trained | None, objective: Objective) -> str | None:
    """How the entry's data became rows, which an objective that takes rows reads its data by too; None for pairs.

    Raises:
        BankError: no entry there.
    """
    if entry is None or objective.takes is not Row:
        return None
    record = bank.read_record(Path(entry)) if isinstance(entry, str | Path) else entry.record
    return record.template.pattern


def _loaded(base: Base, given: str | Path | Trained) -> tuple[Customized, Record, str]:
    if isinstance(given, str | Path):
        folder = Path(given)
        entry, record, name = bank.load(folder, base), bank.read_record(folder), str(given)
    else:
        entry, record, name = given.customized, given.record, f"the {given.record.method} of this process"
        if differing := record.base.fingerprint.differences(base.fingerprint):
            raise TrainingError(
                f"{name} was made for another base than {base.name}: another {' and '.join(differing)}."
            )
        if entry.moves_base:
            raise TrainingError(f"{name} is a base of its own: save it with --out and start from that entry.")
        if record.tensors_sha256 is None and entry.customization.all_tensors():
            record = record.model_copy(update={"tensors_sha256": hash_customization(entry.customization)})
    # What was measured of it lies with the entry itself.
    return entry, record.model_copy(update={"card": None, "training": {}}), name


def _same_method(method: Method, entry: Customized, name: str) -> Method:
    """The entry's settings, which those that were given must not contradict."""
    found = entry.method
    if found.trains == "nothing":
        raise TrainingError(
            f"{name} has nothing to train on: {found.name} trains nothing. Train on top of it with --from."
        )
    if found.trains == "base":
        raise TrainingError(
            f"{name} is a base of its own: train its weights further with train {found.name} --from {name}."
        )
    if method.name != found.name:
        raise TrainingError(
            f"{name} is {found.name}, so --continue trains {found.name} and not {method.name}. A {method.name} on top "
            "of it is trained with --from."
        )
    for setting in sorted(method.model_fields_set):
        if (ours := getattr(method, setting)) != (theirs := getattr(found, setting)):
            raise TrainingError(
                f"--{setting.replace('_', '-')} is {ours}, but {name} has {theirs}, and --continue trains its tensors "
                "as they are: leave the setting out."
            )
    return found


def _labels(record: Record) -> tuple[str, ...] | None:
    """The labels of the task that its tensors began at."""
    return record.labels or (record.continued.labels if record.continued is not None else None)
