"""Judges of completions, samples judged by them, and pairs made of these."""

from tunescope.judging.judges import Judge, load_judge
from tunescope.judging.preference_pairs import Made, make_pairs
from tunescope.judging.samples import Judged, Samples, Unjudged, judged_samples

__all__ = ["Judge", "Judged", "Made", "Samples", "Unjudged", "judged_samples", "load_judge", "make_pairs"]
