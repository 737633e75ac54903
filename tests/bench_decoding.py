"""Time saved by reading a prompt once per utterance instead of once per beam, in alternating pairs of searches.

Run by `make bench`, with a random Llama, prompts as long as speech, and hypotheses of maximum length.
"""

import statistics
import time

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from pipeline.model.decoding import input_read_once

LAYERS, HEADS, WIDTH = 12, 8, 256
BATCH, PROMPT, NEW_TOKENS, PAIRS = 4, 200, 24, 5
BEAMS = (4, 15)


def llama() -> LlamaForCausalLM:
    """A tenth of the usual width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def searched(model: LlamaForCausalLM, embeddings: torch.Tensor, beams: int, once: bool) -> tuple[torch.Tensor, float]:
    """Tokens and seconds of a beam search."""
    parameters = GenerationConfig(
        num_beams=beams, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, eos_token_id=1, pad_token_id=1
    )
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    began = time.perf_counter()
    with input_read_once(model, beams if once else 1):
        tokens = model.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=parameters)
    return tokens, time.perf_counter() - began


def main() -> None:
    """Compare both ways, alternating."""
    model = llama()
    embeddings = torch.randn(BATCH, PROMPT, WIDTH, generator=torch.Generator().manual_seed(1))
    print(f"{BATCH} prompts of {PROMPT} tokens, {NEW_TOKENS} new tokens, {LAYERS} layers, {PAIRS} pairs")
    for beams in BEAMS:
        times: dict[bool, list[float]] = {False: [], True: []}
        equal = True
        for _ in range(PAIRS):
            (plain, first), (shared, second) = (searched(model, embeddings, beams, once) for once in (False, True))
            equal &= torch.equal(plain, shared)
            times[False].append(first)
            times[True].append(second)
        ratios = [one / other for one, other in zip(times[False], times[True], strict=True)]
        each, once = (statistics.median(times[way]) for way in (False, True))
        print(f"{beams:2} beams: prompt read once per beam {each:.2f} s, once {once:.2f} s, ratio "
              f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}], "
              f"{'equal' if equal else 'other'} tokens")  # fmt: skip


if __name__ == "__main__":
    main()
