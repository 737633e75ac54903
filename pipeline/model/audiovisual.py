"""The audio-visual LLM: downsampled encoder features, projectors, and a frozen LLM with LoRA.

The *LLM* is Hugging Face's causal language model, the *adapted LLM* peft's wrapper around it, and the *model* is all of
this together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write
from pipeline.common.hardware import autocast
from pipeline.common.modality import prompt, streams
from pipeline.common.verified import seal_folder
from pipeline.config import Decorrelation, Model
from pipeline.model.backbone import run_backbone, vocabulary_logits
from pipeline.model.decorrelation import counted_tokens, decorrelation_loss
from pipeline.model.downsampling import downsampled_length, new_downsampling
from pipeline.model.examples import MEDIA, Batch, batch_to, padded, to_device
from pipeline.model.llm import bos_token, embedding_of, eos_token, require_vocabulary
from pipeline.model.lora import add_lora, load_lora
from pipeline.model.online_encoders import AdaptedEncoder, OnlineEncoder, encoder_module
from pipeline.model.projector import Projector
from pipeline.model.roles import Role
from pipeline.model.sequence import InputBatch, SequencePart, pad_left

IGNORED = -100
PROJECTOR_FILE = "projector.safetensors"


@dataclass(frozen=True)
class Losses:
    """Losses of one batch, as scalars."""

    cross_entropy: Tensor
    """Mean over the response tokens, including the end token, in nats."""
    tokens: Tensor
    """Number of these tokens."""
    decorrelation: Tensor | None = None
    """Decorrelation loss without its weight; None if the weight is 0."""
    counted: Tensor | None = None
    """Number of tokens that the decorrelation loss averages over in each layer."""


class AudioVisualLLM(nn.Module):
    """An LLM that reads BOS, `<audio>` audio `</audio>`, `<video>` video `</video>`, prompt, response.

    Args:
        llm: the LLM; LoRA is added to it (or loaded from `adapter`), its own weights stay frozen.
        tokenizer: the LLM's tokenizer.
        dimensions: width of the encoder features of each stream.
        settings: section `model`.
        precision: `float32` or `bfloat16` for matrix products; residuals, norms and losses stay in float32.
        adapter: folder of a trained adapter and projector; None for newly initialised ones.
        encoders: encoder of each stream if batches hold media; None if they hold features.
    """

    def __init__(
        self,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dimensions: Mapping[str, int],
        settings: Model,
        precision: str,
        adapter: Path | None = None,
        encoders: Mapping[str, OnlineEncoder] | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.precision, self.tokenizer = settings, precision, tokenizer
        self.streams = streams(settings.modality)
        self.bos = bos_token(tokenizer, llm.config)
        self._is_checkpointing = False
        self.eos = eos_token(tokenizer)
        require_vocabulary(tokenizer, llm)
        self.prompt = tokenizer(prompt(settings.prompt, settings.modality), add_special_tokens=False)["input_ids"]
        embedding = embedding_of(llm)
        width = embedding.shape[1]
        self.downsampling, self.projectors = nn.ModuleDict(), nn.ModuleDict()
        self.delimiters = nn.ParameterDict()
        for stream in self.streams:
            module = new_downsampling(settings.downsampling, dimensions[stream], getattr(settings.rates, stream))
            self.downsampling[stream] = cast(nn.Module, module)
            hidden = settings.projector.hidden or width
            self.projectors[stream] = Projector(module.dimension, hidden, width, settings.projector.layer_norm)
            self.delimiters[stream] = self._delimiters(embedding, stream)
        self.adapted_llm = load_lora(llm, adapter) if adapter else add_lora(llm, settings.lora)
        # Last, so that the other modules are initialised equally with and without encoders.
        self.encoders = nn.ModuleDict(
            {
                stream: encoder_module(encoder, adapter and adapter / stream)
                for stream, encoder in (encoders or {}).items()
            }
        )
        if adapter:
            restore(self.own_state(), load_file(Path(adapter) / PROJECTOR_FILE))

    def _delimiters(self, embedding: Tensor, stream: str) -> nn.Parameter:
        """(2, width): start and end, initialised with the mean embedding of the words `<audio>` and `</audio>`."""
        words = [f"<{stream}>", f"</{stream}>"]
        tokens = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        return nn.Parameter(torch.stack([embedding[ids].float().mean(0) for ids in tokens]))

    @property
    def device(self) -> torch.device:
        return self.adapted_llm.device

    @property
    def llm(self) -> PreTrainedModel:
        """The LLM, with LoRA in its layers."""
        base: Any = self.adapted_llm.get_base_model()
        return base

    def autocast(self) -> torch.autocast:
        """The context in which matrix products have the model's precision."""
        return autocast(self.precision, self.device)

    def checkpoint_activations(self) -> None:
        """Enable activation checkpointing: training stores only the inputs of the LLM's layers and recomputes the rest.
        Losses and gradients do not change. PipelineError if the LLM does not support it."""
        llm: Any = self.llm
        # The second name is that of transformers before 5.17.
        enable = getattr(llm, "activation_checkpointing_enable", llm.gradient_checkpointing_enable)
        try:
            enable()
        except ValueError as error:
            raise PipelineError("train.activation_checkpointing", str(error), "set it to false") from None
        # The input of the first layer comes from the projectors, so it has gradients anyway.
        llm.disable_input_require_grads()
        self._is_checkpointing = True

    def tokenize_response(self, text: str) -> list[int]:
        """Token ids of a transcript, without the end token."""
        return self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]

    def token_labels(self, roles: list[int], response: list[int]) -> list[str]:
        """Role of each token, with the text of prompt and response tokens: `audio`, `response ' blue'`. `roles` are
        those of the real tokens of one sequence, as `Role`; `response` has the token ids of the transcript."""
        texts: dict[int, Iterator[int]] = {Role.PROMPT: iter(self.prompt), Role.RESPONSE: iter(response)}
        return [
            f"{Role(role).label} {self.tokenizer.decode([next(texts[role])])!r}" if role in texts else Role(role).label
            for role in roles
        ]

    def length(self, frames: Mapping[str, int], response: int) -> int:
        """Length of the sequence of an utterance, given its frames in each stream and its response tokens."""
        tokens = [downsampled_length(frames[s], getattr(self.settings.rates, s)) + 2 for s in self.streams]
        return 1 + sum(tokens) + len(self.prompt) + response

    def encoded(self, batch: Batch) -> Batch:
        """The batch with its media replaced by features; a batch of features is returned unchanged."""
        if MEDIA not in batch:
            return batch
        encoded = {name: value for name, value in batch.items() if name != MEDIA}
        media = batch[MEDIA].read()
        for stream in self.streams:
            # In training encoders change and each video is augmented differently.
            is_shared = stream == "video" and not torch.is_grad_enabled()
            encoder: Any = self.encoders[stream]
            encode = encoder.encode_cached if is_shared else encoder
            features, lengths = padded(encode(media.streams[stream]))
            encoded |= {stream: features, f"{stream}_lengths": lengths}
        return batch_to(encoded, self.device)

    def sequence(self, batch: Batch, response: bool) -> InputBatch:
        """The LLM's input for a batch, with the reference at its end (training, capture) or without (decoding)."""
        batch = self.encoded(batch)
        count = len(batch["response_lengths"])
        embed = self.llm.get_input_embeddings()
        fixed = to_device(torch.tensor([self.bos, *self.prompt]), self.device)
        bos, prompt = embed(fixed).float().tensor_split([1])
        parts = [_repeated(Role.BOS, bos, count)]
        for stream in self.streams:
            name, rate = stream.upper(), getattr(self.settings.rates, stream)
            lengths = tuple(downsampled_length(frames, rate) for frames in batch[f"{stream}_lengths"])
            start, end = self.delimiters[stream].split(1)
            parts += [
                _repeated(Role[f"{name}_START"], start, count),
                SequencePart(Role[name], self._tokens(batch, stream), lengths),
                _repeated(Role[f"{name}_END"], end, count),
            ]
        parts.append(_repeated(Role.PROMPT, prompt, count))
        if response:
            parts.append(SequencePart(Role.RESPONSE, embed(batch["response"]).float(), batch["response_lengths"]))
        return pad_left(parts)

    def _tokens(self, batch: Batch, stream: str) -> Tensor:
        lengths = to_device(torch.tensor(batch[f"{stream}_lengths"]), self.device)
        with self.autocast():
            return self.projectors[stream](self.downsampling[stream](batch[stream], lengths)).float()

    def forward(self, batch: Batch, decorrelation: Decorrelation) -> Losses:
        """Both losses of a batch, teacher-forced on the reference.

        Logits are computed only where the response is predicted: at the last prompt token and the response tokens.
        """
        sequence = self.sequence(batch, response=True)
        has_decorrelation = decorrelation.weight > 0
        with self.autocast():
            output = run_backbone(
                self.llm,
                inputs_embeds=sequence.embeddings,
                attention_mask=self._attention_mask(sequence),
                position_ids=sequence.positions,
                output_hidden_states=has_decorrelation,
                use_cache=False,
            )
            labels = self._labels(batch["response"], sequence.roles)
            logits = vocabulary_logits(self.llm, output.last_hidden_state[:, -labels.shape[1] :])
        cross_entropy = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        tokens = (labels != IGNORED).sum()
        if not has_decorrelation:
            return Losses(cross_entropy, tokens)
        counted = counted_tokens(sequence.roles, decorrelation).sum()
        arguments = (output.hidden_states, sequence.roles, decorrelation)
        if self._is_checkpointing and self.training:
            # Otherwise copies of the hidden states would be stored, which are stored already as inputs of layers.
            loss = checkpoint(decorrelation_loss, *arguments, use_reentrant=False)
        else:
            loss = decorrelation_loss(*arguments)
        return Losses(cross_entropy, tokens, loss, counted)

    def _attention_mask(self, sequence: InputBatch) -> Tensor:
        """The mask for the LLM: complete for sdpa with purely causal attention, else (batch, time).

        Given (batch, time), transformers checks on the host whether anything is padded, which waits for the device.
        """
        config = self.llm.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        limited = getattr(config, "sliding_window", None) or getattr(config, "alibi", False)
        is_fused = getattr(config, "_attn_implementation", None) == "sdpa"
        if is_fused and kinds == {"full_attention"} and not limited and getattr(config, "rope_parameters", None):
            return sequence.causal_mask
        return sequence.mask.long()

    def _labels(self, response: Tensor, roles: Tensor) -> Tensor:
        """(batch, longest + 1): response and end token, aligned at the right like the padded sequences."""
        real = roles[:, roles.shape[1] - response.shape[1] :] == Role.RESPONSE
        tokens = response.gather(1, (real.long().cumsum(1) - 1).clamp(min=0))
        ends = tokens.new_full((len(tokens), 1), self.eos)
        return torch.cat([tokens.masked_fill(~real, IGNORED), ends], dim=1)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def own_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of downsampling, projectors and delimiters, by name; they share the model's memory."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(("adapted_llm.", "encoders."))
        }

    def trained_state(self) -> dict[str, Tensor]:
        """All that training changes: trainable parameters and `own_state`; they share the model's memory.

        By their names in checkpoints, where the adapted LLM is called `llm`.
        """
        trained = {name: parameter.detach() for name, parameter in self.trainable().items()} | self.own_state()
        return {name.removeprefix("adapted_"): tensor for name, tensor in trained.items()}

    def save(self, folder: Path) -> None:
        """Write the PEFT adapter, projectors and delimiters atomically; adapters of encoders in a subfolder by stream.
        `complete.json` has the SHA-256 of all files."""
        own = {name: tensor.cpu().contiguous() for name, tensor in self.own_state().items()}
        with atomic_write(folder) as temporary:
            self.adapted_llm.save_pretrained(str(temporary))
            save_file(own, temporary / PROJECTOR_FILE)
            for stream, encoder in self.encoders.items():
                if isinstance(encoder, AdaptedEncoder):
                    encoder.save(temporary / stream)
            seal_folder(temporary)


def restore(state: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved values into the tensors of a model's state; KeyError if one was not saved."""
    for name, tensor in state.items():
        tensor.copy_(saved[name])


def _repeated(role: Role, embeddings: Tensor, count: int) -> SequencePart:
    """The same embeddings (tokens, width) for each of `count` utterances."""
    return SequencePart(role, embeddings.expand(count, -1, -1), (len(embeddings),) * count)
