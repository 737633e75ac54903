"""Every family of decoders is captured correctly, or refused with a one-line error."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import LAYERS, NAMES, small_model
from planted import no_hooks
from transformers import PreTrainedModel

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import autocast
from pipeline.config import LLM
from pipeline.model.backbone import run_backbone, vocabulary_logits
from pipeline.model.llm import load_llm
from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured, capture


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


WIDE = names(
    "blt cpmant dots3_note emu3 fuyu gemma3 gemma4 gemma4_unified git got_ocr2 inkling2_text inkling_text kimi_linear "
    "llama4 mllama moss_transcribe_diarize phi4_multimodal qwen3_5 qwen3_5_moe roc_bert"
)
"""Contain another model or vocabulary, whose size the test cannot set."""
OTHERWISE = names(
    "cohere_compass_text dbrx dots1 dots3_note_text falcon_h1 gemma3n gemma3n_text gemma4_assistant gemma4_text "
    "gemma4_unified_assistant gemma4_unified_text lfm2_moe mamba2 musicgen musicgen_melody prophetnet qwen4_exp "
    "qwen4_exp_text reformer xlnet xlstm zamba zamba2 zaya"
)
"""Have interdependent sizes, so they cannot be built from those of the test."""
NO_MAP = names(
    "bailing_hybrid bamba falcon_mamba granitemoehybrid jamba lfm3 mamba minimax nemotron_h olmo_hybrid "
    "qwen3_5_moe_text qwen3_5_text qwen3_next"
)
"""Have layers without attention."""
PADDED = names(
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart recurrent_gemma rwkv trocr"
)
"""Halves of encoder-decoders for right padding, and recurrent models without a mask."""
OFFSET = names("camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl")
"""Positions start at 2."""
REFUSED = {
    **dict.fromkeys(NO_MAP, "returned no attention map"),
    **dict.fromkeys(PADDED, "counts padding as positions"),
    **dict.fromkeys(OFFSET, "does not count positions from 0"),
    "hy_v4": "use a decoder with one residual of",
    "xlm": "lets tokens attend to later ones",
    "xmod": "cannot be run on embeddings",
    "deepseek_v4": "cannot be run on embeddings",
    "hrm_text": "no list of 24 layers",
    "longcat_flash": "returned no attention map",
    "diffllama": "it subtracts one attention map from another",
}
"""Error of each family that is not usable."""
LENGTH, PADDING = 10, 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small matrices are slower with several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [name for name in NAMES if name not in WIDE | OTHERWISE])
def test_capture_equals_the_output_of_the_model(family: str, tmp_path: Path) -> None:
    small_model(family).save_pretrained(tmp_path)
    if family in REFUSED:
        with pytest.raises(PipelineError, match=REFUSED[family]) as refused:
            captured_inputs(load_llm(LLM(weights=str(tmp_path)), torch.float32))
        assert "\n" not in str(refused.value)
        return
    decoder = load_llm(LLM(weights=str(tmp_path)), torch.float32)
    implementation = decoder.config._attn_implementation
    captured = captured_inputs(decoder)
    assert decoder.config._attn_implementation == implementation
    assert no_hooks(decoder)
    require_equal(decoder, captured)
    # Norms in float32 with matrices in bfloat16.
    rough = load_llm(LLM(weights=str(tmp_path)), torch.bfloat16)
    assert bool(captured_inputs(rough, "bfloat16").finite().all())


def inputs(decoder: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (2, T, D) and roles (2, T) of two utterances, one of them padded at the left."""
    width = decoder.get_input_embeddings().weight.shape[1]
    embeddings = 0.5 * torch.randn(2, LENGTH, width, generator=torch.Generator().manual_seed(1))
    roles = torch.full((2, LENGTH), int(Role.RESPONSE))
    roles[:, :6], roles[0, 0] = Role.AUDIO, Role.BOS
    roles[1, :PADDING], roles[1, PADDING] = Role.PADDING, Role.BOS
    return embeddings, roles


def captured_inputs(decoder: PreTrainedModel, precision: str = "float32") -> Captured:
    embeddings, roles = inputs(decoder)
    with autocast(precision, decoder.device):
        return capture(decoder, embeddings, roles != Role.PADDING, roles)


def require_equal(decoder: PreTrainedModel, captured: Captured) -> None:
    """Compare residuals, maps, attention to keys and logits with the model's own output."""
    embeddings, roles = inputs(decoder)
    mask = roles != Role.PADDING
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        decoder.set_attn_implementation("eager")
        output = run_backbone(
            decoder, inputs_embeds=embeddings, attention_mask=mask.long(), use_cache=False,
            position_ids=(mask.long().cumsum(1) - 1).clamp(min=0), output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        complete = decoder(inputs_embeds=embeddings[:1].clone(), attention_mask=mask[:1].long(), use_cache=False).logits
        logits = vocabulary_logits(decoder, output.last_hidden_state[:1])
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(logits, complete, **close)
    assert len(captured.residuals) == len(output.hidden_states) == LAYERS + 1
    # The last hidden state is after the final norm.
    for ours, theirs in zip(captured.residuals[:-1], output.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours[mask], theirs[mask], **close)
    for layer, attention in enumerate(output.attentions):
        torch.testing.assert_close(captured.maps[layer][mask], attention.mean(1)[mask], **close)
        for row in range(2):
            start = PADDING * row
            for key in range(start, LENGTH):
                queries = (attention[row, :, start:, key] > 0).any(0).sum()
                expected = attention[row, :, key:, key].sum(1) / queries
                torch.testing.assert_close(captured.attention_to_key[layer, row, :, key], expected, **close)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_bidirectional_model_is_refused(family: str, tmp_path: Path) -> None:
    small_model(family, is_decoder=False).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match="lets tokens attend to later ones, so it is not a causal decoder"):
        load_llm(LLM(weights=str(tmp_path)), torch.float32)
