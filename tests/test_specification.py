"""A sweep file: its points, and one line for each error."""

from pathlib import Path

import pytest
import yaml
from sweeps import planned_trial

from pipeline.common.errors import PipelineError
from pipeline.sweep import main
from pipeline.sweeping import resources
from pipeline.sweeping.cost import Cost, cost_line
from pipeline.sweeping.inputs import missing_sources
from pipeline.sweeping.plan import name_without_seed, seeded_point_name
from pipeline.sweeping.resources import planned_concurrency
from pipeline.sweeping.specification import Resources, Specification
from pipeline.sweeping.sweep_file import load_sweep

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {"decorrelation.weight": [0, 0.1]}


@pytest.fixture
def load(tmp_path):
    """Writes a specification and loads it."""

    def loaded(overrides=(), only=(), **specification):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"name": "some", **specification}, sort_keys=False))
        return load_sweep(path, ROOT / "params.yaml", overrides, only)

    return loaded


def settings(sweep):
    return [point.settings for point in sweep.seeded_points]


def test_axes_are_multiplied_in_their_order(load):
    tasks = [{"model.modality": "audio", "model.rates.audio": 4}, {"model.modality": "video"}]
    sweep = load(axes={"task": tasks, **WEIGHTS}, seeds=[0, 1])
    assert len(sweep.seeded_points) == 8
    assert settings(sweep)[0] == {**tasks[0], "decorrelation.weight": 0, "train.seed": 0}
    assert settings(sweep)[1]["train.seed"] == 1
    assert [p.params.model.modality for p in sweep.seeded_points] == ["audio"] * 4 + ["video"] * 4
    assert sweep.seeded_points[0].params.model.rates.audio == 4
    assert sweep.seeded_points[-1].params.model.rates.audio == sweep.base.model.rates.audio


def test_keys_of_a_section_that_is_null_are_set(load):
    alpha = {"features.mode": "online", "features.video.encoder": "avhubert", "features.video.weights": "weights"}
    sweep = load(set=alpha | {"features.video.lora.alpha": 8}, axes={"features.video.lora.rank": [4, 8]})
    assert [point.params.features.video.lora.rank for point in sweep.seeded_points] == [4, 8]
    assert sweep.base.features.video.lora is None


def test_without_axes_it_has_the_trial_of_the_parameters(load):
    sweep = load()
    assert [point.params for point in sweep.seeded_points] == [sweep.base]


def test_nested_axis_values_do_not_leak_between_trials(load):
    rates = {"model.rates": {"audio": 4, "video": 2}}
    sweep = load(set=rates, axes={"task": [{"model.rates.audio": 16}, {"model.modality": "video"}]})
    assert [p.params.model.rates.audio for p in sweep.seeded_points] == [16, 4]


def test_the_planned_comparison_is_of_a_task_of_the_sweep(load):
    axes = {"model.modality": ["audio", "video"]}
    assert len(load(axes=axes, primary="ASR 16", only=["modality=video"]).seeded_points) == 1
    with pytest.raises(
        PipelineError, match=r"primary: unknown task 'audio 16'; expected one of: \['ASR 16', 'VSR 5'\]"
    ):
        load(axes=axes, primary="audio 16")


def test_several_gpus_have_a_rank_each(load):
    assert load(resources={"gpus": 4}).seeded_points[0].params.train.ranks == 4
    assert [load(resources={"gpus": gpus}).seeded_points[0].params.train.ranks for gpus in (0, 0.5, 1)] == [1, 1, 1]
    assert load(set={"train.ranks": 2}).seeded_points[0].params.train.ranks == 2


CORPORA = [
    {"name": "LRS2", "corpus.kind": "lrs2", "corpus.root": "/some/where/lrs2", "corpus.out": "data/lrs2"},
    {"name": "LRS3", "corpus.kind": "lrs3", "corpus.root": "/some/where/lrs3", "corpus.out": "data/lrs3"},
]


def test_values_of_an_axis_can_have_names(load):
    sweep = load(axes={"dataset": CORPORA, **WEIGHTS})
    assert [point.params.corpus.kind for point in sweep.seeded_points] == ["lrs2", "lrs2", "lrs3", "lrs3"]
    assert "name" not in sweep.seeded_points[0].settings
    assert seeded_point_name(sweep.seeded_points[-1]).endswith("weight 0.1 seed 0 LRS3")
    assert [point.dataset for point in sweep.seeded_points] == ["LRS2", "LRS2", "LRS3", "LRS3"]
    assert len(load(axes={"dataset": CORPORA, **WEIGHTS}, only=["dataset=LRS3"]).seeded_points) == 2
    with pytest.raises(PipelineError, match="matches no trial; dataset is one of: LRS2, LRS3"):
        load(axes={"dataset": CORPORA}, only=["dataset=GRID"])


@pytest.mark.parametrize("primary", ["ASR 16", "GRID ASR 16", "mine ASR 4"])
def test_the_planned_comparison_of_several_corpora_names_the_corpus_as_tables_do(load, primary):
    renamed = [CORPORA[0] | {"name": "mine"}, CORPORA[1]]
    axes = {"model.modality": ["audio", "video"], "dataset": renamed}
    assert len(load(axes=axes, primary="mine ASR 16", only=["dataset=LRS3"]).seeded_points) == 2
    expected = r"expected one of: \['LRS3 ASR 16', 'LRS3 VSR 5', 'mine ASR 16', 'mine VSR 5'\]"
    with pytest.raises(PipelineError, match=rf"primary: unknown task '{primary}'; {expected}"):
        load(axes=axes, primary=primary)
    with pytest.raises(PipelineError, match=r"'LRS3 ASR 16'; expected one of: \['ASR 16'\]"):
        load(axes={"dataset": CORPORA[1:]}, set={"model.modality": "audio"}, primary="LRS3 ASR 16")


def test_missing_sources_are_listed_with_the_file_that_names_them(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whisper").mkdir()
    paths = {"llm": "/no/llm", "whisper": "whisper"}
    sources = [
        {"name": name, "format": "huggingface", "source": {"kind": "path", "path": path}}
        for name, path in paths.items()
    ]
    made = {"model.llm.weights": "data/weights/llm", "features.audio.weights": "data/weights/whisper"}
    sweep = load(set={"weights.sources": sources, **made}, axes={"dataset": CORPORA})
    remedy = "correct it, or mount it"
    assert [str(error) for error in missing_sources(sweep, "sweep.yaml", "params.yaml")] == [
        f"sweep.yaml: weights.sources[llm]: /no/llm does not exist; {remedy}",
        f"sweep.yaml: corpus.root: /some/where/lrs2 does not exist; {remedy}",
        f"sweep.yaml: corpus.root: /some/where/lrs3 does not exist; {remedy}",
    ]
    given = load(
        set={"weights.sources": sources, **made}, overrides=["corpus.kind=lrs3", "corpus.root=/no/lrs3", "corpus.out=x"]
    )
    assert [error.where for error in missing_sources(given, "sweep.yaml", "params.yaml")] == [
        "sweep.yaml: weights.sources[llm]",
        "--set: corpus.root",
    ]
    # Sources of the base parameters are listed with their own file.
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["corpus"] |= {"kind": "lrs3", "root": "/no/lrs3"}
    values["weights"]["sources"] = sources
    values["model"]["llm"]["weights"] = "data/weights/llm/deeper"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "sweep.yaml").write_text("name: some")
    missing = missing_sources(load_sweep("sweep.yaml", "own.yaml"), "sweep.yaml", "own.yaml")
    assert [error.where for error in missing] == [
        "own.yaml: weights.sources[llm]",
        "own.yaml: corpus.root",
        "own.yaml: features.audio.weights",
    ]


def test_weights_that_no_source_makes_are_listed(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    llms = ["data/weights/smollm2-135m", str(tmp_path / "mine"), "/no/llm"]
    sweep = load(set={"features.audio.weights": "data/weights/wisper"}, axes={"model.llm.weights": llms, **WEIGHTS})
    remedy = "correct it, or add a source of that name to weights.sources"
    assert [str(error) for error in missing_sources(sweep, "sweep.yaml", "params.yaml")] == [
        f"sweep.yaml: features.audio.weights: data/weights/wisper does not exist; {remedy}",
        f"sweep.yaml: model.llm.weights: /no/llm does not exist; {remedy}",
    ]
    assert not missing_sources(load(set={"model.modality": "video"}), "sweep.yaml", "params.yaml")


def test_the_name_of_a_point_keeps_the_seed_of_another_axis(load, tmp_path):
    (point,) = load(axes={"corpus.seed": [12]}, set={"corpus.out": "data/mine"}, seeds=[1]).seeded_points
    planned = planned_trial(tmp_path, seeded_point_name(point), "train.seed=1")
    assert planned.name == "AVSR 16, 5 weight 0 seed 1 seed 12"
    assert name_without_seed(planned) == "AVSR 16, 5 weight 0 seed 12"


def test_names_have_no_settings_that_the_task_tells(load):
    tasks = [{"model.modality": "audio"}, {"model.modality": "video", "train.learning_rate": 5e-4}]
    sweep = load(axes={"task": tasks, "model.lora.rank": [4, 8]})
    assert [seeded_point_name(point) for point in sweep.seeded_points] == [
        f"{task} weight 0 seed 0 rank {rank}" for task in ("ASR 16", "VSR 5") for rank in (4, 8)
    ]
    # Here two values are the same task.
    again = [*tasks, {"model.modality": "video", "train.learning_rate": 1e-3}]
    names = [seeded_point_name(point) for point in load(axes={"task": again}).seeded_points]
    assert names[1:] == [f"VSR 5 weight 0 seed 0 learning_rate {rate}" for rate in (5e-4, 1e-3)]


def test_names_have_no_paths(load):
    unnamed = [{key: value for key, value in corpus.items() if key != "name"} for corpus in CORPORA]
    sweep = load(axes={"dataset": unnamed, "features.audio.weights": ["/my/weights/whisper", "/my/weights/tiny"]})
    assert [seeded_point_name(point).partition(" seed 0 ")[2] for point in sweep.seeded_points] == [
        "LRS2 weights whisper", "LRS2 weights tiny", "LRS3 weights whisper", "LRS3 weights tiny"
    ]  # fmt: skip


def test_a_section_can_be_an_axis(load):
    sweep = load(axes={"model.rates": [{"audio": 4, "video": 2}, {"audio": 16, "video": 5}]})
    assert [(p.params.model.rates.audio, p.params.model.rates.video) for p in sweep.seeded_points] == [(4, 2), (16, 5)]


def test_axes_override_common_settings_and_the_command_line_overrides_the_file(load):
    sweep = load(set={"train.steps": 300, "train.batch_size": 4}, axes=WEIGHTS, overrides=["train.steps=7"])
    assert {(p.params.train.steps, p.params.train.batch_size) for p in sweep.seeded_points} == {(7, 4)}
    assert load(set={"decorrelation.weight": 3}, axes=WEIGHTS).seeded_points[1].params.decorrelation.weight == 0.1


def test_draws_are_reproducible_and_more_samples_begin_with_the_same(load):
    def drawn(kind, samples, bounds):
        sweep = load(axes={"train.learning_rate": {kind: bounds, "samples": samples}})
        return [point.params.train.learning_rate for point in sweep.seeded_points]

    for kind in ("uniform", "loguniform"):
        few, many = drawn(kind, 3, [1e-5, 1e-1]), drawn(kind, 50, [1e-5, 1e-1])
        assert many[:3] == few
        assert len(set(many)) == 50
        assert all(1e-5 <= value <= 1e-1 for value in many)
        below = sum(value < 1e-3 for value in many)
        assert (below < 5) if kind == "uniform" else (15 < below < 35)
        assert drawn(kind, 3, [1e-5, 1e-2]) != few


def test_only_narrows_by_the_end_of_a_key(load):
    axes = {"model.modality": ["audio", "video"], **WEIGHTS}
    assert len(load(axes=axes, only=["modality=audio"]).seeded_points) == 2
    (point,) = load(axes=axes, only=["modality=audio", "decorrelation.weight=0.1"]).seeded_points
    assert point.settings == {"model.modality": "audio", "decorrelation.weight": 0.1}
    # An axis comes before other keys with the same ending.
    assert len(load(axes=axes, only=["weight=0"]).seeded_points) == 2


def test_only_keeps_trials_that_use_the_key(load):
    tasks = [
        {"model.modality": "audio", "model.rates.audio": 16},
        {"model.modality": "audiovisual", "model.rates.audio": 16},
        {"model.modality": "video"},
    ]
    axes = {"task": tasks, **WEIGHTS}

    def kept(*only):
        points = load(axes=axes, only=only, set={"model.rates": {"audio": 16, "video": 5}}).seeded_points
        return [(p.params.model.modality, p.params.decorrelation.weight) for p in points]

    # Video trials have an audio rate, and do not use it.
    assert {modality for modality, _ in kept("rates.audio=16")} == {"audio", "audiovisual"}
    assert {modality for modality, _ in kept("rates.video=5")} == {"audiovisual", "video"}
    assert {modality for modality, _ in kept("video.coefficients=44")} == {"audiovisual", "video"}
    # Only used with the decorrelation loss.
    assert {weight for _, weight in kept("stop_gradient=false")} == {0.1}
    # Keys outside the training configuration apply to all trials, null included.
    assert len(kept("validate_every=120")) == len(kept("sinks.every=null")) == 6
    with pytest.raises(PipelineError, match=r"no trial uses model\.rates\.video"):
        load(axes={"model.modality": ["audio"]}, only=["rates.video=5"])


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_specifications_of_the_repository_are_valid(file):
    assert load_sweep(file, ROOT / "params.yaml").seeded_points


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({"name": "a b"}, "name is 'a b'"),
        ({"nmae": "x"}, "unknown parameter 'nmae'; expected one of: name, set, axes"),
        ({"set": {"train.stpes": 3}}, "set: unknown parameter 'train.stpes'; expected one of: seed, steps"),
        ({"set": {"train.steps": 0}}, "train.steps is 0; it must be greater than or equal to 1"),
        ({"set": {"train.steps.more": 0}}, "unknown parameter 'train.steps.more'; set train.steps as a whole"),
        ({"set": {"model.downsampling.kind": "stack"}}, "sweep.yaml: cannot set model.downsampling.kind: "),
        (
            {"set": {"features.video.lora.depth": 4}},
            "unknown parameter 'features.video.lora.depth'; expected one of: rank, alpha",
        ),
        ({"set": [1]}, "set is [1]"),
        ({"axes": {"decorrelation.weight": 1}}, "axes.decorrelation.weight: is 1; it must be a list of values"),
        ({"axes": {"decorrelation.weight": []}}, "axes.decorrelation.weight: is []"),
        ({"axes": {"decorrelation.weight": [-1]}}, "at decorrelation.weight=-1: decorrelation.weight is -1"),
        (
            {"axes": {"decorrelation.wieght": [1]}},
            "axes.decorrelation.wieght: unknown parameter 'decorrelation.wieght'; expected one of: weight",
        ),
        ({"axes": {"task": [{"model.modalty": "audio"}]}}, "axes.task: unknown parameter 'model.modalty'"),
        ({"axes": {"task": [{}]}}, "axes.task: unknown parameter 'task'"),
        ({"axes": {"model.modality": ["audio", "smell"]}}, "at model.modality=smell: model.modality is 'smell'"),
        ({"axes": {"train.learning_rate": {"uniform": [2, 1], "samples": 3}}}, "the first bound must be below"),
        ({"axes": {"train.learning_rate": {"uniform": [1, 2]}}}, "axes.train.learning_rate: samples is missing"),
        ({"axes": {"train.learning_rate": {"uniform": [1], "samples": 3}}}, "uniform"),
        ({"axes": {"train.learning_rate": {"loguniform": [0, 1], "samples": 3}}}, "it must be greater than 0"),
        ({"axes": {"train.learning_rate": {"normal": [0, 1], "samples": 3}}}, "uniform is missing; add it"),
        ({"axes": {"train.learning_rate": {"uniform": [0, 1], "samples": 0}}}, "samples is 0"),
        ({"axes": {"decorrelation.weight": [float("nan")]}}, "a value must be a finite number"),
        ({"axes": {"train.learning_rate": {"uniform": [0, 1], "samples": 10**9}}}, "samples is 1000000000; it must be"),
        ({"axes": WEIGHTS, "seeds": list(range(5001))}, "expands to 10002 trials; reduce it to at most 10000"),
        ({"seeds": [-1]}, "train.seed is -1; it must be"),
        ({"axes": {"decorrelation.weight": [1, 1]}}, 'axes.decorrelation.weight: has {"decorrelation.weight":1} twice'),
        ({"axes": {"train.seed": [0, 1]}, "seeds": [0]}, "train.seed and seeds both set train.seed"),
        ({"axes": {"model.rates": [{"audio": 4}], "model.rates.audio": [4]}}, "both set model.rates.audio"),
        (
            {"axes": {"dataset": [{"name": "a/b", "corpus.seed": 1}]}},
            "axes.dataset: a value is named 'a/b'; use letters",
        ),
        (
            {"axes": {"dataset": [{"name": "a", "corpus.seed": 1}, {"name": "a", "corpus.seed": 2}]}},
            "axes.dataset: two values are named 'a'; give each a unique name",
        ),
        ({"seeds": []}, "seeds is []"),
        ({"seeds": [0, 0]}, "seeds: has"),
        ({"seeds": [0.5]}, "seeds[0] is 0.5"),
        ({"resources": {"cpus": 0}}, "resources.cpus is 0; it must be greater than 0"),
        ({"resources": {"gpus": -1}}, "resources.gpus is -1"),
        ({"resources": {"tpus": 1}}, "unknown parameter 'resources.tpus'; expected one of: cpus, gpus"),
        ({"resources": {"gpus": 2.5}}, "resources.gpus is 2.5; it must be a fraction of one GPU, or an integer"),
        (
            {"resources": {"gpus": 0.5}, "set": {"train.ranks": 2}},
            "resources: gpus is 0.5 and train.ranks is 2; set gpus to 2, a GPU for each rank, or to 0",
        ),
        ({"resources": {"gpus": 4}, "axes": {"train.ranks": [4, 2]}}, "resources: gpus is 4 and train.ranks is 2"),
        (
            {"set": {"corpus.video": False}, "axes": {"model.modality": ["audio", "video"]}},
            "corpus.video is false and model.modality is 'video'; set model.modality to audio, or corpus.video to true",
        ),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"select": {"by": "wer/test"}}, "select.by is 'wer/test'"),
    ],
)
def test_each_error_is_one_line_that_names_key_and_value(load, specification, message):
    with pytest.raises(PipelineError) as raised:
        load(**({"name": "some"} | specification))
    assert message in str(raised.value)
    assert "sweep.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": ["train.steps"]}, "'train.steps' has no '='; use --set key=value"),
        ({"overrides": ["train.stpes=1"]}, "--set: unknown parameter 'train.stpes'"),
        ({"overrides": ["decorrelation.weight=1"]}, "narrow it with --only decorrelation.weight=value"),
        ({"only": ["modality=smell"]}, "matches no trial; model.modality is one of: audiovisual"),
        ({"only": ["rate=1"]}, "--only rate: unknown parameter"),
        ({"only": ["batch_size=1"]}, "may be features.batch_size or train.batch_size"),
    ],
)
def test_each_error_of_an_argument_is_one_line(load, arguments, message):
    with pytest.raises(PipelineError) as raised:
        load(axes=WEIGHTS, **arguments)
    assert message in str(raised.value)


def test_invalid_files(tmp_path):
    for text, message in (
        (None, "the file is missing"),
        ("- 1", "is a list"),
        ("a: [", "invalid YAML"),
        ("{}", "name is"),
    ):
        path = tmp_path / "sweep.yaml"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(PipelineError) as raised:
            load_sweep(path, ROOT / "params.yaml")
        assert message in str(raised.value)


def test_a_plan_knows_how_many_trials_this_machine_runs_at_once(monkeypatch):
    monkeypatch.setattr(resources, "available_cores", lambda: 8)
    monkeypatch.setattr(resources, "gpu_count", lambda: 1)
    asked = Specification(name="s", resources=Resources(cpus=1, gpus=0.25))
    assert planned_concurrency(asked, None) == 4
    assert planned_concurrency(asked, "head:6379") is None
    monkeypatch.setattr(resources, "gpu_count", lambda: 0)
    assert planned_concurrency(asked, None) == 8
    assert planned_concurrency(asked.model_copy(update={"concurrency": 3}), None) == 3
    assert "about 60 s (3 trials at once)" in cost_line([Cost(60, 0, 0)], 3)
    assert "about 2 min (3 trials at once)" in cost_line([Cost(60, 0, 0)] * 4, 3)
    assert "about 2 min (added up; " in cost_line([Cost(60, 0, 0)] * 2, None)


def test_a_negative_number_of_retries_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep", "missing.yaml", "--retries", "-1"])
    with pytest.raises(SystemExit):
        main()
    assert "--retries: '-1' is not an integer from 0 on" in capsys.readouterr().err
