"""tunescope: every way to customize a language model, measured on your own data.

    import tunescope as ts

    base = ts.load_base("smollm2-135m")
    data = ts.read("train.jsonl")
    spam = ts.train(base, ts.LoRA(rank=8), ts.SFT(), data)

Names are loaded when they are first used, so that importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunescope.version import __version__

_PUBLIC = {
    "Base": "base",
    "load_base": "base",
    "read": "data.reading",
    "Customized": "methods",
    "ZeroShot": "methods",
    "System": "methods",
    "FewShot": "methods",
    "PromptTuning": "methods",
    "PTuning": "methods",
    "IA3": "methods",
    "LoRA": "methods",
    "Adapter": "methods",
    "compose": "methods",
    "Full": "methods",
    "SFT": "objectives",
    "DPO": "objectives",
    "Reward": "objectives",
    "reward_scores": "objectives",
    "TrainSettings": "training",
    "train": "training",
    "load": "bank",
    "evaluate": "evaluation",
    "generate": "inference",
    "compare": "comparison",
    "TunescopeError": "errors",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from tunescope.bank import load as load
    from tunescope.base import Base as Base
    from tunescope.base import load_base as load_base
    from tunescope.comparison import compare as compare
    from tunescope.data.reading import read as read
    from tunescope.errors import TunescopeError as TunescopeError
    from tunescope.evaluation import evaluate as evaluate
    from tunescope.inference import generate as generate
    from tunescope.methods import IA3 as IA3
    from tunescope.methods import Adapter as Adapter
    from tunescope.methods import Customized as Customized
    from tunescope.methods import FewShot as FewShot
    from tunescope.methods import Full as Full
    from tunescope.methods import LoRA as LoRA
    from tunescope.methods import PromptTuning as PromptTuning
    from tunescope.methods import PTuning as PTuning
    from tunescope.methods import System as System
    from tunescope.methods import ZeroShot as ZeroShot
    from tunescope.methods import compose as compose
    from tunescope.objectives import DPO as DPO
    from tunescope.objectives import SFT as SFT
    from tunescope.objectives import Reward as Reward
    from tunescope.objectives import reward_scores as reward_scores
    from tunescope.training import TrainSettings as TrainSettings
    from tunescope.training import train as train


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tunescope' has no attribute {name!r}")
    return getattr(import_module(f"tunescope.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
