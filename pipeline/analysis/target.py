"""What can be analysed: an LLM, sequences to run it on, and a score that interventions may change."""

from pipeline.analysis.items import ItemBatch
from pipeline.analysis.speech_target import SpeechTarget
from pipeline.analysis.text_target import TextTarget
from pipeline.sinks.capture import Captured, capture

AnalysisTarget = SpeechTarget | TextTarget


def capture_batch(target: AnalysisTarget, batch: ItemBatch) -> Captured:
    """Capture one pass over a batch, under any active intervention."""
    sequence = batch.sequence
    with target.autocast():
        return capture(target.llm, sequence.embeddings, sequence.mask, sequence.roles)
