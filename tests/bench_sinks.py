"""Cost of the sink instrument on a random Llama: memory over utterances, and time compared with other ways.

Run by `make bench`. Each measurement is a separate process, since peak memory is measured per process.
"""

import gc
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import Sinks
from pipeline.model.roles import Role
from pipeline.sinks.capture import capture, eager_attention
from pipeline.sinks.instrument import SinkStatistics

LAYERS, HEADS, WIDTH, TOKENS, BATCH = 12, 8, 256, 64, 8
UTTERANCES = 48
BEAMS, NEW_TOKENS = 4, 32


def llama() -> LlamaForCausalLM:
    """Small relative to its batches, whose memory dominates."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, bos_token_id=0, eos_token_id=63, pad_token_id=63,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def batches(count: int) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Ids, embeddings and roles of utterances of one length."""
    roles = torch.full((BATCH, TOKENS), int(Role.AUDIO))
    roles[:, 0], roles[:, -12:-6], roles[:, -6:] = Role.BOS, Role.PROMPT, Role.RESPONSE
    for start in range(0, count, BATCH):
        yield [str(start + row) for row in range(BATCH)], torch.randn(BATCH, TOKENS, WIDTH), roles


def streaming(count: int) -> None:
    """The instrument, with its intervals."""
    model, statistics = llama(), SinkStatistics(Sinks(tau=5.0), LAYERS, HEADS)
    for ids, embeddings, roles in batches(count):
        statistics.add(capture(model, embeddings, roles > 0, roles), ids)
    statistics.summary(bootstrap=1000)


def storing(count: int) -> None:
    """All maps and residuals kept until the end, without computing metrics."""
    model, kept = llama(), []
    with torch.no_grad(), eager_attention(model):
        for _, embeddings, _ in batches(count):
            output = model.model(inputs_embeds=embeddings, output_attentions=True, output_hidden_states=True)
            kept.append((output.attentions, output.hidden_states))


def decoding(count: int) -> None:
    """Beam search alone, as in an evaluation without the instrument."""
    model = llama()
    for _, embeddings, roles in batches(count):
        prompts = embeddings[:, :-6]
        model.generate(
            inputs_embeds=prompts, attention_mask=(roles[:, :-6] > 0).long(), num_beams=BEAMS,
            max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
        )  # fmt: skip


WAYS = {way.__name__: way for way in (streaming, storing, decoding)}


def measured(way: str, count: int) -> tuple[float, float]:
    """Seconds of CPU time per utterance, and peak memory in MB, of a fresh process."""
    ran = subprocess.run([sys.executable, __file__, way, str(count)], capture_output=True, text=True, check=True)
    seconds, peak = map(float, ran.stdout.split())
    return seconds / count, peak


def main() -> None:
    """Measure one way, or compare all."""
    if len(sys.argv) == 3:
        WAYS[sys.argv[1]](BATCH)
        gc.collect()
        began = time.process_time()
        WAYS[sys.argv[1]](int(sys.argv[2]))
        print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    few, many = measured("streaming", UTTERANCES), measured("streaming", 10 * UTTERANCES)
    stored, decoded = measured("storing", UTTERANCES), measured("decoding", UTTERANCES)
    print(f"{TOKENS} tokens, {LAYERS} layers, {HEADS} heads, batches of {BATCH}, processor time")
    print(f"peak memory, {UTTERANCES} and {10 * UTTERANCES} utterances: {few[1]:.0f} and {many[1]:.0f} MB,"
          f" {many[1] / few[1] - 1:+.1%}; aim: 10%; {UTTERANCES} with all maps stored: {stored[1]:.0f}")  # fmt: skip
    print(f"per utterance: {1000 * many[0]:.1f} ms; maps and residuals stored only: {1000 * stored[0]:.1f} ms")
    print(f"decoding with {BEAMS} beams: {1000 * decoded[0]:.1f} ms; with the instrument"
          f" {1 + many[0] / decoded[0]:.2f} times as long")  # fmt: skip


if __name__ == "__main__":
    main()
