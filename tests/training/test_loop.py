from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import shutil

import pytest
import torch
from filelock import FileLock
from peft import PeftModel
from safetensors.torch import load_file

from planner.contracts.errors import TrainingError
from planner.training import checkpoint, loop, surroundings
from planner.training.batches import pack_rows
from planner.training.loop import train
from planner.training.plot import plot_losses
from planner.training.text import TextRow


def run(model, tokenizer, texts, config, folder, **options):
    return train(model, tokenizer, texts[:16], texts[16:], config, folder, **options)


def adapter_bytes(report):
    return (report.adapter_folder / "adapter_model.safetensors").read_bytes()


def weights_of(model):
    return hashlib.sha256(b"".join(w.detach().numpy().tobytes() for _, w in sorted(model.named_parameters()))).digest()


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# peft 0.21 asks transformers 5.23 by an old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def let_it_say_everything(model, tokenizer):
    """A random head that can be sure of any token: transformers leaves the end token's row at 0, as it is the pad's."""
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] = 0.25 * torch.randn(48)
        model.model.norm.weight.mul_(2)


@OLD_NAME
def test_sixteen_rows_are_learned_to_their_last_token(model, tokenizer, texts, config, tmp_path):
    let_it_say_everything(model, tokenizer)
    config = config.model_copy(update={"epochs": 40, "lora_r": 16, "target_modules": ALL_LINEAR})
    report = train(model, tokenizer, texts[:16], texts[:16], config, tmp_path)
    assert report.epochs[0].validation_loss > 5
    assert report.epochs[report.best_epoch].validation_loss < 0.05
    # Greedy generation with transformers itself, prompt alone, ends with the end token by itself.
    learned = PeftModel.from_pretrained(model, report.adapter_folder).eval()
    for text in texts[:4]:
        prompt = torch.tensor([tokenizer.encode(text.prompt, add_special_tokens=False)])
        ids = learned.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=90, do_sample=False)
        assert tokenizer.decode(ids[0, prompt.shape[1] :]) == text.target + tokenizer.eos_token


def test_two_seeded_runs_give_the_same_bytes_and_another_seed_does_not(model, tokenizer, texts, config, tmp_path):
    config = config.model_copy(update={"lora_dropout": 0.1})
    torch.manual_seed(1)
    first = run(model, tokenizer, texts, config, tmp_path / "a")
    torch.manual_seed(2)
    second = run(model, tokenizer, texts, config, tmp_path / "b")
    third = run(model, tokenizer, texts, config.model_copy(update={"seed": 4}), tmp_path / "c")
    assert adapter_bytes(first) == adapter_bytes(second)
    assert [e.validation_loss for e in first.epochs] == [e.validation_loss for e in second.epochs]
    assert adapter_bytes(first) != adapter_bytes(third)


def test_result_does_not_depend_on_the_micro_batch(model, tokenizer, texts, config, tmp_path):
    losses, config = [], config.model_copy(update={"batch_size": 7})  # 16 rows: the last step of an epoch has two
    for tokens in (1, 200, 10_000):
        report = run(model, tokenizer, texts, config.model_copy(update={"micro_batch_tokens": tokens}), tmp_path)
        losses.append([epoch.validation_loss for epoch in report.epochs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)


def test_model_and_process_are_left_as_they_were(model, tokenizer, texts, config, tmp_path):
    before, implementation = weights_of(model), model.config._attn_implementation
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(model, tokenizer, texts, config.model_copy(update={"num_threads": 2}), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1
    assert weights_of(model) == before
    assert model.config._attn_implementation == implementation
    assert not any("lora" in name for name, _ in model.named_modules())


def test_report_holds_what_was_done(model, tokenizer, texts, config, tmp_path):
    steps, epochs = [], []
    report = run(
        model,
        tokenizer,
        texts[:22],
        config.model_copy(update={"batch_size": 5}),
        tmp_path,
        report_step=lambda *step: steps.append(step),
        report_epoch=epochs.append,
    )
    assert [done for done, *_ in steps] == list(range(1, 9))
    assert all(total == 8 and loss > 0 and speed > 0 for _, total, loss, speed in steps)
    assert tuple(epochs) == report.epochs
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]
    assert epochs[0].train_loss is None
    targets = sum(len(tokenizer.encode(text.target, add_special_tokens=False)) + 1 for text in texts[:16])
    assert epochs[1].num_target_tokens == epochs[2].num_target_tokens == targets
    assert epochs[2].validation_loss < epochs[0].validation_loss
    assert (report.num_train_rows, report.num_validation_rows, report.num_steps) == (16, 6, 8)
    assert report.resumed_from_step is None
    assert report.num_trainable == 2 * 4 * (2 * 48 + 48 + 24)
    assert {row.event_id for row in report.worst_rows} == {text.event_id for text in texts[16:22]}
    assert sorted((row.loss for row in report.worst_rows), reverse=True) == [row.loss for row in report.worst_rows]


@OLD_NAME
def test_adapter_is_in_peft_format_and_names_the_base(model, tokenizer, texts, config, tmp_path):
    report = run(model, tokenizer, texts, config, tmp_path)
    values = json.loads((report.adapter_folder / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == "tiny"
    assert values["target_modules"] == ["q_proj", "v_proj"]
    assert (values["r"], values["lora_alpha"]) == (4, 32)
    assert sorted(p.name for p in report.adapter_folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    text = texts[0]
    prompt = tokenizer.encode(text.prompt, add_special_tokens=False)
    ids = torch.tensor([prompt + tokenizer.encode(text.target, add_special_tokens=False)])
    with torch.no_grad():
        base = model(ids, use_cache=False).logits
        learned = PeftModel.from_pretrained(model, report.adapter_folder)(input_ids=ids, use_cache=False).logits
    assert (learned - base).abs().max() > 0.1


def test_finished_run_is_not_trained_again(model, tokenizer, texts, config, tmp_path):
    first = run(model, tokenizer, texts, config, tmp_path)
    steps = []
    again = run(model, tokenizer, texts, config, tmp_path, report_step=lambda *step: steps.append(step))
    assert steps == []
    assert again.resumed_from_step == first.num_steps
    assert again.epochs == first.epochs
    assert again.worst_rows == first.worst_rows
    assert adapter_bytes(again) == adapter_bytes(first)


def test_finished_run_is_trained_anew_where_that_is_asked_and_goes_on_after_a_kill(
    model, tokenizer, texts, config, tmp_path
):
    first = run(model, tokenizer, texts, config, tmp_path)

    def stop(done, *_):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, texts, config, tmp_path, anew=True, report_step=stop)
    steps = []
    again = run(model, tokenizer, texts, config, tmp_path, anew=True, report_step=lambda done, *_: steps.append(done))
    assert (again.resumed_from_step, steps) == (4, [5, 6, 7, 8])
    assert adapter_bytes(again) == adapter_bytes(first)
    whole = run(model, tokenizer, texts, config, tmp_path, anew=True)
    assert whole.resumed_from_step is None and adapter_bytes(whole) == adapter_bytes(first)


def test_other_options_rows_or_base_start_anew_in_a_folder_of_their_own(model, tokenizer, texts, config, tmp_path):
    folders = {run(model, tokenizer, texts, config, tmp_path).adapter_folder}
    for change in ({"lr": 5e-3}, {"batch_size": 3}, {"epochs": 3}, {"seed": 9}, {"model_base": "other"}):
        report = run(model, tokenizer, texts, config.model_copy(update=change), tmp_path)
        assert report.resumed_from_step is None
        folders.add(report.adapter_folder)
    folders.add(train(model, tokenizer, texts[:15], texts[16:], config, tmp_path).adapter_folder)
    folders.add(run(model, tokenizer, texts, config, tmp_path, base_sha256="0" * 64).adapter_folder)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    folders.add(run(model, tokenizer, texts, config, tmp_path).adapter_folder)
    assert len(folders) == 9


def test_edited_code_starts_anew_and_code_that_decides_nothing_does_not(
    model, tokenizer, texts, config, tmp_path, monkeypatch
):
    first = run(model, tokenizer, texts, config, tmp_path)
    room = shutil.copytree(surroundings._ROOM, tmp_path / "room")
    monkeypatch.setattr(surroundings, "_ROOM", room)
    for name in ("plot", "remote"):
        (room / f"{name}.py").write_text("edited")
    assert run(model, tokenizer, texts, config, tmp_path).resumed_from_step == first.num_steps
    with (room / "optimizer.py").open("a") as file:
        file.write("# edited")
    edited = run(model, tokenizer, texts, config, tmp_path)
    assert edited.resumed_from_step is None and edited.adapter_folder != first.adapter_folder


def test_best_epoch_is_kept_and_not_the_last(model, tokenizer, texts, config, tmp_path):
    config = config.model_copy(update={"epochs": 8, "lr": 0.02, "batch_size": 1})
    report = train(model, tokenizer, texts[:3], texts[16:], config, tmp_path / "all")
    losses = [epoch.validation_loss for epoch in report.epochs]
    assert report.best_epoch == min(range(1, 9), key=losses.__getitem__) < 7
    best = checkpoint.read_checkpoint(report.adapter_folder.parent / "checkpoints", report.best_epoch * 3)
    kept = load_file(report.adapter_folder / "adapter_model.safetensors")
    assert all(torch.equal(best.tensors[f"adapter/{name}"], weight) for name, weight in kept.items())
    assert not report.stopped_early

    early = train(model, tokenizer, texts[:3], texts[16:], config.model_copy(update={"patience": 1}), tmp_path)
    first_worse = next(k for k in range(2, 8) if losses[k] >= losses[k - 1])
    assert early.stopped_early
    assert early.best_epoch == first_worse - 1
    assert [epoch.validation_loss for epoch in early.epochs] == losses[: first_worse + 1]
    assert early.num_steps == first_worse * 3


def test_without_validation_rows_the_last_epoch_is_kept(model, tokenizer, texts, config, tmp_path):
    report = train(model, tokenizer, texts[:8], (), config, tmp_path)
    assert report.best_epoch == 2
    assert [epoch.validation_loss for epoch in report.epochs] == [None, None, None]
    assert report.worst_rows == ()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_checkpoint_is_passed_over_for_the_one_before(model, tokenizer, texts, config, tmp_path, name, damage):
    first = run(model, tokenizer, texts, config, tmp_path)
    path = first.adapter_folder.parent / "checkpoints" / "step-000008" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    path.write_bytes(content[: len(content) - (damage == "cut")])
    if damage == "remove":
        path.unlink()
    again = run(model, tokenizer, texts, config, tmp_path)
    assert again.resumed_from_step == 6
    assert adapter_bytes(again) == adapter_bytes(first)
    assert [epoch.train_loss for epoch in again.epochs] == [epoch.train_loss for epoch in first.epochs]


@pytest.mark.parametrize("figures", ['{"step": 8, "of_another_age": 1}', "[]", "null"])
def test_checkpoint_of_another_form_is_passed_over(model, tokenizer, texts, config, tmp_path, figures):
    first = run(model, tokenizer, texts, config, tmp_path)
    folder = first.adapter_folder.parent / "checkpoints" / "step-000008"
    (folder / "state.json").write_text(figures)
    (folder / "manifest.json").unlink()
    checkpoint._write_manifest(folder)
    again = run(model, tokenizer, texts, config, tmp_path)
    assert again.resumed_from_step == 6 and again.epochs[-1].train_loss == first.epochs[-1].train_loss


def test_with_every_checkpoint_damaged_the_run_starts_anew(model, tokenizer, texts, config, tmp_path):
    first = run(model, tokenizer, texts, config, tmp_path)
    for path in first.adapter_folder.parent.glob("checkpoints/*/state.json"):
        path.write_text("{}")
    again = run(model, tokenizer, texts, config, tmp_path)
    assert again.resumed_from_step is None
    assert adapter_bytes(again) == adapter_bytes(first)


def test_checkpoint_whose_best_epoch_is_lost_is_passed_over(model, tokenizer, texts, config, tmp_path):
    config = config.model_copy(update={"epochs": 8, "lr": 0.02, "batch_size": 1})
    first = train(model, tokenizer, texts[:3], texts[16:], config, tmp_path)
    assert first.best_epoch < 7
    shutil.rmtree(first.adapter_folder.parent / "checkpoints" / f"step-{first.best_epoch * 3:06d}")
    again = train(model, tokenizer, texts[:3], texts[16:], config, tmp_path)
    assert again.resumed_from_step is None
    assert adapter_bytes(again) == adapter_bytes(first)


def test_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    model, tokenizer, texts, config, tmp_path, monkeypatch
):
    real, calls = loop.backward_rows, []

    def broken(*args, **options):
        calls.append(args)
        return real(*args, **options) if len(calls) < 4 else float("nan")

    monkeypatch.setattr(loop, "backward_rows", broken)
    with pytest.raises(TrainingError, match=r"no longer a number at step 4 of 8, epoch 1 .*last good checkpoint.*lr"):
        run(model, tokenizer, texts, config, tmp_path)
    monkeypatch.setattr(loop, "backward_rows", real)
    assert run(model, tokenizer, texts, config, tmp_path).resumed_from_step == 2


def test_gradient_that_is_no_number_takes_no_step(model, tokenizer, texts, config, tmp_path, monkeypatch):
    real = loop.backward_rows

    def broken(peft_model, rows, **options):
        loss = real(peft_model, rows, **options)
        next(iter(loop.trainable(peft_model).values())).grad[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(loop, "backward_rows", broken)
    with pytest.raises(TrainingError, match="step 1 of 8.*gradient norm") as error:
        run(model, tokenizer, texts, config, tmp_path)
    assert len(error.value.event_ids) == 4


def test_no_training_rows_is_an_error(model, tokenizer, texts, config, tmp_path):
    with pytest.raises(TrainingError, match="no rows to train on"):
        train(model, tokenizer, (), texts, config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_overlong_rows_fail_before_training(model, tokenizer, texts, config, tmp_path):
    rows = (TextRow("long", "word " * 900, "Mon: Soup\n"), *texts)
    with pytest.raises(TrainingError, match="max_overlong_share"):
        run(model, tokenizer, rows, config, tmp_path)
    report = run(model, tokenizer, rows, config.model_copy(update={"max_overlong_share": 0.1}), tmp_path)
    assert (report.num_overlong, report.num_train_rows) == (1, 15)


def test_base_without_the_target_modules_is_refused_by_name(model, tokenizer, texts, config, tmp_path):
    config = config.model_copy(update={"target_modules": ("q_proj", "c_attn")})
    with pytest.raises(TrainingError, match=r"llama.*no linear module c_attn; it has down_proj.*target_modules"):
        run(model, tokenizer, texts, config, tmp_path)


@pytest.mark.parametrize("change", ["softcap", "bias"])
def test_base_that_changes_its_logits_is_refused(model, tokenizer, texts, config, tmp_path, change):
    if change == "softcap":
        model.config.final_logit_softcapping = 30.0
    else:
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.out_features))
    with pytest.raises(TrainingError, match="changes its logits behind the output matrix"):
        run(model, tokenizer, texts, config, tmp_path)


@contextlib.contextmanager
def files_of_at_most(num_bytes):
    """A limit of the system's own, met in the middle of a write; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_at_a_checkpoint_is_one_clear_line_and_the_run_goes_on_later(
    model, tokenizer, texts, config, tmp_path
):
    with contextlib.ExitStack() as stack:

        def fill(step, *_):
            if step == 3:
                stack.enter_context(files_of_at_most(5_000))

        with pytest.raises(TrainingError, match="checkpoint of step 4 .*File too large.*same command again") as error:
            run(model, tokenizer, texts, config, tmp_path, report_step=fill)
    assert error.value.step == 4
    assert not list(tmp_path.glob("*/checkpoints/.*"))
    assert run(model, tokenizer, texts, config, tmp_path).resumed_from_step == 2


def test_full_disk_at_the_adapter_is_one_clear_line(model, tokenizer, texts, config, tmp_path):
    first = run(model, tokenizer, texts, config, tmp_path)
    before = adapter_bytes(first)
    shutil.rmtree(first.adapter_folder)
    with files_of_at_most(5_000), pytest.raises(TrainingError, match="The adapter cannot be .*File too large"):
        run(model, tokenizer, texts, config, tmp_path)
    assert adapter_bytes(run(model, tokenizer, texts, config, tmp_path)) == before


def test_two_processes_do_not_train_in_one_folder(model, tokenizer, texts, config, tmp_path):
    report = run(model, tokenizer, texts, config, tmp_path)
    with FileLock(report.adapter_folder.parent / ".lock"), pytest.raises(TrainingError, match="Another process"):
        run(model, tokenizer, texts, config, tmp_path)


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_folder_that_cannot_be_made_is_one_clear_line(model, tokenizer, texts, config, tmp_path, place):
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    folder = tmp_path / "taken" / ("" if place == "file" else "training")
    with pytest.raises(TrainingError, match="training's folder cannot be written to .*taken.*same command again"):
        run(model, tokenizer, texts, config, folder)


def test_loss_curves_are_drawn(model, tokenizer, texts, config, tmp_path):
    report = run(model, tokenizer, texts, config, tmp_path)
    path = plot_losses(report.epochs, tmp_path / "loss.png", best_epoch=report.best_epoch)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot_losses((), tmp_path / "empty.png").stat().st_size > 0


def full_above(real, most, *, from_step=1):
    """A device on which no pass of more than `most` tokens fits, from optimizer step `from_step` on."""
    calls = []

    def forward(peft_model, rows, *, micro_batch_tokens, **options):
        calls.append(micro_batch_tokens)
        packs = pack_rows(rows, most_tokens=micro_batch_tokens)
        real(peft_model, rows[:1], micro_batch_tokens=1, **options)  # gradients of a pass that ended half-way
        if len(calls) >= from_step and max(sum(pack.lengths) for pack in packs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. And much more.")
        peft_model.zero_grad()
        return real(peft_model, rows, micro_batch_tokens=micro_batch_tokens, **options)

    return forward


def test_when_memory_ends_the_pass_is_halved_and_the_run_goes_on_from_the_same_step(
    model, tokenizer, texts, config, tmp_path, monkeypatch
):
    plans, steps, real = [], [], loop.backward_rows
    whole = run(model, tokenizer, texts, config.model_copy(update={"micro_batch_tokens": 250}), tmp_path)
    monkeypatch.setattr(loop, "backward_rows", full_above(real, 300, from_step=4))
    report = run(
        model,
        tokenizer,
        texts,
        config,
        tmp_path,
        report_memory=lambda plan: plans.append(plan.micro_batch_tokens),
        report_step=lambda done, *_: steps.append(done),
    )
    assert steps == list(range(1, 9))
    assert plans[0] == 896 > 300 >= plans[-1]
    assert report.num_halvings == len(plans) - 1 >= 1
    assert report.memory.micro_batch_tokens == plans[-1]
    assert [e.validation_loss for e in report.epochs] == pytest.approx([e.validation_loss for e in whole.epochs], 1e-3)
    assert [e.num_target_tokens for e in report.epochs] == [e.num_target_tokens for e in whole.epochs]


def test_run_that_goes_on_keeps_the_halved_pass(model, tokenizer, texts, config, tmp_path, monkeypatch):
    real = loop.backward_rows
    monkeypatch.setattr(loop, "backward_rows", full_above(real, 300))

    def stop(done, *_):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, texts, config, tmp_path, report_step=stop)
    monkeypatch.setattr(loop, "backward_rows", real)
    report = run(model, tokenizer, texts, config, tmp_path)
    assert (report.resumed_from_step, report.num_halvings > 0) == (2, True)
    assert report.memory.micro_batch_tokens <= 300


def test_memory_that_does_not_hold_one_row_is_one_clear_line(model, tokenizer, texts, config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "backward_rows", full_above(loop.backward_rows, 0))
    with pytest.raises(TrainingError, match=r"no memory left for one row of \d+ tokens \(CUDA out of memory\)"):
        run(model, tokenizer, texts, config, tmp_path)


def test_recomputed_activations_give_the_same_adapter(model, tokenizer, texts, config, tmp_path):
    config = config.model_copy(update={"lora_dropout": 0.2})
    reports = [
        run(model, tokenizer, texts, config.model_copy(update={"gradient_checkpointing": recompute}), tmp_path / name)
        for name, recompute in (("a", False), ("b", True))
    ]
    assert [report.memory.gradient_checkpointing for report in reports] == [False, True]
    assert adapter_bytes(reports[0]) == adapter_bytes(reports[1])


def test_too_small_a_budget_fails_before_training(model, tokenizer, texts, config, tmp_path):
    with pytest.raises(TrainingError, match="does not fit into 1 MiB of memory"):
        run(model, tokenizer, texts, config.model_copy(update={"memory_gib": 0.001}), tmp_path)
