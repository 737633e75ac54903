"""Conversion of a published AV-HuBERT checkpoint to a folder with only its tensors."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import PipelineError
from pipeline.pretrained.folder import load_errors
from pipeline.pretrained.pickled import read_checkpoint, tensors_of

if TYPE_CHECKING:
    from torch import Tensor

LANDMARK = "post_extract_proj.weight"
"""A tensor of every AV-HuBERT; the prefix of its name is that of all tensors (`encoder.w2v_model.` after fine-tuning,
empty before)."""
PRETRAINING = ("label_embs_concat", "final_proj.", "mask_emb")
"""Tensors that are only used in pretraining."""
POSITIONS = "encoder.pos_conv.0.weight"
REMEDY = "use a pre-trained or fine-tuned AV-HuBERT, base or large"


def convert_avhubert(source: Path, folder: Path) -> None:
    """Write the encoder of an AV-HuBERT checkpoint to `folder/model.safetensors`; no code in the checkpoint is run.
    PipelineError if the file is not a checkpoint of AV-HuBERT."""
    from safetensors.torch import save_file

    from pipeline.encoders.avhubert_network import AVHuBERTNetwork

    checkpoint = read_checkpoint(source)
    tensors = tensors_of(checkpoint.get("model") if isinstance(checkpoint, dict) else None)
    encoder = _encoder(tensors, source)
    with load_errors(source, "an AV-HuBERT", REMEDY):
        AVHuBERTNetwork.from_tensors(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in encoder.items()}, folder / "model.safetensors")


def _encoder(tensors: dict[str, "Tensor"], source: Path) -> dict[str, "Tensor"]:
    prefix = next((name.removesuffix(LANDMARK) for name in tensors if name.endswith(LANDMARK)), None)
    if prefix is None:
        raise PipelineError(source, f"has no tensor {LANDMARK}", REMEDY)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    kept = {name: tensor for name, tensor in own.items() if not name.startswith(PRETRAINING)}
    try:
        length, direction = kept.pop(f"{POSITIONS}_g"), kept.pop(f"{POSITIONS}_v")
    except KeyError as error:
        raise PipelineError(source, f"has no tensor {prefix}{error.args[0]}", REMEDY) from None
    # Weight normalisation with one length per position of the kernel (Salimans and Kingma 2016).
    kept[POSITIONS] = (length * direction.float() / direction.float().norm(dim=(0, 1), keepdim=True)).to(length.dtype)
    return kept
