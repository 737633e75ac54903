"""The sink instrument: streaming statistics equal brute force, on a small Llama with planted massive activations."""

from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import (
    HEADS,
    LAYERS,
    PLANTED,
    SECOND_WRITER,
    SETTINGS,
    SIZES,
    WIDTH,
    batch,
    captured_batch,
    llama,
    no_hooks,
    planted_direction,
    replace_tau,
    streamed,
    utterances,
)
from stored import stored
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipeline.config import Sinks
from pipeline.model.roles import REAL_ROLES, Role
from pipeline.sinks.capture import capture
from pipeline.sinks.classification import classify_tokens, without_outer_layers
from pipeline.sinks.cosine_to_bos import QUANTILES, CosineHistogram
from pipeline.sinks.definitions import DEFINITIONS, EPSILONS, TAUS, ThresholdHistogram, by_definition, lifetimes
from pipeline.sinks.instrument import SinkStatistics, SinkSummary
from pipeline.sinks.moments import Moments

COUNT = "sinks/intermediate_tokens_per_utterance"


def assert_equal_summaries(actual: SinkSummary, expected: SinkSummary) -> None:
    assert actual.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-6)
    assert actual.arrays.keys() == expected.arrays.keys()
    for name, values in actual.arrays.items():
        if values.dtype.kind == "U":
            assert values.tolist() == expected.arrays[name].tolist()
            continue
        # A cosine at the edge of a bin may fall to either side.
        tolerance = 1.01e-3 if "quantiles" in name else 1e-3 if name == "exemplar_map" else 1e-5
        np.testing.assert_allclose(values, expected.arrays[name], rtol=1e-3, atol=tolerance, err_msg=name)


# Brute force: one utterance at a time, without padding, everything stored, loops over tokens.


def brute_force(settings: Sinks) -> tuple[dict[str, list[float]], dict[str, list]]:
    """Values of each metric, and of some arrays, for all utterances."""
    model = llama(implementation="eager")
    metrics: dict[str, list[float]] = {}
    curves: dict[str, list] = {
        "cosines": [],
        "top": [],
        "median": [],
        "bos_map": [],
        "intermediate_map": [],
        "norms": [],
        "role_mass": [],
        "by_role": [],
    }

    def add(name: str, value: float) -> None:
        metrics.setdefault(f"sinks/{name}", []).append(float(value))

    for row, (_, embeddings, roles) in enumerate(utterances()):
        found = stored(model, embeddings)
        hidden, maps, length = found["residuals"], found["maps"], len(roles)
        size = np.abs(hidden)
        median = np.array([float(torch.from_numpy(layer).median()) for layer in size])
        ratio = size / median[:, None, None]
        inner = range(1, LAYERS - 1)
        typical = [float(torch.from_numpy(layer.max(1)).median()) for layer in size]
        alpha = np.stack([maps[:, :, k:, k].sum(2) / (length - k) for k in range(length)], axis=-1)
        strength = [max((ratio[b, t].max(), -b) for b in inner) for t in range(length)]
        sinks = [t for t in range(length) if strength[t][0] > settings.tau]
        layer_of = {t: -strength[t][1] for t in range(length)}
        massive = {t: {j for b in inner for j in range(WIDTH) if ratio[b, t, j] > settings.tau} for t in range(length)}
        cosine = np.array([[h @ layer[0] / np.linalg.norm(h) / np.linalg.norm(layer[0]) for h in layer]
                           for layer in hidden])  # fmt: skip

        add("tokens_per_utterance", length)
        add("bos_sink_rate", (alpha[:, :, 0] > settings.epsilon).mean())
        add("intermediate_tokens_per_utterance", sum(t > 0 for t in sinks))
        for threshold in (100, 300, 1000):
            over = sum(strength[t][0] > threshold for t in range(1, length))
            add(f"intermediate_tokens_per_utterance/tau_{threshold}", over)
        absolute = [t for t in range(1, length)
                    if any(((ratio[b, t] > settings.tau) & (size[b, t] > 100)).any() for b in inner)]  # fmt: skip
        add("intermediate_tokens_per_utterance/absolute", len(absolute))
        for role in REAL_ROLES[1:]:
            if (roles == role).any():
                count = sum(t > 0 and int(roles[t]) == role for t in sinks)
                add(f"intermediate_tokens_per_utterance/{role.label}", count)
        judged = range(length - settings.minimum_queries + 1)
        attended = {t for t in judged if (alpha.mean(1)[:, t] > settings.epsilon).any()}
        add("intermediate_tokens_per_utterance/attention", len(attended - {0}))
        either = attended | (set(sinks) & set(judged))
        if either:
            add("definition_jaccard", len(attended & set(sinks)) / len(either))
        add("max_ratio/bos", strength[0][0])
        add("max_ratio/intermediate", max(strength[t][0] for t in range(1, length)))
        add("relocated_share/ratio", max(strength[1:])[0] > strength[0][0])

        answers = [t for t in range(length) if roles[t] == Role.RESPONSE]
        given = maps[:, :, answers].mean((0, 1, 2))
        comparable = given[: answers[0] + 1]
        add("relocated_share", int(np.argmax(comparable)) != 0)
        curves["intermediate_map"].append(alpha[:, :, 1 + int(np.argmax(comparable[1:]))])
        curves["role_mass"].append({int(r): maps[:, :, answers][..., roles.numpy() == int(r)].sum(-1).mean((1, 2))
                                    for r in roles.unique()})  # fmt: skip

        others = [t for t in range(1, length) if t not in sinks]
        own = [t for t in sinks if t > 0]
        for t in own:
            add("bos_cosine/sink", cosine[layer_of[t], t])
        for t in own or sinks:
            for other in others:
                add("bos_cosine/other", cosine[layer_of[t], other])
        for t in own:
            if massive[0]:
                add("feature_jaccard", len(massive[t] & massive[0]) / len(massive[t] | massive[0]))
        for t in sinks:
            dimension = int(ratio[layer_of[t], t].argmax())
            sign = np.sign(hidden[layer_of[t], t, dimension])
            added = sign * (found["attention"] + found["mlp"])[: layer_of[t] + 1, t, dimension]
            main = int(added.argmax())
            attention, mlp = (abs(found[part][main, t, dimension]) for part in ("attention", "mlp"))
            add("mlp_share", mlp / (mlp + attention))
            add(f"mlp_share/{'intermediate' if t > 0 else 'bos'}", mlp / (mlp + attention))
            first = min(b for b in range(LAYERS) if ratio[b, t, dimension] > settings.tau)
            curves.setdefault("main", []).append((main, t > 0))
            curves.setdefault("first", []).append((first, t > 0))
            added_apart = [sign * found[part][:, t, dimension] for part in ("attention", "mlp")]
            curves.setdefault("added", []).append((t > 0, added_apart))
            weight = model.model.layers[main].mlp.down_proj.weight[dimension].detach().numpy()
            written = sign * found["product"][main, t] * weight
            unit = int(written.argmax())
            add("unit_share", abs(written[unit]) / np.abs(written).sum())
            curves.setdefault("units", []).append((
                main, t > 0, unit, abs(weight[unit]), np.sqrt((weight**2).mean()),
                [abs(found[kind][main, t, unit]) for kind in ("gate", "up", "product")],
                [np.mean([abs(found[kind][main, one, unit]) for one in range(length) if one not in sinks])
                 for kind in ("gate", "up", "product")],
            ))  # fmt: skip
            before = np.concatenate([embeddings.numpy()[None], hidden])[:-1, t, dimension] * sign
            curves.setdefault("before", []).append((t > 0, before))

        outliers = {t for t in range(1, length) if any(size[b, t].max() > 3 * typical[b] for b in inner)}
        add("intermediate_tokens_per_utterance/outlier", len(outliers))
        aligned = np.abs(cosine) > 0.9
        secondary = [t for t in range(1, length) if aligned[:, t].any()]
        add("intermediate_tokens_per_utterance/secondary", len(secondary))
        for t in secondary:
            rest = aligned[int(aligned[:, t].argmax()) :, t]
            add("secondary_lifetime", len(rest) if rest.all() else int(rest.argmin()))
        for t in range(1, length):
            if roles[t] != Role.RESPONSE:
                add("decorrelation", (cosine[:-1, t] ** 2).mean())

        curves["by_role"] += [
            (int(roles[t]), row, t in judged, ratio[:, t].max(1), alpha[:, :, t] > settings.epsilon,
             [ratio[:, t].max(1) > settings.tau, (alpha.mean(1)[:, t] > settings.epsilon) & (t in judged),
              size[:, t].max(1) > 3 * np.array(typical)])
            for t in range(length)
        ]  # fmt: skip
        curves["cosines"] += [(int(roles[t]), t in own, cosine[:, t]) for t in range(length)]
        curves["norms"] += [(0 if t == 0 else 1 if t in own else 2,
                             [np.linalg.norm(hidden[:, t], axis=1),
                              *(np.linalg.norm(found[part][:, :, t], axis=2).mean(1) for part in ("keys", "values"))])
                            for t in range(length)]  # fmt: skip
        curves["top"].append(np.sort(size.reshape(LAYERS, -1), axis=1)[:, :-4:-1])
        curves["median"].append(median)
        curves["bos_map"].append(alpha[:, :, 0])
    return metrics, curves


@pytest.fixture(scope="module")
def brute() -> tuple[dict[str, list[float]], dict[str, list]]:
    return brute_force(SETTINGS)


@pytest.fixture(scope="module")
def summary() -> SinkSummary:
    all_of_them = utterances()
    return streamed(llama(), [all_of_them[:3], all_of_them[3:4], all_of_them[4:]])


def test_planted_model_has_all_cases(brute: tuple) -> None:
    metrics, _ = brute
    counts = metrics[COUNT]
    assert 0 in counts
    assert max(counts) >= 2
    for name in ("relocated_share", "relocated_share/ratio"):
        assert 0 < np.mean(metrics[f"sinks/{name}"]) < 1
    assert len(metrics["sinks/definition_jaccard"]) >= 1
    assert len(set(metrics["sinks/feature_jaccard"])) > 1


def test_streaming_metrics_equal_brute_force(brute: tuple, summary: SinkSummary) -> None:
    expected = {name: np.mean(values) for name, values in brute[0].items()}
    for who in ("bos", "intermediate"):
        expected[f"sinks/max_ratio/{who}/max"] = max(brute[0][f"sinks/max_ratio/{who}"])
    found = {name: value for name, value in summary.metrics.items() if not name.endswith(("/low", "/high"))}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_streaming_curves_equal_brute_force(brute: tuple, summary: SinkSummary) -> None:
    curves, arrays = brute[1], summary.arrays
    for role in REAL_ROLES:
        for sink in (0, 1):
            of_group = np.array([c for r, s, c in curves["cosines"] if (r, s) == (role, bool(sink))])
            assert arrays["cosine_count"][role, sink] == len(of_group)
            if not len(of_group):
                assert np.isnan(arrays["cosine_mean"][:, role, sink]).all()
                continue
            np.testing.assert_allclose(arrays["cosine_mean"][:, role, sink], of_group.mean(0), atol=1e-5)
            np.testing.assert_allclose(arrays["cosine_deviation"][:, role, sink], of_group.std(0), atol=1e-4)
            exact = np.quantile(of_group, QUANTILES, axis=0, method="inverted_cdf").T
            np.testing.assert_allclose(arrays["cosine_quantiles"][:, role, sink], exact, atol=5.1e-4)
    for sink in (0, 1):
        joined = np.array([c for r, s, c in curves["cosines"] if r != Role.BOS and s == bool(sink)])
        np.testing.assert_allclose(arrays["cosine_mean_joined"][:, sink], joined.mean(0), atol=1e-5)
        np.testing.assert_allclose(arrays["cosine_deviation_joined"][:, sink], joined.std(0), atol=1e-4)
    for group in range(3):
        of_group = [n for g, n in curves["norms"] if g == group]
        for what, name in enumerate(("norm", "norm_key", "norm_value")):
            values = [norms[what] for norms in of_group]
            np.testing.assert_allclose(arrays[f"{name}_mean"][:, group], np.mean(values, axis=0), rtol=1e-4)
            np.testing.assert_allclose(arrays[f"{name}_deviation"][:, group], np.std(values, axis=0), rtol=1e-3)
    np.testing.assert_allclose(arrays["largest"], np.mean(curves["top"], axis=0), rtol=1e-4)
    np.testing.assert_allclose(arrays["median"], np.mean(curves["median"], axis=0), rtol=1e-4)
    np.testing.assert_allclose(arrays["importance_bos"], np.mean(curves["bos_map"], axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        arrays["importance_intermediate"], np.mean(curves["intermediate_map"], axis=0), rtol=1e-4
    )
    for role in REAL_ROLES:
        given = [mass[int(role)] for mass in curves["role_mass"] if int(role) in mass]
        np.testing.assert_allclose(arrays["role_share"][:, role], np.mean(given, axis=0), rtol=1e-4, atol=1e-6)
    for layer in range(LAYERS):
        for intermediate in (0, 1):
            for name in ("main", "first"):
                expected = sum(one == (layer, bool(intermediate)) for one in curves[name])
                assert arrays[f"origin_{name}"][layer, intermediate] == expected


def test_values_by_role_and_layer_equal_brute_force(brute: tuple, summary: SinkSummary) -> None:
    arrays = summary.arrays
    for role in REAL_ROLES:
        mine = [one[1:] for one in brute[1]["by_role"] if one[0] == role]
        strongest = [
            np.max([ratio for of, _, ratio, *_ in mine if of == row], axis=0) for row in {one[0] for one in mine}
        ]
        np.testing.assert_allclose(arrays["role_ratio"][:, role], np.mean(strongest, axis=0), rtol=1e-4)
        heads = [above for _, judged, _, above, _ in mine if judged]
        if heads:
            np.testing.assert_allclose(arrays["role_sink_rate"][:, role], np.mean(heads, axis=(0, 2)), atol=1e-6)
        else:
            assert np.isnan(arrays["role_sink_rate"][:, role]).all()
        for number, name in enumerate(("massive", "attended", "outlier")):
            expected = np.sum([found[number] for *_, found in mine], axis=0)
            assert arrays[f"{name}_tokens"][:, role].tolist() == expected.tolist()


def test_streaming_origins_equal_brute_force(brute: tuple, summary: SinkSummary) -> None:
    curves, arrays = brute[1], summary.arrays
    for intermediate in (0, 1):
        before = np.mean([values for group, values in curves["before"] if group == intermediate], axis=0)
        np.testing.assert_allclose(arrays["origin_before"][:, intermediate], before, rtol=1e-3, atol=1e-5)
        added = np.mean([values for group, values in curves["added"] if group == intermediate], axis=0)
        for part, values in zip(("attention", "mlp"), added, strict=True):
            np.testing.assert_allclose(arrays[f"origin_{part}"][:, intermediate], values, rtol=1e-3, atol=1e-5)
        for layer in range(LAYERS):
            of_group = [one[2:] for one in curves["units"] if one[:2] == (layer, bool(intermediate))]
            assert (len(of_group) == 0) == np.isnan(arrays["unit_weight"][layer, intermediate])
            if of_group:
                _, weight, row, at_sink, at_others = (np.mean(part, axis=0) for part in zip(*of_group, strict=True))
                expected = {
                    "weight": weight,
                    "row": row,
                    "at_sink": at_sink,
                    "at_others": at_others,
                }
                for name, value in expected.items():
                    found = arrays[f"unit_{name}"][..., layer, intermediate]
                    np.testing.assert_allclose(found, value, rtol=1e-3, err_msg=name)


def test_planted_dimensions_and_layers_are_discovered(summary: SinkSummary) -> None:
    for who in ("bos", "intermediate"):
        found = summary.description[who]
        assert {one["dimension"] for one in found["dimensions"]} == {PLANTED, PLANTED + 1}
        assert found["dimensions"][0]["share"] == 1.0
        assert found["distinct_dimensions"] == 2
        assert found["main_origin"][0]["layer"] == SECOND_WRITER
        assert (found["units"][0]["layer"], found["units"][0]["unit"]) == (SECOND_WRITER, 0)
    assert summary.metrics["sinks/mlp_share"] > 0.9
    assert summary.description["most_massive"]["bos"]["dimension"] == PLANTED
    strongest = summary.description["dominant"]
    assert set(strongest["ratio_intermediate"]) >= {"audio", "prompt"}
    assert strongest["ratio"]["bos"] == {
        "share": pytest.approx(1 - summary.metrics["sinks/relocated_share/ratio"]),
        "relative_position": 0.0,
    }
    relocated = summary.metrics["sinks/relocated_share"]
    assert sum(one["share"] for role, one in strongest["attention"].items() if role != "bos") == pytest.approx(
        relocated
    )


@pytest.mark.parametrize("padding", [{"extra": 5}, {"side": "right"}, {"extra": 3, "side": "right"}])
def test_padding_changes_nothing(summary: SinkSummary, padding: dict) -> None:
    assert_equal_summaries(streamed(llama(), [utterances()], **padding), summary)


def test_the_order_of_batches_changes_nothing(summary: SinkSummary) -> None:
    shuffled = [utterances()[index] for index in (5, 2, 6, 0, 1, 4, 3)]
    assert_equal_summaries(streamed(llama(), [[one] for one in shuffled]), summary)


def test_intervals_contain_their_value() -> None:
    summary = streamed(llama(), [utterances(12)])
    intervals = [name.removesuffix("/low") for name in summary.metrics if name.endswith("/low")]
    assert "sinks/max_ratio/bos" in intervals
    for name in intervals:
        assert summary.metrics[f"{name}/low"] <= summary.metrics[name] <= summary.metrics[f"{name}/high"]
    assert summary.metrics["sinks/max_ratio/bos/low"] < summary.metrics["sinks/max_ratio/bos/high"]


def test_undefined_metrics_are_absent() -> None:
    found = streamed(llama(), [utterances()], replace_tau(1e9))
    assert found.metrics[COUNT] == 0
    for name in ("bos_cosine/sink", "bos_cosine/other", "feature_jaccard", "mlp_share"):
        assert f"sinks/{name}" not in found.metrics
    assert np.isfinite(list(found.metrics.values())).all()


def test_batches_without_sinks_change_nothing(summary: SinkSummary) -> None:
    strongest = [max(streamed(llama(), [[one]]).metrics[f"sinks/max_ratio/{who}"] for who in ("bos", "intermediate"))
                 for one in utterances()]  # fmt: skip
    settings = replace_tau(float(np.median(strongest)))
    alone = streamed(llama(), [[one] for one in utterances()], settings)
    assert_equal_summaries(alone, streamed(llama(), [utterances()], settings))
    assert 0 < alone.metrics["sinks/unit_share"] <= 1


def test_records_add_up_to_the_metrics(summary: SinkSummary) -> None:
    arrays = summary.arrays
    assert arrays["record_ids"].tolist() == [id for id, *_ in utterances()]
    for name, (tops, bottoms) in zip(arrays["record_names"], arrays["records"], strict=True):
        assert tops.sum() / bottoms.sum() == pytest.approx(summary.metrics[name], rel=1e-5)


def test_roles_that_no_utterance_has_are_absent() -> None:
    audio_only = [one for one in utterances() if Role.VIDEO not in one[2].tolist()]
    found = streamed(llama(), [audio_only]).metrics
    assert "sinks/intermediate_tokens_per_utterance/audio" in found
    assert "sinks/intermediate_tokens_per_utterance/video" not in found


def test_relocation_by_attention_needs_a_response() -> None:
    text = [
        (id, values, torch.where(roles == Role.RESPONSE, int(Role.PROMPT), roles)) for id, values, roles in utterances()
    ]
    found = streamed(llama(), [text])
    assert "sinks/relocated_share" not in found.metrics
    assert "sinks/relocated_share/ratio" in found.metrics
    assert np.isnan(found.arrays["role_share"]).all()
    assert np.isfinite(found.arrays["importance_intermediate"]).all()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_few_layers(layers: int) -> None:
    found = streamed(llama(layers), [utterances()])
    assert ("sinks/max_ratio/bos" in found.metrics) == (layers == 3)
    assert "sinks/bos_sink_rate" in found.metrics
    assert found.arrays["cosine_mean"].shape[0] == layers


def test_first_and_last_layer_are_not_inner() -> None:
    assert without_outer_layers(torch.ones(5, 1)).flatten().tolist() == [0, 1, 1, 1, 0]
    assert without_outer_layers(torch.ones(1, 1)).flatten().tolist() == [0]


def test_sequences_of_one_and_two_tokens() -> None:
    short = [("one", torch.randn(1, WIDTH), torch.tensor([1])), ("two", torch.randn(2, WIDTH), torch.tensor([1, 9]))]
    found = streamed(llama(), [short])
    assert found.metrics["sinks/tokens_per_utterance"] == 1.5
    assert "sinks/bos_sink_rate" not in found.metrics
    assert np.isfinite(list(found.metrics.values())).all()
    # Too short to have a sink rate, they do not change that of other sequences.
    mixed = streamed(llama(), [[*short, *utterances(2)]])
    assert mixed.metrics["sinks/bos_sink_rate"] == streamed(llama(), [utterances(2)]).metrics["sinks/bos_sink_rate"]


def test_only_keys_seen_by_the_complete_response_are_ranked() -> None:
    for side in ("left", "right"):
        _, captured = captured_batch(llama(), utterances(), side=side)
        ranking, exists = captured.response_ranking()
        assert exists.all()
        for row, (_, _, roles) in enumerate(utterances()):
            compared = ranking[row][captured.mask[row]] >= 0
            before_response = int((roles != Role.RESPONSE).sum())
            assert compared.tolist() == [token <= before_response for token in range(len(roles))]
        assert (ranking[~captured.mask] == -1).all()


def test_a_sink_inside_a_plain_text_is_dominant() -> None:
    """A key at position 6 gets nearly all attention, and nothing precedes the text but BOS."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_hidden_layers=4, attention_bias=True)
    model = LlamaForCausalLM(config).eval()
    size = WIDTH // HEADS
    slowest = size // 2 - 1
    with torch.no_grad():
        for layer in model.model.layers:
            # In the dimension that the position rotates least.
            layer.self_attn.q_proj.bias.view(HEADS, size)[:, slowest] = 6
            layer.self_attn.k_proj.weight.view(-1, size, WIDTH)[:, slowest] = 6 * planted_direction()
    texts = []
    for length in (16, 20):
        embeddings = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(length)) * 0.5
        embeddings -= embeddings @ planted_direction()[:, None] * planted_direction()
        embeddings[6] = 7 * planted_direction()
        texts.append((f"text {length}", embeddings, torch.tensor([Role.BOS, *[Role.RESPONSE] * (length - 1)])))
    found = streamed(model, [texts])
    assert found.metrics["sinks/relocated_share"] == 1
    ((role, dominant),) = found.description["dominant"]["attention"].items()
    assert (role, dominant["share"]) == ("response", 1)
    assert dominant["relative_position"] == pytest.approx((6 / 15 + 6 / 19) / 2)
    _, captured = captured_batch(model, texts)
    to_the_key = captured.attention_to(torch.tensor([10, 6])).mean(1).numpy()
    assert to_the_key.min() > 0.9
    np.testing.assert_allclose(found.arrays["importance_intermediate"], to_the_key, rtol=1e-4)


def test_an_utterance_that_is_not_finite_is_skipped_and_named(summary: SinkSummary) -> None:
    broken = utterances(1)[0][1].clone()
    broken[3] = torch.nan
    with_it = [*utterances(), ("broken", broken, utterances(1)[0][2])]
    found = streamed(llama(), [with_it])
    assert found.description["skipped"] == ["broken"]
    assert_equal_summaries(found, summary)
    alone = streamed(llama(), [[with_it[-1]]])
    assert alone.metrics == {}
    assert alone.description["skipped"] == ["broken"]


def test_two_bos_tokens_are_refused() -> None:
    id, embeddings, roles = utterances(1)[0]
    with pytest.raises(ValueError, match="one BOS"):
        streamed(llama(), [[(id, embeddings, roles.clone().index_fill_(0, torch.tensor([2]), int(Role.BOS)))]])


def test_with_lora_on_and_bfloat16_autocast(summary: SinkSummary) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    ids, embeddings, roles = batch(utterances())
    found = {}
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            captured = capture(model, embeddings, roles != Role.PADDING, roles)
            assert captured.attention_to_key.dtype == captured.residuals[-1].dtype == torch.float32
            statistics = SinkStatistics(SETTINGS, LAYERS, HEADS)
            statistics.add(captured, ids)
        found[enabled] = statistics.summary(bootstrap=200)
    # A fresh adapter adds zero.
    assert_equal_summaries(found[False], summary)
    for name in ("sinks/max_ratio/bos", "sinks/bos_cosine/sink", "sinks/bos_cosine/other", "sinks/mlp_share"):
        assert found[True].metrics[name] == pytest.approx(summary.metrics[name], rel=0.05, abs=0.02)
    assert no_hooks(model.get_base_model())


def test_memory_is_one_small_record_per_utterance() -> None:
    model = llama()
    ids, captured = captured_batch(model, utterances())
    statistics = SinkStatistics(SETTINGS, LAYERS, HEADS)
    sizes = []
    for round_ in range(3):
        statistics.add(captured, [f"{round_}/{id}" for id in ids])
        sizes.append(_numbers_held(statistics))
    per_utterance = (sizes[2] - sizes[1]) / len(ids)
    assert per_utterance == (sizes[1] - sizes[0]) / len(ids)
    assert per_utterance < 100


def _numbers_held(value: object, seen: set | None = None) -> int:
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, (np.ndarray, array)):
        return int(np.size(value))
    if isinstance(value, dict):
        return sum(_numbers_held(item, seen) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_numbers_held(item, seen) for item in value)
    return _numbers_held(vars(value), seen) if hasattr(value, "__dict__") else 0


# Running statistics.


def test_running_moments_equal_those_of_all_values() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(3, 500, generator=random, dtype=torch.float64) * 0.01 + 1000
    groups = torch.randint(4, (500,), generator=random)
    moments = Moments(3, 5)
    for part in torch.arange(500).split([1, 99, 0, 250, 150]):
        moments.add(values[:, part], groups[part])
    for group in range(4):
        of_group = values[:, groups == group]
        torch.testing.assert_close(moments.means()[:, group], of_group.mean(1))
        torch.testing.assert_close(moments.deviations()[:, group], of_group.std(1, correction=0), rtol=1e-6, atol=0)
    assert moments.means()[:, 4].isnan().all()
    torch.testing.assert_close(moments.pooled([0, 1, 2, 3]).deviations()[:, 0], values.std(1, correction=0))


def test_histogram_includes_both_ends() -> None:
    histogram = CosineHistogram(1, 1)
    histogram.add(torch.tensor([[-1.0, -1.0000001, 1.0, 1.0000001]]), torch.zeros(4, dtype=torch.long))
    assert histogram.counts[0, 0, 0] == 2
    assert histogram.counts[0, 0, -1] == 2


# Known values of a real model.


@pytest.fixture(scope="module")
def smollm2(real_weights: Path) -> SinkSummary:
    """SmolLM2 on the repository's licence: its first 16 windows of 64 tokens, each starting with BOS."""
    folder = real_weights / "smollm2-135m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (Path(__file__).resolve().parents[1] / "LICENSE").read_text(encoding="utf-8")
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    windows = tokens[: 16 * 63].view(16, 63)
    windows = torch.cat([torch.full((len(windows), 1), tokenizer.bos_token_id), windows], dim=1)
    roles = torch.full_like(windows, int(Role.RESPONSE))
    roles[:, 0] = Role.BOS
    statistics = SinkStatistics(Sinks(), model.config.num_hidden_layers, model.config.num_attention_heads)
    for part in torch.arange(len(windows)).split(8):
        with torch.no_grad():
            embeddings = model.get_input_embeddings()(windows[part])
        captured = capture(model, embeddings, torch.ones_like(roles[part], dtype=torch.bool), roles[part])
        statistics.add(captured, [f"window {number}" for number in part.tolist()])
    return statistics.summary(bootstrap=1000)


def test_known_values_of_smollm2(smollm2: SinkSummary) -> None:
    metrics, arrays, description = smollm2.metrics, smollm2.arrays, smollm2.description
    assert metrics["sinks/tokens_per_utterance"] == 64
    assert metrics["sinks/bos_sink_rate"] == pytest.approx(0.645, abs=0.03)
    assert description["bos"]["dimensions"][0] == {"dimension": 507, "share": 1.0}
    assert description["bos"]["main_origin"] == [{"layer": 11, "sink_tokens": description["utterances"]}]
    assert metrics["sinks/max_ratio/bos"] > 10_000
    assert metrics["sinks/mlp_share"] > 0.99
    # The MLP of layer 2 writes first, that of layer 11 most, and that of layer 28 begins to cancel it.
    written = arrays["origin_mlp"][:, 0]
    assert written[:10].argmax() == 2
    assert 600 < arrays["largest"][2, 0] < 1000
    assert written[11] == pytest.approx(24_000, rel=0.1)
    assert written[28] < -10_000
    assert metrics[COUNT] < 0.1
    assert metrics["sinks/relocated_share"] == metrics["sinks/relocated_share/ratio"] == 0


# Definitions of a sink, thresholds, and the exemplar.


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
