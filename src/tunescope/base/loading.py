"""A base model in memory: frozen, fingerprinted, with its sites found."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from tunescope.base import alibi, attention, quantized, sources
from tunescope.base import vocabulary_head as head
from tunescope.base.device import dtype_name, resolve_device, resolve_dtype
from tunescope.base.fingerprint import Fingerprint, fingerprint, hash_weights
from tunescope.base.sites import Sites
from tunescope.base.use import Use
from tunescope.errors import BaseModelError

Dtype = Literal["auto", "float32", "bfloat16"]
# The context of a model whose configuration names none.
UNLIMITED = 1_000_000
_OF_IMAGES = ("image_token", "boi_token", "eoi_token")
_log = logging.getLogger(__name__)


class Base:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: the transformers model, in evaluation mode, no parameter asking for a gradient.
        tokenizer: its tokenizer.
        name: what the user called it.
        folder: where it was loaded from, or None for a model made in memory.
        fingerprint: of the weights as stored, so it does not depend on the precision they compute in, and of the
            quantized ones where they are quantized.
        quantization: in how many bits the linear maps are kept; None as they are (see ``base.quantized``).
        use: who uses it now. No two customizations act at once, nor does one act under a pass of the base itself.

    Raises:
        BaseModelError: the tokenizer has more tokens than the model has embeddings.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "in-memory",
        folder: Path | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        quantization: quantized.Quantization | None = None,
    ) -> None:
        _check_tokens(tokenizer, model.get_input_embeddings().num_embeddings)
        self.fingerprint: Fingerprint = fingerprint(model, tokenizer, folder)
        dtype, device = dtype or model.dtype, device or model.device
        self.quantization = quantization
        if quantization is not None:
            quantized.quantize(model, quantization)
            self.fingerprint = self.fingerprint.model_copy(update={"quantized": hash_weights(model)})
        # The precision first: a device may not know the one the weights are stored in (float64 on MPS).
        self.model = in_dtype(model, dtype).to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.folder = folder
        self.use = Use(name)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision the weights compute in."""
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.model.config.get_text_config().hidden_size

    @property
    def context_length(self) -> int:
        """The most tokens a text may have."""
        return context_of(self.model.config)

    @cached_property
    def parameters(self) -> int:
        """How many parameters the model has; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters()) + quantized.quantized_parameters(self.model)

    @property
    def embedding(self) -> Any:
        """The module that turns token ids into vectors."""
        return self.model.get_input_embeddings()

    @cached_property
    def sites(self) -> Sites:
        """Where row effects can act.

        Raises:
            BaseModelError: an architecture that is not known.
        """
        return Sites(self.model)

    @cached_property
    def windows(self) -> dict[str, int | None]:
        """For each kind of attention layer, how many tokens back it sees (None: all)."""
        config = self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ()) or {"full_attention"}
        if unknown := kinds - {"full_attention", "sliding_attention"}:
            raise BaseModelError(f"Attention of kind {', '.join(sorted(unknown))} is not supported.")
        if getattr(config, "layer_types", None) is None and window is not None:
            return {"full_attention": window}  # every layer slides (Mistral)
        return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}

    def masks(self, branch: torch.Tensor, position: torch.Tensor) -> Any:
        """The ``attention_mask`` argument for packed texts, prefixes and branches; see ``attention.branch_mask``."""
        made = self._by_kind(lambda window: attention.branch_mask(branch, position, window), position)
        if bool((branch > 0).any()):
            for mask in made.values() if isinstance(made, dict) else [made]:
                attention.take_apart(mask, branch)
        return made

    def slot_masks(
        self, places: torch.Tensor, seen: int, branch: torch.Tensor | None = None, position: torch.Tensor | None = None
    ) -> Any:
        """The ``attention_mask`` argument for tokens whose keys and values lie in slots.

        Args:
            places: [batch, length] where each token stands in its slot, -1 for padding.
            seen: how many places of the slots are looked at.
            branch: [batch, length] where branches stand behind what the slots hold; see ``attention.SlotBranches``. By
                default each token sees all that stands before it.
            position: [batch, length], with ``branch``.
        """
        own = places.clamp(min=0)
        if branch is None or position is None:
            keys = torch.arange(seen, device=places.device).expand(len(places), seen)
            return self._by_kind(lambda window: attention.place_mask(own, seen, window), keys)
        found = attention.SlotBranches.of(places, seen, branch, position)
        return self._by_kind(lambda window: found.mask(own, window), found.positions)

    def _by_kind(self, make: Callable[[int | None], torch.Tensor], keys: torch.Tensor) -> Any:
        """A mask for each kind of attention layer, over keys at positions ``keys``; the mask itself for one kind."""
        made = {kind: attention.additive(make(window), self.dtype) for kind, window in self.windows.items()}
        if self._has_biases:
            for mask in made.values():
                alibi.remember(mask, keys)
        return made if len(made) > 1 else next(iter(made.values()))

    @cached_property
    def _has_biases(self) -> bool:
        return alibi.prepare(self.model)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: Any,
        *,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of every position. Where some are wanted: ``hidden``, and ``logits`` of these.

        Args:
            input_ids: [batch, length].
            attention_mask: [batch, length] with 1 for real tokens, or what ``masks`` returns.
            position_ids: [batch, length]; by default counted from the first real token.

        Returns:
            [batch, length, vocabulary].

        Raises:
            BaseInUseError: a customization acts in another thread.
        """
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        with self.use.forward():
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            ).logits

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: Any,
        *,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
    ) -> torch.Tensor:
        """What the vocabulary head reads: the last layer's output after the final norm.

        Args:
            input_ids: [batch, length].
            attention_mask: [batch, length] with 1 for real tokens, or what ``masks`` returns. None for rows padded on
                the right alone: no real token sees what follows it, and without a mask a GPU can run flash attention.
                What is returned for padding then means nothing.
            position_ids: [batch, length]; by default counted from the first real token.
            cache: a transformers cache with the keys and values of what precedes, extended in place.

        Returns:
            [batch, length, hidden].

        Raises:
            BaseInUseError: a customization acts in another thread.
        """
        if attention_mask is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        elif position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        layers = self.model.base_model
        with self.use.forward():
            return layers(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state

    def logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability of ``targets`` [rows] after ``hidden`` [rows, hidden], in nats, as [rows] in float32.

        The logits are computed a few rows at a time, in the backward pass too.
        """
        return head.measure(self.vocabulary_head, self._moves_head, hidden, targets)[:, 0]

    def logprobs_and_entropy(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``logprobs``, and the entropy of what each row predicts, in nats; both [rows] in float32, with gradients."""
        found = head.measure(self.vocabulary_head, self._moves_head, hidden, targets, entropy=True)
        return found[:, 0], found[:, 1]

    @property
    def _moves_head(self) -> bool:
        return any(p.requires_grad for p in self.model.get_output_embeddings().parameters())

    @cached_property
    def vocabulary_head(self) -> head.Logits:
        """``hidden`` [rows, hidden] to logits [rows, vocabulary]."""
        return head.head_of(self.model)

    def copy_to_move(self) -> Base:
        """A second copy of the model whose weights may move; this one stays as it is.

        Raises:
            BaseModelError: quantized weights, which cannot move.
        """
        if self.quantization is not None:
            whole, _ = quantized.split_name(self.name)
            raise BaseModelError(
                f"The weights of {self.name} are quantized and cannot move. Take --base {whole} for full fine-tuning, "
                "or a method that leaves the base alone, such as lora."
            )
        moved = object.__new__(Base)
        moved.model, moved.use = copy.deepcopy(self.model), Use(self.name)
        moved.tokenizer, moved.name = self.tokenizer, self.name
        moved.folder, moved.fingerprint, moved.quantization = None, self.fingerprint, None
        return moved

    def __repr__(self) -> str:
        return (
            f"Base({self.name!r}, {self.parameters / 1e6:.1f}M parameters, {dtype_name(self.dtype)}, "
            f"{self.device}, fingerprint {self.fingerprint.short})"
        )


def load_base(name: str | Path | Base, *, dtype: Dtype = "auto", device: str | torch.device | None = None) -> Base:
    """Load a base by hub id, folder, ``.gguf`` file or built-in name (``smollm2-135m``).

    Args:
        name: what ``tunescope pull`` takes; a ``Base`` is returned as it is. With ``:nf4`` or ``:int8`` behind it, the
            linear maps are kept in 4 or 8 bits.
        dtype: precision to compute in; ``auto`` takes what the device is fast at.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; by default the accelerator if there is one.

    Raises:
        TunescopeError: a device that this machine has not, with those it has.
        BaseModelError: not found, broken, not a causal language model, one that needs code which came with it, or with
            more tokens than embeddings.
    """
    if isinstance(name, Base):
        return name
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = sources.resolve(str(name))
    target = resolve_device(device)
    with in_words(source, "could not be loaded as a causal language model"):
        config, tokenizer = _config_and_tokenizer(source.folder)
        # In the configuration itself: what its file names there comes before an argument, and may be fetched and run.
        config._attn_implementation, config._experts_implementation = attention.kind_for(config, target), None
        model, found = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        for key, stored, wanted in sorted(found["mismatched_keys"])[:1]:
            raise ValueError(f"its {key} is {tuple(stored)}, and its config.json asks for {tuple(wanted)}")
        if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more tensors of its config.json")
    kind = config._attn_implementation
    if target.type == "cpu" and kind != attention.NAME:
        _log.info("%s has an attention of its own, so transformers' (%s) is used.", source.name, kind)
    return Base(
        model,
        tokenizer,
        name=source.name,
        folder=source.folder,
        dtype=resolve_dtype(dtype, target),
        device=target,
        quantization=source.quantization,
    )


def context_of(config: Any) -> int:
    """The most tokens that a text may have under a configuration."""
    return getattr(config.get_text_config(), "max_position_embeddings", 0) or UNLIMITED


def load_tokenizer(name: str | Path) -> tuple[Any, int]:
    """The tokenizer of a base and the most tokens a text may have, without its weights.

    Raises:
        BaseModelError: not found or broken.
    """
    source = sources.resolve(str(name))
    with in_words(source, "holds no tokenizer that can be loaded"):
        config, tokenizer = _config_and_tokenizer(source.folder)
        _check_tokens(tokenizer, config.get_text_config().vocab_size)
        return tokenizer, context_of(config)


def _config_and_tokenizer(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    # Left unsaid, transformers asks on the terminal whether to run what came with the model.
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    layers, tensors = getattr(config.get_text_config(), "num_hidden_layers", 0), sources.tensor_count(folder)
    if layers > tensors:
        raise BaseModelError(
            f"{folder / 'config.json'} names {layers} layers, but the weights are {tensors} tensors. Take the "
            "config.json that belongs to these weights."
        )
    return config, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def in_words(source: sources.Source, what: str) -> Iterator[None]:
    """Turn whatever transformers raises for a folder that it cannot load into one message with a remedy."""
    try:
        yield
    except (ImportError, BaseModelError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            raise BaseModelError(
                f"{source.folder} needs code that came with the model, and such code is never run. Take a model whose "
                "architecture and tokenizer transformers has itself."
            ) from error
        raise BaseModelError(f"{source.folder} {what}: {reason.rstrip('.!')}. {sources.remedy(source)}") from error


def _check_tokens(tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer that gives ids which an embedding of so many rows has nothing for.

    Raises:
        BaseModelError: naming the numbers and some of the tokens.
    """
    if len(tokenizer) <= rows:
        return
    # Gemma 3 1B has the token for images of its larger sisters, which stands in no text.
    pictures = {str(token) for name, token in tokenizer.special_tokens_map.items() if name in _OF_IMAGES}
    beyond = sorted(
        token for token, number in tokenizer.get_vocab().items() if number >= rows and token not in pictures
    )
    if beyond:
        raise BaseModelError(
            f"The tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows: nothing stands for "
            f"{', '.join(beyond[:3])}{' …' if len(beyond) > 3 else ''}. Save the model again after "
            "model.resize_token_embeddings(len(tokenizer)), or take the tokenizer that the model came with."
        )


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Change the parameters' precision and leave the buffers: rotary frequencies need all their float32 digits."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    quantized.set_dtype(model, dtype)
    return model
