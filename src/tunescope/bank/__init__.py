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
from tunescope.bank.export import export
from tunescope.bank.merge import Merged, merge, merge_into_base
from tunescope.bank.peft import export_peft, import_peft
from tunescope.bank.record import BaseRecord, Continued, DataRecord, Record
from tunescope.bank.verify import Verified, verify

__all__ = [
    "RECORD",
    "BaseRecord",
    "Continued",
    "DataRecord",
    "Merged",
    "Record",
    "Verified",
    "check_free",
    "claimed",
    "export",
    "export_model",
    "export_peft",
    "import_peft",
    "list_entries",
    "load",
    "merge",
    "merge_into_base",
    "read_record",
    "save",
    "size_mb",
    "verify",
    "write_card",
]
