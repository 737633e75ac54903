"""From features to text."""

import torch

from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.examples import Batch


@torch.inference_mode()
def transcribe(model: AudioVisualLLM, batch: Batch, beams: int, max_new_tokens: int) -> list[str]:
    """The hypothesis for each utterance of a batch, by beam search without sampling.

    Batches are padded at the left and masked, so that a batch decodes as its utterances do one by one (up to ties that
    rounding breaks where the precision is bfloat16).

    Returns:
        Texts, white space folded.
    """
    sequence = model.sequence(batch, response=False)
    with model.autocast():
        tokens = model.decoder.generate(
            inputs_embeds=sequence.embeddings,
            attention_mask=sequence.mask.long(),
            num_beams=beams,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            bos_token_id=model.bos,
            eos_token_id=model.eos,
            pad_token_id=model.eos,
        )
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]
