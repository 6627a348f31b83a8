import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from alit_hf import ALITConfig
from training.configuration import DataConfig, LoggingConfig, OptimizationConfig, TrainingConfig, config_to_dict
from training.stages.loss_config import LOSS_CONFIGS
from training.stages.registry import config_from_dict, load_configs


CONFIG_FOLDER = Path(__file__).parents[2] / "training" / "configs"
# With an underscore in front: what others have in common.
CONFIGS = sorted(path for path in CONFIG_FOLDER.rglob("*.yaml") if not path.name.startswith("_"))


SECTIONS = {"": TrainingConfig, "data.": DataConfig, "optimization.": OptimizationConfig, "logging.": LoggingConfig}


def write(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_overrides_reach_fields_and_sections(values, tmp_path):
    path = write(tmp_path / "run.yaml", values("base"))
    (config,) = load_configs(
        path, ["--seed", "7", "--data.image_size=64", "--optimization.learning_rate", "1e-4", "--data.flip", "false"]
    )
    assert config.seed == 7
    assert config.data.image_size == 64
    assert config.optimization.learning_rate == 1e-4  # which YAML reads as text
    assert config.data.flip is False
    assert config.optimization.max_steps == 6


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimization__lerning_rate", 1.0, "did you mean `optimization.learning_rate`"),
        ("colour", 1, "`colour` is no field"),
        ("loss__perceptual_wieght", 1.0, "did you mean `loss.perceptual_weight`"),
        ("model__num_vq_embedings", 16, "num_vq_embedings"),
        ("stage", "bass", "'base', 'distill'"),
        ("seed", -1, "`seed` is -1"),
        ("data__image_size", "large", "`data.image_size` is 'large'"),
        ("data__image_size", True, "`data.image_size` is True"),
        ("data__image_size", 50, "multiple of 4"),
        ("data__crop_scale", 0, "`data.crop_scale` is 0"),
        ("optimization__learning_rate", float("nan"), "finite"),
        ("optimization__base_learning_rate", 1e-4, "optimization.learning_rate"),
        ("optimization__epochs", 3, "optimization.max_steps"),
        ("optimization__warmup_steps", 6, "below max_steps, which is 6"),
        ("optimization__ema_decay", 1.0, "in \\[0, 1\\)"),
        ("optimization__mixed_precision", "fp8", "mixed_precision"),
        ("logging__keep", 0, "`logging.keep` is 0"),
        ("model__norm_num_groups", 5, "`model` cannot be built"),
        ("data", "photos", "`data` is 'photos', it must be a section"),
        ("loss", "l1", "`loss` is 'l1', it must be a section"),
        ("loss__revive_every", 1.5, "`loss.revive_every` is 1.5"),
        ("model", 3, "`model` is 3"),
        ("data__train", [["a.parquet"]], "not nested"),
        ("optimization__betas", ["high", 0.9], "`optimization.betas\\[0\\]` is 'high'"),
        ("optimization__weight_decay", "inf", "`optimization.weight_decay` is inf, it must be a finite number"),
        ("output_dir", "???", "`output_dir` is missing"),
    ],
)
def test_wrong_fields_are_named_before_anything_starts(values, tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(values("base", **{field: value}))
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"),
    [
        ("distill", "init_from", "", "init_from"),
        ("distill", "model__image_size", 32, "data.image_size"),
        ("distill", "model__hidden_size", 33, "num_attention_heads"),
        ("distill", "model__hidden", 33, "hidden"),
        ("distill", "loss__label_smoothing", 1.0, "label_smoothing"),
        ("fixed", "model__max_rollouts", 2, "max_rollouts"),
        ("finetune", "init_from", "", "init_from"),
        ("finetune", "loss__regularizer", "r2", "regularizer"),
        ("base", "data__streaming", True, "data.in_memory"),
    ],
)
def test_wrong_fields_of_stages_are_named(values, stage, field, value, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(values(stage, **{field: value}))


def test_help_has_every_field_with_its_meaning_and_default():
    program = (
        "import sys; from training.train import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(', '.join({'torch', 'yaml', 'omegaconf'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stderr.strip() == ""  # nothing that takes long to import
    help_of_loss = done.stdout[done.stdout.index("Section loss") :]
    for prefix, kind in [*SECTIONS.items(), *(("loss.", kind) for kind in LOSS_CONFIGS.values())]:
        for one in fields(kind):
            if one.name not in ("loss", "data", "optimization", "logging"):
                entry = rf"--{prefix}{one.name} \(.*\)\n {{6}}\S.*\n?"
                assert re.search(entry, help_of_loss if prefix == "loss." else done.stdout), one.name
    text = " ".join(done.stdout.split())
    assert "--seed (int) of weights, order of images, crops and everything random. Default: 0." in text
    assert "--optimization.betas (list[float]) AdamW's, two in [0, 1). Default: [0.9, 0.95]." in text
    assert '--loss.perceptual_net ("vgg" or "alex") LPIPS network; AlexNet is cheap enough for CPUs.' in text
    # The same field, with another default in each stage.
    assert [line.count("0 for never. Default: 100") for line in text.split("Section loss of")[1:]] == [1, 1, 0, 0]


@pytest.mark.parametrize("overrides", [["seed", "1"], ["--seed"], ["--seed.deep", "1"]])
def test_malformed_overrides_are_refused(values, tmp_path, overrides):
    path = write(tmp_path / "run.yaml", values("base", seed=0))
    with pytest.raises(ValueError, match="seed"):
        load_configs(path, overrides)


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("stage: [base", [], "run.yaml is no YAML"),
        ("[1, 2]", [], "run.yaml holds a list"),
        ("stage: base", ["--data.train", "[a.png"], "`--data.train` is '\\[a.png', which is no YAML"),
        ("sequence: [base]", [], "`sequence` is"),
        ("sequence: {base: {}}", ["--sequence.bass.seed", "1"], "`--sequence.bass.seed` is 1.*'base'"),
        ("stage: base", ["--sequence.base.seed", "1"], "`--sequence.base.seed` is 1"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, overrides, message):
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_configs(path, overrides)


def test_values_may_be_written_as_one_means_them(values, tmp_path):
    path = write(tmp_path / "run.yaml", values("base"))
    overrides = ["--data.train", "photos/", "--data.validation=", "--optimization.mixed_precision", "no", "--model={}"]
    (config,) = load_configs(path, overrides)
    assert (config.data.train, config.data.validation) == (["photos/"], [])
    assert config.optimization.mixed_precision == "no"  # which YAML reads as false
    assert config.model == {}


def test_peak_learning_rate_scales_with_the_batch(config):
    assert config("base").optimization.peak_learning_rate == 1e-3
    scaled = config("base", optimization__learning_rate=0, optimization__base_learning_rate=1.5e-4)
    assert scaled.optimization.peak_learning_rate == pytest.approx(1.5e-4 * 4 / 256)


def test_defaults_hold_where_a_file_is_silent(values, tmp_path):
    write(tmp_path / "below.yaml", values("base"))
    path = write(tmp_path / "above.yaml", {"defaults": "below.yaml", "data": {"image_size": 64}})
    (config,) = load_configs(path)
    assert config.data.image_size == 64
    assert config.data.crop_scale == 0.75


def test_a_sequence_hands_models_on(values, tmp_path):
    base, distill = values("base"), values("distill")
    common = {name: base.pop(name) for name in ("data", "optimization", "logging", "output_dir")}
    sequence = {"base": {"model": base["model"]}, "distill": {"model": distill["model"]}, "finetune": {"seed": 3}}
    path = write(tmp_path / "run.yaml", {**common, "sequence": sequence})
    first, second, third = load_configs(path, ["--output_dir", "runs/x", "--sequence.distill.seed", "5"])
    assert [one.stage for one in (first, second, third)] == ["base", "distill", "finetune"]
    assert first.output_dir == str(Path("runs/x/base"))
    assert second.init_from == str(Path("runs/x/base/model"))
    assert third.init_from == str(Path("runs/x/distill/model"))
    assert [one.seed for one in (first, second, third)] == [0, 5, 3]


@pytest.fixture
def sequence_file(values, tmp_path) -> Path:
    """Two runs, with values of their own."""
    base, distill = values("base"), values("distill")
    common = {name: base[name] for name in ("data", "optimization", "logging", "output_dir")}
    runs = {
        "base": {"model": base["model"], "init_from": "", "optimization": {"max_steps": 150, "weight_decay": 0.5}},
        "distill": {
            "model": distill["model"],
            "output_dir": "elsewhere",
            "init_from": distill["init_from"],
            "seed": 2,
        },
    }
    return write(tmp_path / "run.yaml", {**common, "sequence": runs})


@pytest.mark.parametrize("one_first", [False, True])
def test_overrides_win_over_what_a_sequence_says_of_its_runs(sequence_file, one_first):
    pairs = [["--optimization.max_steps", "3"], ["--sequence.distill.optimization.max_steps", "5"]]
    overrides = sum(reversed(pairs) if one_first else pairs, ["--seed", "7"])
    base, distill = load_configs(sequence_file, overrides)
    assert (base.optimization.max_steps, distill.optimization.max_steps) == (3, 5)
    assert (base.seed, distill.seed) == (7, 7)
    assert base.optimization.weight_decay == 0.5  # beside it, and not overridden


def test_overrides_that_each_run_continues_win_too(sequence_file, vq_base):
    base, distill = load_configs(sequence_file, ["--output_dir", "runs/x", "--hub_model_id", "ME/X"])
    assert [one.output_dir for one in (base, distill)] == [str(Path("runs/x/base")), str(Path("runs/x/distill"))]
    assert [one.hub_model_id for one in (base, distill)] == ["ME/X-base", "ME/X-distill"]
    assert distill.init_from == vq_base
    overrides = ["--init_from", "my/base", "--sequence.base.model", "{}"]
    assert [one.init_from for one in load_configs(sequence_file, overrides)] == ["my/base", vq_base]


def test_a_stage_for_all_runs_of_a_sequence_is_refused(sequence_file):
    with pytest.raises(ValueError, match=r"`--stage` is 'fixed'.*`--sequence\.base\.stage`"):
        load_configs(sequence_file, ["--stage", "fixed"])


def test_a_configuration_survives_a_round_trip(config):
    for stage in ("base", "distill"):
        one = config(stage)
        assert config_from_dict(config_to_dict(one)) == one


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    assert load_configs(path)


@pytest.mark.parametrize("base", ["vqgan", "kl"])
@pytest.mark.parametrize("name", ["tiny", "small", "base", "semilarge"])
def test_the_papers_models_have_the_papers_settings(name, base):
    folder = CONFIG_FOLDER / "paper"
    (first,), (second,) = (load_configs(folder / f"{name}-{base}-{stage}.yaml") for stage in ("distill", "finetune"))
    paper = ALITConfig.paper(name, base=base)
    assert {field: getattr(paper, field) for field in first.model} == first.model
    assert set(first.model) == {"hidden_size", "num_encoder_layers", "num_decoder_layers", "num_attention_heads"}
    assert second.init_from == str(Path(first.output_dir) / "model")
    for config, rate in ((first, 1.5e-4), (second, 1e-4)):
        settings = config.optimization
        assert (settings.epochs, settings.warmup_epochs, settings.max_steps) == (200, 20, 0)
        assert settings.peak_learning_rate == pytest.approx(rate * settings.batch_size / 256)
        assert (settings.betas, settings.weight_decay, settings.max_grad_norm) == ([0.9, 0.95], 0.05, 3.0)


def test_the_ablations_differ_from_the_paper_in_one_thing():
    folder = CONFIG_FOLDER / "paper"
    (paper,) = load_configs(folder / "small-vqgan-distill.yaml")
    for name, expected in (
        ("one-rollout", {"stage": "fixed", "model": paper.model | {"max_rollouts": 1, "tokens_per_rollout": 256}}),
        ("last-rollout", {"loss": replace(paper.loss, last_rollout_only=True)}),
        ("halting-off", {"loss": replace(paper.loss, halting=False)}),
        ("halting-on", {}),
    ):
        (ablation,) = load_configs(folder / f"ablation-{name}.yaml")
        assert ablation == replace(paper, **expected, output_dir=f"runs/ablation-{name}")
