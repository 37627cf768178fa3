"""WHAT is trained: one file a method."""

from tunescope.methods.customization import Customization, Customized, customize
from tunescope.methods.full import Full
from tunescope.methods.lora import LoRA
from tunescope.methods.method import Method
from tunescope.methods.prompting import FewShot, System, ZeroShot

__all__ = ["Customization", "Customized", "FewShot", "Full", "LoRA", "Method", "System", "ZeroShot", "customize"]
