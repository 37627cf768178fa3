"""The objectives by name. A package adds one with an entry point in the group ``tunescope.objectives``."""

from tunescope.registry import Registry

OBJECTIVES = Registry(
    "objective",
    "tunescope.objectives",
    {
        "sft": "tunescope.objectives.sft:SFT",
        "dpo": "tunescope.objectives.dpo:DPO",
        "reward": "tunescope.objectives.reward_model:Reward",
        "attributes": "tunescope.objectives.attributes:Attributes",
        "ppo": "tunescope.objectives.ppo:PPO",
        "rloo": "tunescope.objectives.rloo:RLOO",
        "grpo": "tunescope.objectives.grpo:GRPO",
        "steerlm2": "tunescope.objectives.steerlm2:SteerLM2",
    },
)
