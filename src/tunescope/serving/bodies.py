"""What clients send: OpenAI's fields, those vLLM added that mean something here, and our own (``steer``,
``customization_scale``). A field that is none of these is an error, and so is one that could only be ignored."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tunescope.inference import Sampling

_SEEDS = 2**31
# Fields of OpenAI's API with the values, beside null, that ask for nothing: clients send them all the same.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("reasoning_effort", "verbosity", "prediction", "audio", "web_search_options"), ()),
    **dict.fromkeys(("safety_identifier", "prompt_cache_key"), ()),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    **dict.fromkeys(("logit_bias", "metadata"), ({},)),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "best_of": (1,),
    "suffix": ("",),
}
_Stop = Annotated[str, Field(max_length=200)]
_Choice = Annotated[str, Field(max_length=2000)]
_Name = Annotated[str, Field(max_length=300)]


class Body(BaseModel):
    """Base of every body: strict, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_characters(cls, values: Any) -> Any:
        if isinstance(values, dict) and (field := _field_with_half_a_character(values)) is not None:
            raise ValueError(f"{field} has half a character (a lone surrogate): send whole ones")
        return values

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: value
            for name, value in values.items()
            if name in cls.model_fields or name not in _NEUTRAL or not (value is None or value in _NEUTRAL[name])
        }


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool = False


class JsonSchema(Body):
    """A schema by name, as OpenAI has it."""

    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    name: str = "answer"
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer has to be: free text, any JSON object, JSON of a schema, or one of some texts."""

    type: Literal["text", "json_object", "json_schema", "choice"] = "text"
    json_schema: JsonSchema | None = None
    choices: list[_Choice] | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _check_parts(self) -> ResponseFormat:
        for field, kind in (("json_schema", "json_schema"), ("choices", "choice")):
            if (getattr(self, field) is not None) != (self.type == kind):
                raise ValueError(f"{field} goes with type {kind!r}, and type {kind!r} needs it")
        return self

    @property
    def asked(self) -> dict[str, Any]:
        """As settings of sampling."""
        if self.type == "json_object":
            return {"json_schema": '{"type": "object"}'}
        if self.json_schema is not None:
            return {"json_schema": json.dumps(self.json_schema.json_schema)}
        return {"choices": tuple(self.choices)} if self.choices else {}


class GenerationBody(Body):
    """What both kinds of completions can ask for."""

    model: _Name
    max_tokens: int | None = Field(None, gt=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, gt=0)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    # vLLM's.
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, lt=1)
    repetition_penalty: float | None = Field(None, gt=0)
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: list[int] | None = Field(None, max_length=64)
    # Ours.
    steer: dict[str, int] | None = None
    customization_scale: float | None = Field(None, ge=-10, le=10)

    @field_validator("presence_penalty", "frequency_penalty")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("only 0 is served: use repetition_penalty")
        return value

    @model_validator(mode="after")
    def _check_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self

    def sampling(self, most: int, **more: Any) -> Sampling:
        """How tokens are chosen. As in OpenAI's API the temperature is 1 where nothing is said, but a choice of texts
        is the likeliest one.

        Args:
            most: new tokens, at most.
            more: further settings.

        Raises:
            TunescopeError: settings that contradict each other.
        """
        form = {} if self.response_format is None else self.response_format.asked
        temperature = self.temperature if self.temperature is not None else (0.0 if "choices" in form else 1.0)
        asked = {
            "temperature": temperature,
            "max_new_tokens": most,
            "n": self.n or 1,
            "seed": secrets.randbelow(_SEEDS) if self.seed is None else self.seed % 2**63,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "stop_tokens": tuple(self.stop_token_ids or ()),
            "repetition_penalty": self.repetition_penalty or 1.0,
            "min_new_tokens": self.min_tokens or 0,
            **form,
            **more,
        }
        if temperature > 0:  # at 0 the cuts have no meaning, and clients send them all the same
            asked |= {"top_p": 1.0 if self.top_p is None else self.top_p, "min_p": self.min_p or 0.0}
            asked |= {"top_k": self.top_k if self.top_k and self.top_k > 0 else None}
        return Sampling(**asked)


class ChatBody(GenerationBody):
    """``/v1/chat/completions``."""

    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    row: dict[str, Any] | None = None
    max_completion_tokens: int | None = Field(None, gt=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _check_asked(self) -> ChatBody:
        if (self.messages is None) == (self.row is None):
            raise ValueError("messages or row: send one of them")
        return self

    @property
    def limit(self) -> int | None:
        """How many new tokens are asked for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(GenerationBody):
    """``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None

    @field_validator("echo")
    @classmethod
    def _no_echo(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("the prompt is not repeated: leave it out")
        return value

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        parts = value if isinstance(value, list) else [value]
        kinds = {type(part) for part in parts}
        if len(kinds) > 1 or kinds - {str, int, list}:
            raise ValueError("must be a text, a list of texts, token ids, or a list of lists of token ids")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several prompts, as texts or as token ids."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)  # type: ignore[arg-type]


class ClassifyBody(Body):
    """``/classify``: rows for an entry that was trained on labels."""

    model: _Name
    input: str | list[str] | dict[str, Any] | list[dict[str, Any]]
    user: str | None = None
    customization_scale: float | None = Field(None, ge=-10, le=10)


class ScoreBody(Body):
    """``/score``: answers to prompts, for a reward model; ``text_1`` are the prompts, ``text_2`` the answers."""

    model: _Name
    text_1: str | list[str]
    text_2: str | list[str]
    user: str | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Prompt and answer of each score: one prompt for all answers, or one for each.

        Raises:
            ValueError: as many prompts as answers it is not.
        """
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if not first or not second or len(first) not in (1, len(second)):
            raise ValueError(f"text_1 has {len(first)} prompts and text_2 {len(second)} answers: give one, or as many")
        return list(zip(first * (len(second) if len(first) == 1 else 1), second, strict=True))


class PoolingBody(Body):
    """``/pooling``: what an entry's head makes of conversations that end in an answer."""

    model: _Name
    messages: list[dict[str, Any]] | list[list[dict[str, Any]]]
    user: str | None = None

    @property
    def conversations(self) -> list[list[dict[str, Any]]]:
        """One or several."""
        if self.messages and isinstance(self.messages[0], dict):
            return [self.messages]
        return self.messages  # type: ignore[return-value]


class LoadBody(Body):
    """``/v1/load_lora_adapter``, as vLLM has it: any kind of entry."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, max_length=1000)
    load_inplace: bool = False


class UnloadBody(Body):
    """``/v1/unload_lora_adapter``, as vLLM has it."""

    lora_name: str


class CustomizationBody(Body):
    """``POST /v1/customizations``."""

    name: str = Field(min_length=1, max_length=200)
    path: str | None = Field(None, min_length=1, max_length=1000)
    replace: bool = False


def _field_with_half_a_character(values: dict[str, Any]) -> str | None:
    """The first field in which a text cannot be written as UTF-8."""
    for field, value in values.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return field.encode(errors="replace").decode()
        except (ValueError, RecursionError):
            return None  # not JSON after all: its own check says so
    return None
