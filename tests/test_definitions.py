"""Definitions of a sink, thresholds, and the exemplar."""

import numpy as np
import torch
from planted import LAYERS, SETTINGS, captured_batch, llama, streamed, utterances

from pipeline.model.roles import Role
from pipeline.sinks.classification import classify_tokens
from pipeline.sinks.definitions import DEFINITIONS, EPSILONS, TAUS, ThresholdHistogram, by_definition, lifetimes

COUNT = "sinks/intermediate_tokens_per_utterance"


def test_lifetime_of_a_secondary_sink_ends_at_its_first_gap() -> None:
    aligned = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool().T
    created, lifetime = lifetimes(aligned)
    assert created.tolist() == [1, 2, 0, 4]
    assert lifetime.tolist() == [3, 1, 5, 1]


def test_definitions_are_counted_by_role_and_compared() -> None:
    arrays = streamed(llama(), [utterances()[:4], utterances()[4:]]).arrays
    tokens = classify_tokens(captured_batch(llama(), utterances())[1], SETTINGS)
    roles = captured_batch(llama(), utterances())[1].roles
    found = by_definition(tokens)
    for number, name in enumerate(DEFINITIONS):
        for role in Role:
            assert arrays["definition_tokens"][number, role] == found[number][roles == role].sum(), name
    assert arrays["definition_tokens"][:, Role.PADDING].tolist() == [0] * 5
    judged = tokens.eligible & ~tokens.is_bos
    for one in range(5):
        for other in range(5):
            both, either = (found[one] & found[other])[judged].sum(), (found[one] | found[other])[judged].sum()
            np.testing.assert_allclose(arrays["definition_agreement"][one, other], both / either)
    assert 0 < arrays["definition_agreement"][0, 2] < 1
    created = arrays["secondary_created"].sum(0)
    assert created.tolist() == arrays["secondary_lifetime"].sum(0).tolist() == arrays["definition_tokens"][4].tolist()
    assert arrays["outlier_tokens"].shape == (LAYERS, len(Role))


def test_counts_by_threshold_agree_with_the_metrics() -> None:
    found = streamed(llama(), [utterances()[:2], utterances()[2:]])
    for tau in (100, 1000):
        at = TAUS.index(tau)
        assert found.arrays["sinks_above_tau"][at, 1] == found.metrics[f"{COUNT}/tau_{tau}"]
    at = EPSILONS.index(SETTINGS.epsilon)
    assert found.arrays["sinks_above_epsilon"][at, 1] == found.metrics[f"{COUNT}/attention"]
    np.testing.assert_allclose(found.arrays["bos_sink_rate_above_epsilon"][at], found.metrics["sinks/bos_sink_rate"])
    assert (np.diff(found.arrays["sinks_above_tau"], axis=0) <= 0).all()


def test_a_value_at_a_threshold_is_not_above_it() -> None:
    histogram = ThresholdHistogram((0.1, 0.3, 0.5), 1)
    histogram.add(torch.tensor([0.05, 0.3, 0.31, 2.0]), 0)
    assert histogram.above()[:, 0].tolist() == [3, 2, 1]


def test_the_exemplar_is_the_first_utterance_by_id_in_any_order() -> None:
    found = streamed(llama(), [utterances()[3:], utterances()[:3]])
    assert found.description["exemplar"] == "utterance 0"
    _, captured = captured_batch(llama(), utterances()[:1])
    roles, length = utterances()[0][2], len(utterances()[0][2])
    assert found.arrays["exemplar_roles"].tolist() == roles.tolist()
    np.testing.assert_allclose(found.arrays["exemplar_map"].sum(2), np.ones((LAYERS, length)), atol=2e-3)
    largest = captured.residuals[3][0].abs().amax(1)
    np.testing.assert_allclose(found.arrays["exemplar_size"][2].max(1), largest, rtol=1e-4)
    tokens = classify_tokens(captured, SETTINGS)
    assert found.arrays["exemplar_sink"].tolist() == tokens.is_sink[0].tolist()
