"""Customizations at rest."""

from tunescope.bank.entry import RECORD, list_entries, load, read_record, save, size_mb, write_card
from tunescope.bank.record import BaseRecord, DataRecord, Record

__all__ = [
    "RECORD",
    "BaseRecord",
    "DataRecord",
    "Record",
    "list_entries",
    "load",
    "read_record",
    "save",
    "size_mb",
    "write_card",
]
