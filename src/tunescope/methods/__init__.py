"""WHAT is trained: one file a method."""

from tunescope.methods.adapter import Adapter
from tunescope.methods.composed import compose
from tunescope.methods.customization import Customization, Customized, at_rest, customize
from tunescope.methods.full import Full
from tunescope.methods.ia3 import IA3
from tunescope.methods.lora import LoRA
from tunescope.methods.method import Method
from tunescope.methods.p_tuning import PTuning
from tunescope.methods.prompt_tuning import PromptTuning
from tunescope.methods.prompting import FewShot, System, ZeroShot

__all__ = [
    "IA3",
    "Adapter",
    "Customization",
    "Customized",
    "FewShot",
    "Full",
    "LoRA",
    "Method",
    "PTuning",
    "PromptTuning",
    "System",
    "ZeroShot",
    "at_rest",
    "compose",
    "customize",
]
