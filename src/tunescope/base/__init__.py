"""Load a base model, fingerprint it, find the places where it can be customized."""

from tunescope.base.fingerprint import Fingerprint
from tunescope.base.loading import Base, load_base
from tunescope.base.sites import Site, Sites

__all__ = ["Base", "Fingerprint", "Site", "Sites", "load_base"]
