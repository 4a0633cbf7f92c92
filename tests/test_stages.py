"""Training in stages: the chain of each, the weights that it passes on, and resumption."""

import json

import pytest
import torch

from dfx.blackbox import EffectLayer, GradientOptions
from dfx.cli import main
from dfx.datasets import Augmentation, PairedAudio
from dfx.effects import ChainSpec, EffectSpec
from dfx.encoder import EncoderOptions
from dfx.errors import UserError
from dfx.losses import LossOptions
from dfx.tasks import CheckpointError, Task, TubeAmp, load_task
from dfx.tasks.optimizer import OptimizerOptions, make_optimizer
from dfx.tasks.stages import StageOptions
from tests.known_effects import known
from tests.staged_run import STEPS_IN_EPOCH, change, checkpoints, config, fit, same  # noqa: F401

STAGES = ["pretraining", "stage_1", "stage_2"]


def task(effects, **options) -> TubeAmp:
    return TubeAmp(
        effects,
        context_samples=4096,
        frame_samples=1024,
        encoder=EncoderOptions("conv", 0.1),
        loss=LossOptions(fft_sizes=[512, 256]),
        **options,
    )


# --- stages of a task --------------------------------------------------------------------------------


def test_by_default_there_is_one_stage_with_the_whole_chain():
    model = task([known("Gain"), known("Late")])
    assert [(stage.effects, stage.renders) for stage in model.stages] == [(2, True)]
    assert model.window.latency_samples == 50


def test_stages_add_one_effect_after_the_other_with_its_latency_and_parameters():
    effects = [known("Gain"), known("Late"), known("Quadratic")]
    model = task(effects, stages=StageOptions(pretraining_epochs=1, progressive=True))
    assert [tuple(stage) for stage in model.stages] == [
        ("pretraining", 3, False), ("stage_1", 1, True), ("stage_2", 2, True), ("stage_3", 3, True),
    ]  # fmt: skip
    names, latencies = [], []
    for index in range(4):
        model.enter_stage(index)
        names.append(model.chain.space.names)
        latencies.append(model.window.latency_samples)
        audio = torch.randn(2, 1, model.window.samples)
        output, parameters = model(audio, torch.tensor([True, True]))
        assert output.shape == (2, 1, 1024) and parameters.shape == (2, 1, len(names[-1]))
    assert [len(of_stage) for of_stage in names] == [5, 1, 2, 5]
    assert all(names[0][: len(of_stage)] == of_stage for of_stage in names)
    assert latencies == [50, 0, 50, 50]


def test_every_stage_builds_its_effects_once_to_read_their_latency(monkeypatch):
    built, build = [], ChainSpec.build

    def counted(self, watch=None):
        built.append(len(self.effects))
        return build(self, watch)

    monkeypatch.setattr(ChainSpec, "build", counted)
    model = task([known("Gain"), known("Late")], stages=StageOptions(pretraining_epochs=1, progressive=True))
    assert built == [2]
    for index in (0, 1, 2, 1, 0):
        model.enter_stage(index)
    assert built == [2, 1]


def test_effects_keep_their_names_and_steps_in_every_stage():
    # In a stage without the second effect, the first would otherwise be called `gain`.
    effects = [known("Gain"), known("Gain", name="gain"), known("Quadratic")]
    model = task(
        effects, stages=StageOptions(progressive=True), gradient=GradientOptions(epsilon_of={"quadratic.b": 0.1})
    )
    for index in range(3):
        model.enter_stage(index)
        assert model.chain.space.names[0] == "gain_2.gain"
    with pytest.raises(UserError, match="epsilon_of names"):
        task(effects, stages=StageOptions(progressive=True), gradient=GradientOptions(epsilon_of={"d": 0.1}))


def test_an_effect_that_trains_nothing_adds_no_stage():
    invert = EffectSpec("pedalboard:Invert")
    model = task([invert, known("Gain"), invert, known("Late"), invert], stages=StageOptions(progressive=True))
    assert [stage.effects for stage in model.stages] == [2, 5]


def test_effects_that_are_not_active_yet_get_no_gradient():
    model = task([known("Gain"), known("Late"), known("Quadratic")], stages=StageOptions(progressive=True))
    model.enter_stage(0)
    audio = torch.randn(4, 1, model.window.samples)
    output, _ = model(audio, torch.ones(4, dtype=torch.bool))
    model.loss(output, torch.randn_like(output)).backward()
    gradient = model.encoder.head.weight.grad
    assert gradient[0].any() and not gradient[1:].any()


def test_several_frames_per_step_render_and_compare_as_one(noise):
    one, three = (task([known("Leaky")], frames_per_step=frames).eval() for frames in (1, 3))
    three.load_state_dict(one.state_dict())
    audio = torch.from_numpy(noise)[None, :, : three.window.samples]
    output, parameters = three(audio, torch.tensor([True]))
    assert output.shape == (1, 1, 3072) and parameters.shape == (1, 3, 1)
    for frame in range(3):
        context = audio[..., frame * 1024 :][..., : one.window.samples]
        alone, of_frame = one(context, torch.tensor([frame == 0]))
        torch.testing.assert_close(parameters[:, frame], of_frame[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(output[..., frame * 1024 :][..., :1024], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [700, 1024 * 70 + 5])
def test_a_recording_is_rendered_with_the_parameters_of_training(samples):
    torch.manual_seed(0)
    options = {"encoder": EncoderOptions("conv", 0.1, start_at_defaults=False)}
    model = TubeAmp(
        [known("Gain")],
        context_samples=4096,
        frame_samples=1024,
        frames_per_step=-(-samples // 1024),
        loss=LossOptions(fft_sizes=[512, 256]),
        **options,
    ).eval()
    audio = torch.randn(1, samples)
    padded = torch.zeros(1, 1, model.window.samples)
    padded[..., model.window.before :][..., :samples] = audio
    output, parameters = model(padded, torch.tensor([True]))
    rendering = model.render(audio)
    torch.testing.assert_close(torch.from_numpy(rendering.audio), output[0, :, :samples], atol=1e-5, rtol=0)
    automation = torch.from_numpy(rendering.automation.values).float()
    torch.testing.assert_close(automation, 2 * parameters[0], atol=1e-5, rtol=0)


# --- runs --------------------------------------------------------------------------------------------


def test_one_command_runs_every_stage_from_the_best_weights_of_the_one_before(config, monkeypatch):
    begun = []
    monkeypatch.setattr(
        Task,
        "on_train_start",
        lambda self: begun.append(
            (self.stage.name, self.trainer.global_step, {name: t.clone() for name, t in self.state_dict().items()})
        ),
        raising=False,
    )
    cli = fit(config)
    assert [(name, step) for name, step, _ in begun] == [(stage, 0) for stage in STAGES]
    saved = checkpoints(config)
    assert set(saved) == {"pretraining/best.ckpt", "stage_1/best.ckpt", "best.ckpt", "last.ckpt", "last.previous.ckpt"}
    for (_, _, weights), best in zip(begun[1:], ["pretraining/best.ckpt", "stage_1/best.ckpt"]):
        assert all(torch.equal(weights[name], saved[best]["state_dict"][name]) for name in weights)
    assert cli.model.stage.name == "stage_2"
    metrics = json.loads((config.parent / "runs" / "run" / "metrics.json").read_text())
    assert metrics["stage"] == 2 and metrics["step"] == 2 * STEPS_IN_EPOCH


@pytest.mark.slow
def test_pretraining_brings_the_encoder_to_the_defaults_without_rendering(config, monkeypatch):
    def render(*_):
        raise AssertionError("rendered")

    monkeypatch.setattr(EffectLayer, "forward", render)
    change(config, "model.init_args.stages", pretraining_epochs=40, pretraining_learning_rate=0.005)
    with pytest.raises(AssertionError, match="rendered"):
        fit(config)
    model = load_task(str(config.parent / "runs" / "run" / "checkpoints" / "pretraining" / "best.ckpt"), trust=True)
    assert model.stage.name == "pretraining"
    parameters = model.encode(0.1 * torch.randn(1, 1, 4096))[0, 0]
    torch.testing.assert_close(parameters, model.defaults, atol=0.1, rtol=0)


@pytest.mark.slow
def test_a_checkpoint_renders_with_the_chain_of_its_stage(config):
    fit(config)
    folder = config.parent / "runs" / "run" / "checkpoints"
    first, last = (load_task(str(folder / name), trust=True) for name in ("stage_1/best.ckpt", "best.ckpt"))
    assert first.chain.space.names == ["distortion.drive_db"] and first.window.latency_samples == 0
    assert len(last.chain.space.names) == 2 and last.window.latency_samples == 50
    assert first.render(torch.randn(1, 3000)).automation.values.shape[1] == 1
    # Also where Lightning loads it.
    for name in ("stage_1/best.ckpt", "best.ckpt"):
        main(["validate", "--config", str(config), "--ckpt_path", str(folder / name)])


@pytest.mark.slow
def test_a_stage_that_does_not_improve_ends_early_at_its_best(config, monkeypatch):
    losses = {"pretraining": [3.0, 2.0, 2.5, 2.6], "stage_1": [1.0, 1.5, 1.6], "stage_2": [9.0, 9.5, 8.0, 8.5, 9.0]}
    loss_of = Task.compute_loss

    def known_loss(self, batch):
        loss = loss_of(self, batch)
        if self.training:
            return loss
        return torch.tensor(losses[self.stage.name][self.trainer.current_epoch])

    monkeypatch.setattr(Task, "compute_loss", known_loss)
    change(config, "model.init_args.stages", pretraining_epochs=100, pretraining_patience=2)
    change(config, "model.init_args.optimizer", patience=2)
    change(config, "trainer", max_epochs=100)
    fit(config)
    saved = checkpoints(config)
    assert [saved[name]["epoch"] for name in ("pretraining/best.ckpt", "stage_1/best.ckpt", "best.ckpt")] == [1, 0, 2]
    assert saved["last.ckpt"]["epoch"] == 4


@pytest.mark.slow
def test_a_killed_run_resumes_in_its_stage_and_ends_with_the_same_weights(config, monkeypatch):
    fit(config, "--run.name", "uninterrupted")
    loss_of = Task.compute_loss
    for stage, step, training in [
        ("pretraining", 1, True), ("pretraining", 3, True), ("pretraining", 6, False), ("stage_1", 0, True),
        ("stage_1", 3, False), ("stage_1", 4, True), ("stage_2", 5, True),
    ]:  # fmt: skip

        def killed(self, batch, at=(stage, step, training)):
            if (self.stage.name, self.trainer.global_step, self.training) == at:
                raise RuntimeError("power cut")
            return loss_of(self, batch)

        name = f"{stage}_{step}_{training}"
        with monkeypatch.context() as cut:
            cut.setattr(Task, "compute_loss", killed)
            with pytest.raises(RuntimeError, match="power cut"):
                fit(config, "--run.name", name)
        fit(config, "--run.name", name, "--run.resume", "true")
        assert same(checkpoints(config, name), checkpoints(config, "uninterrupted")), name


@pytest.mark.slow
@pytest.mark.parametrize("stopped_early", [False, True])
def test_a_run_killed_between_two_stages_begins_the_next(config, monkeypatch, stopped_early):
    if stopped_early:
        # The second validation of each stage does not improve on the first.
        change(config, "model.init_args.optimizer", patience=1)
        change(config, "trainer", max_epochs=4)
        monkeypatch.setattr(Task, "compute_loss", worse_in_validation(Task.compute_loss))
    fit(config, "--run.name", "uninterrupted")
    enter_stage = Task.enter_stage

    def killed(self, *arguments):
        if hasattr(self, "stage") and self.stage.name == "stage_1":
            raise RuntimeError("power cut")
        enter_stage(self, *arguments)

    with monkeypatch.context() as cut:
        cut.setattr(Task, "enter_stage", killed)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(config)
    steps = []
    monkeypatch.setattr(Task, "on_train_batch_end", lambda self, *_: steps.append(self.stage.name))
    fit(config, "--run.resume", "true")
    assert set(steps) == {"stage_2"} and len(steps) == 2 * STEPS_IN_EPOCH
    assert same(checkpoints(config), checkpoints(config, "uninterrupted"))


def worse_in_validation(loss_of):
    def worse(self, batch):
        loss = loss_of(self, batch)
        return loss if self.training else 0 * loss + self.trainer.current_epoch

    return worse


def test_a_run_resumes_only_with_the_stages_that_it_began_with(config):
    fit(config, "--trainer.max_steps", 1)
    with pytest.raises(CheckpointError, match="trained with other stages"):
        fit(config, "--run.resume", "true", "--model.init_args.stages.progressive", "false")


@pytest.mark.slow
def test_the_plateau_of_the_paper_multiplies_by_0_2_after_20_validations_without_improvement(config, monkeypatch):
    rates = []
    monkeypatch.setattr(Task, "compute_loss", worse_in_validation(Task.compute_loss))
    monkeypatch.setattr(
        Task, "on_train_epoch_start", lambda self: rates.append(self.optimizers().param_groups[0]["lr"]), raising=False
    )
    change(config, "trainer", max_epochs=23, limit_train_batches=1, limit_val_batches=1)
    change(config, "model.init_args.stages", pretraining_epochs=0, progressive=False)
    change(config, "model.init_args.optimizer", patience=None)
    fit(config, "--run.checkpoint_minutes", 10)
    assert rates == pytest.approx(21 * [0.003] + 2 * [0.0006])


def test_the_plateau_falls_as_that_of_keras_at_the_20th_and_the_40th_validation_without_improvement():
    options = OptimizerOptions(1e-4, "plateau")
    schedule = make_optimizer([torch.nn.Parameter(torch.zeros(1))], options, 1)["lr_scheduler"]["scheduler"]
    rates = []
    # Less than 1e-4 is no improvement to Keras, whatever the loss.
    for loss in [9.0, 8.0, *(8.0 - 9e-5 for _ in range(81))]:
        schedule.step(loss)
        rates.append(schedule.get_last_lr()[0])
    expected = [1e-4] * 2 + [1e-4] * 19 + [2e-5] * 20 + [4e-6] * 20 + [1.6e-6] * 22
    assert rates == pytest.approx(expected)


def test_pretraining_reads_excerpts_without_augmentation(make_pairs):
    augmentation = Augmentation(noise_db=(30, 50))
    model = task([known("Gain")], stages=StageOptions(pretraining_epochs=1), augmentation=augmentation)
    data = PairedAudio(str(make_pairs(5)), 22050, 1, model.window, augmentation=augmentation)
    used = []
    for stage in (0, 1):
        model.enter_stage(stage, data)
        used.append(data.augmentation)
    assert used == [Augmentation(), augmentation]


def test_adam_has_the_epsilon_of_the_config_in_every_stage_with_its_own_learning_rate():
    options = OptimizerOptions(1e-4, "plateau", 25, adam_epsilon=1e-7)
    model = task([known("Gain")], stages=StageOptions(pretraining_epochs=1), optimizer=options)
    made = []
    for stage in (0, 1):
        model.enter_stage(stage)
        options = model._optimizer_of_stage
        made.append((options.learning_rate, options.schedule, options.patience, options.adam_epsilon))
    assert made == [(1e-3, "constant", 4, 1e-7), (1e-4, "plateau", 25, 1e-7)]
    optimizer = make_optimizer(model.parameters(), OptimizerOptions(schedule="constant", adam_epsilon=1e-7), 1)
    assert optimizer.defaults["eps"] == 1e-7
