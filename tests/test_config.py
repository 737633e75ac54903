"""params.yaml: accepted and refused values, and the messages."""

import pickle
from math import inf

import pytest
import yaml

from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.common.strict_yaml import parse_yaml
from pipeline.config import Params, load_params

PARAMS = "params.yaml"

REFUSED = [
    ("model.rates.audio=0", "model.rates.audio is 0; it must be greater than or equal to 1"),
    ("modle.modality=audio", "unknown parameter 'modle'; expected one of: weights, corpus, features, model"),
    ("model.rate.audio=2", "unknown parameter 'model.rate'; expected one of: modality, rates"),
    ("model.modality=both", "model.modality is 'both'; it must be 'audio', 'video' or 'audiovisual'"),
    ("train.steps=many", "train.steps is 'many'; it must be a valid integer"),
    ("train.steps=1.5", "train.steps is 1.5; it must be a valid integer"),
    ("train.epochs=2", "train.steps is 720 and train.epochs is 2; set one, and the other to null"),
    ("train.steps=null", "train.steps is None and train.epochs is None; set one, and the other to null"),
    ("model.prompt=5", "model.prompt is 5; it must be a valid string"),
    ("model.prompt={audio: 5}", "model.prompt.audio is 5; it must be a valid string"),
    ("model.prompt={audio: Listen.}", "model.prompt has no audiovisual, which is model.modality; add it, or give one"),
    ("train.steps=true", "train.steps is True; it must be a valid integer"),
    ("train.learning_rate=.inf", "train.learning_rate is inf; it must be"),
    ("train=3", "train is 3; it must be"),
    ("decorrelation.weight=-0.1", "decorrelation.weight is -0.1; it must be greater than or equal to 0"),
    ("decorrelation.layers=[first]", "decorrelation.layers[0] is 'first'; it must be a valid integer"),
    ("decorrelation.roles=[silence]", "decorrelation.roles[0] is 'silence'; it must be 'bos', 'audio_start'"),
    ("sinks.epsilon=1", "sinks.epsilon is 1"),
    ("evaluate.splits=[train]", "evaluate.splits[0] is 'train'; it must be 'validation' or 'test'"),
    ("evaluate.splits=[validation]", "sinks.split is 'test' and evaluate.splits is ['validation']; add it to"),
    ("corpus.noise.train_snrs=[]", "corpus.noise.train_share is 0.3 and corpus.noise.train_snrs is empty"),
    ("corpus.noise={train_copies: 2}", "corpus.noise.train_copies is 2 and corpus.noise.train_snrs is empty"),
    ("corpus.held_out.by=text", "corpus.held_out.by is 'text' and corpus.kind is 'synthetic'; use it with kind folder"),
    ("corpus.synthetic.utterances.test=1", "corpus.synthetic.utterances.test is 1; it must be at least the 4 voices"),
    ("train.betas=[0.9, 0.98, 0.99]", "train.betas is [0.9, 0.98, 0.99]; it must have at most 2 items"),
    ("corpus.grid.test_speakers=[S1]", "corpus.grid.test_speakers[0] is 'S1'; it must match pattern '^s[1-9][0-9]?$'"),
    (
        "weights.sources=[{name: w, format: gguf, source: {kind: git}}]",
        "weights.sources[0].source is of kind 'git'; expected one of: 'wheel', 'path', 'hub'",
    ),
    ("corpus.kind=imagined", "corpus.kind is 'imagined'; it must be 'synthetic'"),
    ("weights.sources=[{name: a, format: gguf, source: {kind: path}}]", "weights.sources[0].source.path is missing"),
    ("model.modality.audio=1", "cannot set model.modality.audio: model.modality is 'audiovisual'; set model."),
    ("features.mode=live", "features.mode is 'live'; it must be 'cached' or 'online'"),
    (
        "features.augmentation.flip=0.5",
        "features.augmentation.flip is 0.5 and features.mode is 'cached'; set features.mode to online",
    ),
    (
        "features.augmentation.noise_snrs=[5]",
        "features.augmentation.noise_snrs is [5.0] and features.mode is 'cached'",
    ),
    ("features.augmentation.time_mask=2", "features.augmentation.time_mask is 2; it must be less than or equal to 1"),
    ("features.augmentation.flip=-1", "features.augmentation.flip is -1; it must be greater than or equal to 0"),
    ("features.augmentation.noise_snrs=[.inf]", "features.augmentation.noise_snrs[0] is inf; it must be"),
    (
        "features.augmentation.mirror=true",
        "augmentation.mirror'; expected one of: crop, flip, time_mask, noise_share",
    ),
    (
        "features.video.lora={rank: 4, alpha: 8}",
        "features.video.lora is {'rank': 4, 'alpha': 8.0} and features.mode is 'cached'",
    ),
    ("features.video.lora={rank: 4}", "features.video.lora.alpha is missing; add it"),
    (
        "features.video.lora={rank: 4, alpha: 8, depth: 1}",
        "unknown parameter 'features.video.lora.depth'; expected one of: rank, alpha",
    ),
    ("features.video.lora.rank=4", "features.video.lora.alpha is missing; add it"),
    ("features.video.lora={rank: 0, alpha: 8}", "features.video.lora.rank is 0; it must be"),
    ("model.rates.audio", "has no '='"),
    ("train.steps=[", "invalid YAML"),
    ("model.lora.targets=[]", "model.lora.targets is []; list at least one"),
    ("evaluate.splits=[test, validation, test]", "evaluate.splits is ['test', 'validation', 'test']; list each split"),
    ("train.device=cuda:x", "train.device is 'cuda:x'; it must match pattern"),
    ("train.device=tpu", "train.device is 'tpu'; it must match pattern"),
    (
        "features.video={encoder: avhubert}",
        "features.video.weights is null and features.video.encoder is 'avhubert'; set it to the folder of a source",
    ),
    (
        "features.audio={encoder: avhubert, weights: null}",
        "features.audio.weights is null and features.audio.encoder is 'avhubert'; set it to the folder of a source",
    ),
]


REFUSED_ONLINE = [
    ("features.audio.lora={rank: 4, alpha: 8}", "features.audio.lora is set and features.audio.encoder is 'whisper'"),
    ("features.video.lora={rank: 4, alpha: 8}", "features.video.lora is set and features.video.encoder is 'dct'; use"),
    ("features.augmentation.crop=true", "features.augmentation.crop is True and features.video.encoder is 'dct'"),
    ("features.augmentation.flip=0.5", "features.augmentation.flip is 0.5 and features.video.encoder is 'dct'"),
    ("features.augmentation.noise_share=0.5", "features.augmentation.noise_share is 0.5 and noise_snrs is empty; set"),
    (
        ["corpus.noise.train_share=1", "features.augmentation={noise_share: 0.5, noise_snrs: [0]}"],
        "features.augmentation.noise_share is 0.5 and corpus.noise.train_share is 1.0; noise is added to clean",
    ),
]


@pytest.mark.parametrize(("overrides", "message_part"), REFUSED_ONLINE)
def test_settings_without_effect_online_are_refused_in_one_line(overrides, message_part):
    with pytest.raises(PipelineError) as refused:
        load_params(PARAMS, ["features.mode=online", *([overrides] if isinstance(overrides, str) else overrides)])
    assert message_part in str(refused.value)
    assert "\n" not in str(refused.value)


WEIGHT = "decorrelation.weight=0.1"
REFUSED_LOSS = [
    (["decorrelation.layers=[]"], "decorrelation.layers is []; list at least one, or set it to all"),
    (["decorrelation.roles=[]"], "decorrelation.roles is []; list at least one, or set it to all"),
    ([WEIGHT, "decorrelation.layers=[15]", "model.llm.blocks=16"], "list some of 0 to 14, or all"),
    (
        [WEIGHT, "decorrelation.layers=[0, 40]", "model.llm.blocks=16"],
        "decorrelation.layers is [0, 40] and the LLM has 16",
    ),
    ([WEIGHT, "model.llm.blocks=1"], "is all and the LLM has 1 layer (model.llm.blocks), of which the loss"),
    ([WEIGHT, "decorrelation.layers=[0]", "model.llm.blocks=1"], "use all but the last; keep at least two, or"),
    ([WEIGHT, "decorrelation.roles=[video]", "model.modality=audio"], "and model.modality is 'audio', which has none"),
    ([WEIGHT, "decorrelation.roles=[audio, audio_end]", "model.modality=video"], "some of: video_start, video, video_"),
    ([WEIGHT, "decorrelation.roles=[bos, response]"], "which has none of them"),
    ([WEIGHT, "decorrelation.roles=[prompt]", "model.prompt=''"], "which has none of them"),
]


@pytest.mark.parametrize(("overrides", "message_part"), REFUSED_LOSS)
def test_a_loss_without_tokens_is_refused(overrides, message_part):
    with pytest.raises(PipelineError) as refused:
        load_params(PARAMS, overrides)
    assert message_part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_loss_with_some_tokens_is_accepted():
    load_params(PARAMS, [WEIGHT, "decorrelation.layers=[0, 14]", "model.llm.blocks=16"])
    load_params(PARAMS, [WEIGHT, "decorrelation.roles=[audio_start, video_start]", "model.modality=audio"])
    # Its settings have no effect at weight 0, such as in the baseline of a sweep.
    load_params(PARAMS, ["decorrelation.roles=[video]", "model.modality=audio"])


def test_an_unused_modality_may_have_any_augmentation():
    settings = ["features.mode=online", "model.modality=audio", "features.augmentation={crop: true, flip: 0.5}"]
    assert load_params(PARAMS, settings).features.augmentation.crop


@pytest.mark.parametrize(("override", "message_part"), REFUSED)
def test_wrong_values_are_refused_in_one_line(override, message_part):
    with pytest.raises(PipelineError) as refused:
        load_params(PARAMS, [override])
    message = str(refused.value)
    assert message_part in message
    assert "\n" not in message


def test_overrides_are_yaml():
    params = load_params(PARAMS, ["model.rates.audio=4", "train.learning_rate=5e-4", "decorrelation.layers=[0, 3]"])
    assert params.model.rates.audio == 4
    assert params.train.learning_rate == 0.0005
    assert params.decorrelation.layers == (0, 3)
    assert load_params(PARAMS, ["model.llm.blocks=null"]).model.llm.blocks is None


def test_values_are_frozen():
    params = load_params(PARAMS)
    with pytest.raises(ValueError, match="frozen"):
        params.train.steps = 1


def test_a_missing_file_names_the_option(tmp_path):
    with pytest.raises(PipelineError, match=r"none\.yaml: the file is missing; give the file with --params"):
        load_params(tmp_path / "none.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{number}: &a{number} [*a{number - 1}]\n" for number in range(1, 400))

REFUSED_YAML = [
    ("a: 1\nb: 2\na: 3\n", "file:3: invalid YAML: 'a' is given twice"),
    ("a: [1\nb: 2", "file:2: invalid YAML"),
    (BOMB, "too large with its aliases expanded"),
    (CHAIN, "too large with its aliases expanded (51 levels)"),
    ("a: &a [*a]", "*a contains itself"),
    ("a: &a {b: *a}", "*a contains itself"),
    ("a: " + "[" * 3000 + "]" * 3000, "nested deeper than 50 levels"),
    ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested deeper than 50 levels"),
    ("a: " + "9" * 5000, "file:1: invalid YAML: an integer of more than 18 characters"),
    ("a: 0x" + "f" * 5000, "an integer of more than 18 characters"),
    ("{? [1, 2]: 3}", "invalid YAML"),
    ("[1]: 2", "invalid YAML"),
    ("1: 2", "the key 1 is not text"),
    ("null: 2", "the key None is not text"),
    ("a: !!int x", "the tag tag:yaml.org,2002:int is not supported"),
    ("a: !!timestamp x", "is not supported"),
    ("a: !!python/object/apply:os.system [true]", "is not supported"),
    ('a: "\\ud800"', "contains a character that no file can hold"),
    ('a: "\\0"', "contains a character that no file can hold"),
    ('a: "\\U0011ffff"', "invalid YAML"),
    ("a: \0", "unacceptable character"),
    ("a: {<<: 1}", "invalid YAML"),
    ("a: *nope", "undefined alias"),
    ("a: 1\n---\nb: 2", "invalid YAML"),
    ("a: " + "x" * (5 << 20), "has 5242883 characters; use a YAML file of at most 4194304"),
]


@pytest.mark.parametrize(("text", "message_part"), REFUSED_YAML, ids=range(len(REFUSED_YAML)))
def test_bad_yaml_is_one_short_line(text, message_part):
    with pytest.raises(PipelineError) as refused:
        parse_yaml(text, "file")
    message = str(refused.value)
    assert message_part in message
    assert message.splitlines() == [message]
    assert len(message) < 2000


@pytest.mark.parametrize("content", [b"\xff\xfea\0", b"a: \xe9\n", b"\0"])
def test_a_file_that_is_not_utf_8_gives_one_line(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(PipelineError, match=r"params\.yaml: (invalid UTF-8 .*; give the file|invalid YAML)"):
        load_params(tmp_path / "params.yaml")


def test_aliases_and_merged_mappings_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: *a}", "file") == {"a": {"x": 1}, "b": {"x": 1, "y": {"x": 1}}}


def test_a_long_value_is_shortened_in_the_error():
    with pytest.raises(PipelineError) as refused:
        load_params(PARAMS, ["train.steps=" + "x" * 100_000])
    assert "train.steps is 'xxx" in str(refused.value)
    assert len(str(refused.value)) < 2000


def test_an_error_has_no_control_characters():
    message = str(PipelineError("a\x1b[2Jb", "two\nlines\u202e", "none"))
    assert message == "a\\x1b[2Jb: two lines\\u202e; none"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5e1", 5.0),
        ("-2e-2", -0.02),
        ("1.5", 1.5),
        ("12", 12),
        ("e5", "e5"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("2020-13-45", "2020-13-45"),
        ("2020-01-01", "2020-01-01"),
        ("-.inf", -inf),
        ("1_000", "1_000"),
        ("0x10", 16),
        ("=", "="),
        ("true", True),
        ("~", None),
    ],
)
def test_numbers_are_what_they_look_like(text, value):
    found = parse_yaml(text, "file")
    assert found == value
    assert type(found) is type(value)


def test_the_default_corpus_keeps_encoder_passes_at_1600_or_fewer():
    corpus = load_params(PARAMS).corpus
    counts, noise = corpus.synthetic.utterances, corpus.noise
    passes = (
        counts.train + counts.validation * (1 + len(noise.validation_snrs)) + counts.test * (1 + len(noise.test_snrs))
    )
    assert passes <= 1600


def test_the_file_has_exactly_the_parameters():

    def keys(values, prefix=""):
        for key, value in values.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    with open(PARAMS) as file:
        written = set(keys(yaml.safe_load(file)))
    known = set(keys(load_params(PARAMS).model_dump(mode="json")))
    assert known == written


def test_streams_are_in_the_order_of_the_sequence():
    assert streams("audiovisual") == ("audio", "video")
    assert streams("video") == ("video",)


def test_settings_of_an_encoder_that_is_not_chosen_are_dropped():
    settings = ["features.video.encoder=avhubert", "features.video.coefficients=10", "model.modality=audio"]
    video = load_params(PARAMS, settings).features.video
    assert video.model_dump() == {"encoder": "avhubert", "weights": None, "precision": "auto", "lora": None}
    assert load_params(PARAMS, ["features.video.coefficients=10"]).features.video.coefficients == 10


def test_parameters_are_pickled_unchanged():
    params = load_params(PARAMS, ["corpus.grid.split=overlapped", "model.downsampling={kind: stack}"])
    assert pickle.loads(pickle.dumps(params)) == params
    assert Params.model_validate_json(params.model_dump_json()) == params
    assert params.model_dump(mode="json")["model"]["downsampling"] == "stack"


KINDS = [
    (
        "features.video.coefs=2",
        "unknown parameter 'features.video.coefs'; expected one of: encoder, weights, prec",
    ),
    ("features.video.window=fitted", "unknown parameter 'features.video.window'"),
    ("features.audio.encoder=dct", "features.audio.encoder is 'dct'; it must be 'whisper', 'avhubert' or"),
    ("features.audio={encoder: self_supervised}", "features.audio.weights is missing; add it"),
    ("corpus.grid.splt=2", "unknown parameter 'corpus.grid.splt'; expected one of: split, test_speakers"),
    ("model.downsampling=avrage", "model.downsampling is 'avrage'; it must be 'average' or 'stack'"),
    ("model.downsampling={kind: average, heads: 2}", "unknown parameter 'model.downsampling.heads'; expected one"),
]


@pytest.mark.parametrize(("override", "message_part"), KINDS)
def test_settings_of_a_kind_are_checked_by_its_file(override, message_part):
    with pytest.raises(PipelineError) as refused:
        load_params(PARAMS, [override])
    assert message_part in str(refused.value)
    assert "\n" not in str(refused.value)
