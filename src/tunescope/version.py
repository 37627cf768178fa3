"""The package's version. A module of its own: what writes it into a file need not import the whole package."""

__version__ = "0.1.0"
