"""Customizations at rest."""

from tunescope.bank.entry import (
    RECORD,
    check_free,
    claimed,
    export_model,
    list_entries,
    load,
    read_record,
    save,
    size_mb,
    write_card,
)
from tunescope.bank.merge import Merged, combine, merge
from tunescope.bank.peft_format import export_peft, import_peft
from tunescope.bank.record import BaseRecord, DataRecord, Record
from tunescope.bank.verify import Verified, verify

__all__ = [
    "RECORD",
    "BaseRecord",
    "DataRecord",
    "Merged",
    "Record",
    "Verified",
    "check_free",
    "claimed",
    "combine",
    "export_model",
    "export_peft",
    "import_peft",
    "list_entries",
    "load",
    "merge",
    "read_record",
    "save",
    "size_mb",
    "verify",
    "write_card",
]
