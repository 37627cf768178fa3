"""Tests of the comparison: the object, the advice, the report."""
