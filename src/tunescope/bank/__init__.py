"""Customizations at rest."""

from tunescope.bank.entry import (
    ENTRY,
    check_free,
    claimed,
    copy,
    export_model,
    load,
    read_record,
    save,
    size_mb,
    write_card,
)
from tunescope.bank.export import export
from tunescope.bank.merge import Merged, merge, merge_into_base
from tunescope.bank.names import RECORD, entry_folder, list_entries, names_in
from tunescope.bank.peft import export_peft, import_peft
from tunescope.bank.rebase import Rebased, rebase
from tunescope.bank.record import BaseRecord, Continued, DataRecord, Record
from tunescope.bank.table import join, save_table, split
from tunescope.bank.verify import Verified, verify

__all__ = [
    "ENTRY",
    "RECORD",
    "BaseRecord",
    "Continued",
    "DataRecord",
    "Merged",
    "Rebased",
    "Record",
    "Verified",
    "check_free",
    "claimed",
    "copy",
    "entry_folder",
    "export",
    "export_model",
    "export_peft",
    "import_peft",
    "join",
    "list_entries",
    "load",
    "merge",
    "merge_into_base",
    "names_in",
    "read_record",
    "rebase",
    "save",
    "save_table",
    "size_mb",
    "split",
    "verify",
    "write_card",
]
