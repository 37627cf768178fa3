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

from tunescope.cpu import prepare as _prepare
from tunescope.version import __version__

_prepare()

_PUBLIC = {
    "Base": "base",
    "load_base": "base",
    "Table": "data.reading",
    "read": "data.reading",
    "Row": "data.rows",
    "Pair": "data.pairs",
    "Ranking": "data.rankings",
    "Method": "methods",
    "Customized": "methods",
    "ZeroShot": "methods",
    "System": "methods",
    "FewShot": "methods",
    "PromptTuning": "methods",
    "PTuning": "methods",
    "IA3": "methods",
    "LoRA": "methods",
    "Adapter": "methods",
    "Full": "methods",
    "compose": "methods",
    "Objective": "objectives",
    "SFT": "objectives",
    "DPO": "objectives",
    "Reward": "objectives",
    "Attributes": "objectives",
    "PPO": "objectives",
    "RLOO": "objectives",
    "GRPO": "objectives",
    "SteerLM2": "objectives",
    "TrainSettings": "training",
    "Trained": "training",
    "train": "training",
    "train_tasks": "training",
    "Record": "bank",
    "load": "bank",
    "read_record": "bank",
    "list_entries": "bank",
    "verify": "bank.verify",
    "merge": "bank.merge",
    "export": "bank.export",
    "import_peft": "bank",
    "Engine": "inference",
    "Request": "inference",
    "Sampling": "inference",
    "ScoreRequest": "inference",
    "Generated": "inference",
    "generate": "inference",
    "Prediction": "inference",
    "predict": "inference",
    "Item": "inference",
    "Score": "inference",
    "score": "inference",
    "reward_scores": "inference",
    "Samples": "judging",
    "load_judge": "judging",
    "make_pairs": "judging",
    "AttributeModel": "judging",
    "Measures": "judging",
    "annotate_file": "judging",
    "Probes": "evaluation",
    "default_probes": "evaluation",
    "user_probes": "evaluation",
    "evaluate": "evaluation",
    "evaluate_preferences": "evaluation",
    "evaluate_judged": "evaluation",
    "evaluate_attributes": "evaluation",
    "evaluate_steering": "evaluation",
    "evaluate_unseen": "evaluation",
    "Mixture": "data.mixture",
    "mix": "data.mixture",
    "PlanSettings": "planning",
    "Plan": "planning",
    "plan": "planning",
    "CompareSettings": "comparison",
    "Comparison": "comparison",
    "compare": "comparison",
    "Report": "commands.report",
    "Result": "commands.command",
    "TrainRequest": "commands.train",
    "TrainTasksRequest": "commands.train_tasks",
    "EvalRequest": "commands.eval",
    "PredictRequest": "commands.predict",
    "GenerateRequest": "commands.generate",
    "PairsRequest": "commands.pairs",
    "AnnotateRequest": "commands.annotate",
    "MixRequest": "commands.mix",
    "CompareRequest": "commands.compare",
    "LookRequest": "commands.look",
    "PlanRequest": "commands.plan",
    "PullRequest": "commands.pull",
    "RunRequest": "commands.run",
    "TunescopeError": "errors",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from tunescope.bank import Record as Record
    from tunescope.bank import import_peft as import_peft
    from tunescope.bank import list_entries as list_entries
    from tunescope.bank import load as load
    from tunescope.bank import read_record as read_record
    from tunescope.bank.export import export as export
    from tunescope.bank.merge import merge as merge
    from tunescope.bank.verify import verify as verify
    from tunescope.base import Base as Base
    from tunescope.base import load_base as load_base
    from tunescope.commands.annotate import AnnotateRequest as AnnotateRequest
    from tunescope.commands.command import Result as Result
    from tunescope.commands.compare import CompareRequest as CompareRequest
    from tunescope.commands.eval import EvalRequest as EvalRequest
    from tunescope.commands.generate import GenerateRequest as GenerateRequest
    from tunescope.commands.look import LookRequest as LookRequest
    from tunescope.commands.mix import MixRequest as MixRequest
    from tunescope.commands.pairs import PairsRequest as PairsRequest
    from tunescope.commands.plan import PlanRequest as PlanRequest
    from tunescope.commands.predict import PredictRequest as PredictRequest
    from tunescope.commands.pull import PullRequest as PullRequest
    from tunescope.commands.report import Report as Report
    from tunescope.commands.run import RunRequest as RunRequest
    from tunescope.commands.train import TrainRequest as TrainRequest
    from tunescope.commands.train_tasks import TrainTasksRequest as TrainTasksRequest
    from tunescope.comparison import CompareSettings as CompareSettings
    from tunescope.comparison import Comparison as Comparison
    from tunescope.comparison import compare as compare
    from tunescope.data.mixture import Mixture as Mixture
    from tunescope.data.mixture import mix as mix
    from tunescope.data.pairs import Pair as Pair
    from tunescope.data.rankings import Ranking as Ranking
    from tunescope.data.reading import Table as Table
    from tunescope.data.reading import read as read
    from tunescope.data.rows import Row as Row
    from tunescope.errors import TunescopeError as TunescopeError
    from tunescope.evaluation import Probes as Probes
    from tunescope.evaluation import default_probes as default_probes
    from tunescope.evaluation import evaluate as evaluate
    from tunescope.evaluation import evaluate_attributes as evaluate_attributes
    from tunescope.evaluation import evaluate_judged as evaluate_judged
    from tunescope.evaluation import evaluate_preferences as evaluate_preferences
    from tunescope.evaluation import evaluate_steering as evaluate_steering
    from tunescope.evaluation import evaluate_unseen as evaluate_unseen
    from tunescope.evaluation import user_probes as user_probes
    from tunescope.inference import Engine as Engine
    from tunescope.inference import Generated as Generated
    from tunescope.inference import Item as Item
    from tunescope.inference import Prediction as Prediction
    from tunescope.inference import Request as Request
    from tunescope.inference import Sampling as Sampling
    from tunescope.inference import Score as Score
    from tunescope.inference import ScoreRequest as ScoreRequest
    from tunescope.inference import generate as generate
    from tunescope.inference import predict as predict
    from tunescope.inference import reward_scores as reward_scores
    from tunescope.inference import score as score
    from tunescope.judging import AttributeModel as AttributeModel
    from tunescope.judging import Measures as Measures
    from tunescope.judging import Samples as Samples
    from tunescope.judging import annotate_file as annotate_file
    from tunescope.judging import load_judge as load_judge
    from tunescope.judging import make_pairs as make_pairs
    from tunescope.methods import IA3 as IA3
    from tunescope.methods import Adapter as Adapter
    from tunescope.methods import Customized as Customized
    from tunescope.methods import FewShot as FewShot
    from tunescope.methods import Full as Full
    from tunescope.methods import LoRA as LoRA
    from tunescope.methods import Method as Method
    from tunescope.methods import PromptTuning as PromptTuning
    from tunescope.methods import PTuning as PTuning
    from tunescope.methods import System as System
    from tunescope.methods import ZeroShot as ZeroShot
    from tunescope.methods import compose as compose
    from tunescope.objectives import DPO as DPO
    from tunescope.objectives import GRPO as GRPO
    from tunescope.objectives import PPO as PPO
    from tunescope.objectives import RLOO as RLOO
    from tunescope.objectives import SFT as SFT
    from tunescope.objectives import Attributes as Attributes
    from tunescope.objectives import Objective as Objective
    from tunescope.objectives import Reward as Reward
    from tunescope.objectives import SteerLM2 as SteerLM2
    from tunescope.planning import Plan as Plan
    from tunescope.planning import PlanSettings as PlanSettings
    from tunescope.planning import plan as plan
    from tunescope.training import Trained as Trained
    from tunescope.training import TrainSettings as TrainSettings
    from tunescope.training import train as train
    from tunescope.training import train_tasks as train_tasks


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tunescope' has no attribute {name!r}")
    return getattr(import_module(f"tunescope.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
