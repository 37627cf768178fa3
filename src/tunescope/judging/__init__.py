"""Judges of completions, samples judged by them, pairs made of these, and rows labelled with attributes."""

from tunescope.judging.annotation import AttributeModel, Measures, annotate_file
from tunescope.judging.judges import Judge, load_judge
from tunescope.judging.preference_pairs import Made, make_pairs
from tunescope.judging.samples import Judged, Samples, Unjudged, judged_samples

__all__ = [
    "AttributeModel",
    "Judge",
    "Judged",
    "Made",
    "Measures",
    "Samples",
    "Unjudged",
    "annotate_file",
    "judged_samples",
    "load_judge",
    "make_pairs",
]
