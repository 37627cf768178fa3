"""The methods by name. A package adds one with an entry point in the group ``tunescope.methods``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunescope.registry import Registry


@dataclass(frozen=True)
class Methods(Registry):
    """The methods, and what is composed of them: ``prompt-tuning+lora``."""

    def load(self, name: str) -> Any:
        """The class behind a name.

        Raises:
            UnknownNameError: with the nearest names.
            TunescopeError: parts that cannot be together.
        """
        if "+" not in name:
            return super().load(name)
        from tunescope.methods.composed import composed_class

        return composed_class(*(self.load(part) for part in name.split("+")))


# In the order of the spectrum: from what leaves the weights alone to what moves them all.
METHODS = Methods(
    "method",
    "tunescope.methods",
    {
        "zero-shot": "tunescope.methods.prompting:ZeroShot",
        "system": "tunescope.methods.prompting:System",
        "few-shot": "tunescope.methods.prompting:FewShot",
        "prompt-tuning": "tunescope.methods.prompt_tuning:PromptTuning",
        "p-tuning": "tunescope.methods.p_tuning:PTuning",
        "ia3": "tunescope.methods.ia3:IA3",
        "lora": "tunescope.methods.lora:LoRA",
        "adapter": "tunescope.methods.adapter:Adapter",
        "full": "tunescope.methods.full:Full",
    },
)
