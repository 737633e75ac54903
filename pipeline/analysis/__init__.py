"""The sink instrument on a trial or on any causal language model: summaries, figures and interventions."""
