"""A small random Llama with a byte-level tokenizer, and features to train on."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.config import LLM, Decorrelation, LoRA, Model, Rates
from pipeline.model.audiovisual import AudioVisualLLM, Losses
from pipeline.model.examples import Batch

DIMENSIONS = {"audio": 12, "video": 9}


def make_llm(folder: Path, blocks: int = 4) -> Path:
    """Write a random Llama (width 48, 4 heads, 2 key-value heads) and its tokenizer to `folder`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=48, intermediate_size=96, num_hidden_layers=blocks,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
        pad_token_id=1, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def stored_in_pass(model: AudioVisualLLM, batch: Batch, decorrelation: Decorrelation) -> tuple[Losses, int]:
    """The losses of a batch, and the bytes that autograd stores for their backward pass, beside the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    stored: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(batch, decorrelation)
    # The losses keep what is stored, so that no address is used twice.
    return losses, sum(stored.values())


def settings(llm: Path, **changes: object) -> Model:
    """Section `model` for the tiny LLM."""
    values = {
        "llm": LLM(weights=str(llm)), "lora": LoRA(rank=4, alpha=8), "rates": Rates(audio=3, video=2), "prompt": "Say:"
    } | changes  # fmt: skip
    return Model(**values)


def features(seconds: list[float], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random features of utterances `u0`, `u1` … of these durations: audio at 50 and video at 25 frames per second."""
    random = np.random.default_rng(seed)
    rates = {"audio": 50, "video": 25}
    return {
        stream: {
            f"u{number}": random.standard_normal((round(duration * rates[stream]), dimension)).astype(np.float16)
            for number, duration in enumerate(seconds)
        }
        for stream, dimension in DIMENSIONS.items()
    }
