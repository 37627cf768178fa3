"""PEFT's checkpoint format, which every tool reads: ``adapter_config.json`` and ``adapter_model.safetensors``.

Ours to theirs: LoRA (with rsLoRA and DoRA), IA3, prompt tuning and p-tuning, with the same logits. Theirs to ours: the
same kinds, with whatever modules they target. A fused module (GPT-2's ``c_attn``) is one target there and several sites
here, which is translated without loss both ways.
"""

from tunescope.bank.peft.files import export_peft, import_peft

__all__ = ["export_peft", "import_peft"]
