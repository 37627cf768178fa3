"""The methods by name. A package adds one with an entry point in the group ``tunescope.methods``."""

from tunescope.registry import Registry

# In the order of the spectrum: from what leaves the weights alone to what moves them all.
METHODS = Registry(
    "method",
    "tunescope.methods",
    {
        "zero-shot": "tunescope.methods.prompting:ZeroShot",
        "system": "tunescope.methods.prompting:System",
        "few-shot": "tunescope.methods.prompting:FewShot",
        "lora": "tunescope.methods.lora:LoRA",
        "full": "tunescope.methods.full:Full",
    },
)
