"""Run as a script, `test_contrast.py FOLDER RANK`, this file is one of two processes; see `two_processes`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn import functional

from bench import contrast
from bench.contrast import MaskContrast
from bench.distributed import exchange
from bench.errors import SettingError
from bench.networks.maskcontrast import MaskContrastNetwork

GOLDEN = Path(__file__).parents[1] / "golden"


# --- inputs ------------------------------------------------------------------------------------------------


def golden(name):
    return np.load(GOLDEN / f"{name}.npz"), json.loads((GOLDEN / f"{name}.json").read_text())


def deterministic_(network: torch.nn.Module, prefix: str = "") -> None:
    """Fill a network by the rule of the golden files: every tensor from a seed that its name gives."""
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = np.random.RandomState(zlib.crc32(f"{prefix}{name}".encode())).standard_normal(tuple(value.shape))
        if name.endswith("running_var"):
            drawn = 1 + 0.1 * np.abs(drawn)
        elif name.endswith(("running_mean", "bias")):
            drawn = 0.1 * drawn
        elif value.ndim == 1:
            drawn = 1 + 0.1 * drawn
        else:
            drawn = drawn * np.sqrt(2 / np.prod(value.shape[1:]))
        value.copy_(torch.from_numpy(drawn))


def reference_model(queue: np.ndarray, *, key_prefix: str = "", **settings) -> MaskContrast:
    model = MaskContrast(MaskContrastNetwork("resnet18", dropout=0.0), queue=queue.shape[1], **settings).double()
    deterministic_(model.model_q)
    deterministic_(model.model_k, key_prefix)
    model.queue.copy_(torch.from_numpy(queue))
    return model


def small_model(dtype=torch.float64, **settings) -> MaskContrast:
    torch.manual_seed(0)
    return MaskContrast(MaskContrastNetwork("small", dim=8), **{"queue": 8, **settings}).to(dtype)


def pictures(count: int, side: int = 32, seed: int = 0, dtype=torch.float64):
    """Two views and their masks: discs of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, count, 3, side, side, generator=generator, dtype=torch.float64).to(dtype)
    place = torch.arange(side) - side / 2
    radius = torch.linspace(0.2, 0.45, 2 * count).view(2, count, 1, 1) * side
    return images[0], (inside := place.square()[:, None] + place.square() < radius.square())[0], images[1], inside[1]


def two_step_images(settings, name):
    drawn = np.random.RandomState(settings["images"]["seeds"][name]).standard_normal((4, 3, 64, 64))
    drawn = drawn.astype(np.float32).astype(np.float64)
    assert drawn.sum() == pytest.approx(settings["images"]["checks"][name]["sum"], rel=1e-6)
    return torch.from_numpy(drawn)


def two_step_inputs(arrays, settings, step, only=slice(None)):
    return [
        value[only]
        for view in ("query", "key")
        for value in (two_step_images(settings, f"{view}_{step}"), torch.from_numpy(arrays[f"{view}_masks_{step}"]))
    ]


def norms(named):
    return {name: float(value.detach().norm()) for name, value in named}


def gradient_norms(model):
    return norms((name, parameter.grad) for name, parameter in model.model_q.named_parameters())


def close(seen, wanted, rel=1e-6):
    """Relative to the largest wanted value of an array, to each value of a dictionary or number."""
    if isinstance(wanted, dict):
        assert seen.keys() == wanted.keys()
        for name in wanted:
            assert seen[name] == pytest.approx(wanted[name], rel=rel, abs=0), name
    else:
        seen, wanted = np.asarray(seen), np.asarray(wanted)
        assert seen.shape == wanted.shape
        assert np.abs(seen - wanted).max() <= rel * np.abs(wanted).max()


def plain_rows(network, images, masks):
    """Foreground pixels, normalised, and their pictures, as the paper's algorithm has them."""
    vectors = functional.normalize(network.upsampled(images)[0], dim=1)
    inside = masks.bool()
    return vectors.permute(0, 2, 3, 1)[inside], inside.nonzero()[:, 0]


# --- the reference's figures ---------------------------------------------------------------------------------


def test_balanced_bce_agrees_with_the_reference():
    values = np.load(GOLDEN / "balanced_bce.npz")
    logits, labels = torch.from_numpy(values["logits"]), torch.from_numpy(values["labels"])
    assert float(contrast.balanced_bce(logits, labels)) == pytest.approx(float(values["loss"]), rel=1e-6)
    assert float(contrast.balanced_bce(logits, labels.bool())) == pytest.approx(float(values["loss"]), rel=1e-6)
    assert float(contrast.balanced_bce(logits, torch.zeros_like(labels))) == values["loss_all_background"] == 0


def test_one_step_agrees_with_the_reference():
    arrays, wanted = golden("maskcontrast_step")
    model = reference_model(arrays["queue_before"])
    images_q, images_k = (torch.from_numpy(arrays[f"{view}_images"]) for view in ("query", "key"))
    masks_q, masks_k = (torch.from_numpy(arrays[f"{view}_masks"]) for view in ("query", "key"))
    rows, labels = plain_rows(copy.deepcopy(model.model_q), images_q, masks_q)
    result = model.step(images_q, masks_q, images_k, masks_k)
    assert float(result.rows) == arrays["n_rows"]
    assert float(result.contrastive) == pytest.approx(wanted["contrastive_loss"], rel=1e-6)
    assert float(result.saliency) == pytest.approx(wanted["saliency_loss"], rel=1e-6)
    assert float(result.loss) == pytest.approx(wanted["total_loss"], rel=1e-6)
    close(model.queue, arrays["queue_after"])
    columns = torch.cat([model.queue[:, :4], torch.from_numpy(arrays["queue_before"])], dim=1)
    close(rows[:50].detach() @ columns / 0.5, arrays["logits_first_rows"])
    assert labels[:50].tolist() == arrays["labels_first_rows"].tolist()
    close(gradient_norms(model), wanted["grad_norms"])
    close(norms(model.model_k.named_parameters()), wanted["key_param_norms_after"])


def test_two_optimisation_steps_agree_with_the_reference():
    arrays, wanted = golden("maskcontrast_two_steps")
    model = reference_model(arrays["queue_before"], key_prefix="key.", momentum=0.9)
    start = {name: parameter.detach().clone() for name, parameter in model.model_q.named_parameters()}
    optimizer = torch.optim.SGD(model.trainable(), lr=0.004, momentum=0.9, weight_decay=1e-4)
    for step, figures in enumerate(wanted["steps"], start=1):
        inputs = two_step_inputs(arrays, wanted, step)
        rows, labels = plain_rows(copy.deepcopy(model.model_q), *inputs[:2])
        before = model.queue.clone()
        result = model.step(*inputs)
        for name in ("contrastive", "saliency"):
            assert float(getattr(result, name)) == pytest.approx(figures[f"{name}_loss"], rel=1e-6)
        assert float(result.loss) == pytest.approx(figures["total_loss"], rel=1e-6)
        assert float(result.rows) == len(rows) == figures["n_rows"]
        counts = torch.bincount(labels)
        assert counts.tolist() == figures["rows_per_label"]
        close(contrast.enet_weights(counts), figures["class_weights"])
        close(gradient_norms(model), figures["grad_norms"])
        close(model.queue, arrays[f"queue_after_{step}"])
        assert model.queue_ptr.tolist() == [figures["queue_pointer_after"]]
        index = arrays[f"row_index_{step}"]
        columns = torch.cat([model.queue[:, 4 * step - 4 : 4 * step], before], dim=1)
        close(rows[index].detach() @ columns / 0.5, arrays[f"logits_rows_{step}"])
        assert labels[index].tolist() == arrays[f"row_label_{step}"].tolist()
        optimizer.step()
    after = wanted["after_second_step"]
    query, change = dict(model.model_q.named_parameters()), {}
    for name, parameter in query.items():
        change[name] = parameter.detach() - start[name]
    close(norms(query.items()), after["query_param_norms"])
    close(norms(change.items()), after["query_param_change_norms"])
    close({n: float((change[n] * start[n]).sum()) for n in change}, after["query_param_change_dot_start"])
    close(norms(model.model_k.named_parameters()), after["key_param_norms"])
    for network, key in ((model.model_q, "query_bn_buffer_norms"), (model.model_k, "key_bn_buffer_norms")):
        buffers = dict(network.named_buffers())
        close(norms((name, buffers[name]) for name in after[key]), after[key])
        assert int(buffers["backbone.bn1.num_batches_tracked"]) == after["num_batches_tracked"]


def eval_model(negatives):
    arrays, settings = golden("maskcontrast_two_steps")
    model = reference_model(arrays["queue_before"], key_prefix="key.", momentum=0.9, negatives=negatives).eval()
    return model, arrays, settings


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two gloo processes found, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, __file__, str(folder)]
    running = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    ended = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(ended)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_one_group_agrees_with_the_reference():
    model, arrays, settings = eval_model("global")
    wanted = json.loads((GOLDEN / "maskcontrast_two_groups.json").read_text())
    group = wanted["one_group_of_4"]
    result = model.step(*two_step_inputs(arrays, settings, 1))
    assert float(result.contrastive) == pytest.approx(group["contrastive_loss"], rel=1e-6)
    assert float(result.saliency) == pytest.approx(group["saliency_loss"], rel=1e-6)
    assert float(result.rows) == group["n_rows"]
    close(gradient_norms(model), group["grad_norms"])
    close(model.queue[:, :4].T, wanted["queue_after_first_4_columns"])


def test_two_groups_one_after_the_other_agree_with_the_reference():
    wanted = json.loads((GOLDEN / "maskcontrast_two_groups.json").read_text())
    groups, columns, gradients = wanted["two_groups_of_2"], [], []
    for group in groups["groups"]:
        model, arrays, settings = eval_model("local")
        inputs = two_step_inputs(arrays, settings, 1, group["pictures"])
        rows, _ = plain_rows(model.model_q, *inputs[:2])
        before = model.queue.clone()
        result = model.step(*inputs)
        assert float(result.contrastive) == pytest.approx(group["contrastive_loss"], rel=1e-6)
        assert float(result.saliency) == pytest.approx(group["saliency_loss"], rel=1e-6)
        assert float(result.rows) == group["n_rows"]
        logits = rows.detach() @ torch.cat([model.queue[:, :2], before], dim=1) / 0.5
        assert logits.shape[1] == group["logit_columns"]
        close(logits[0], group["first_row"])
        close(logits[-1], group["last_row"])
        columns.append(model.queue[:, :2])
        gradients.append({name: parameter.grad for name, parameter in model.model_q.named_parameters()})
    mean = {name: (gradients[0][name] + gradients[1][name]) / 2 for name in gradients[0]}
    close(norms(mean.items()), groups["grad_norms_of_mean_gradient"])
    close(torch.cat(columns, dim=1).T, wanted["queue_after_first_4_columns"])


def test_local_negatives_in_two_processes_agree_with_the_reference(two_processes):
    wanted = json.loads((GOLDEN / "maskcontrast_two_groups.json").read_text())
    groups = wanted["two_groups_of_2"]
    for group, found in zip(groups["groups"], two_processes, strict=True):
        seen = found["local"]
        assert seen["figures"]["contrastive"] == pytest.approx(group["contrastive_loss"], rel=1e-6)
        assert seen["figures"]["saliency"] == pytest.approx(group["saliency_loss"], rel=1e-6)
        assert seen["figures"]["rows"] == group["n_rows"]
        close(seen["norms"], groups["grad_norms_of_mean_gradient"])
        close(seen["queue"][:, :4].T, wanted["queue_after_first_4_columns"])
        assert seen["pointer"] == groups["queue_pointer_after"]


def test_global_negatives_in_two_processes_equal_one_batch(two_processes):
    wanted = json.loads((GOLDEN / "maskcontrast_two_groups.json").read_text())
    group = wanted["one_group_of_4"]
    for found in two_processes:
        seen = found["global"]
        assert seen["figures"]["contrastive"] == pytest.approx(group["contrastive_loss"], rel=1e-6)
        assert seen["figures"]["saliency"] == pytest.approx(group["saliency_loss"], rel=1e-6)
        assert seen["figures"]["rows"] == group["n_rows"]
        close(seen["norms"], group["grad_norms"])
        close(seen["queue"][:, :4].T, wanted["queue_after_first_4_columns"])


@pytest.mark.parametrize("run", ["uneven", "with an empty mask"])
def test_two_uneven_processes_train_as_one(two_processes, run):
    (one, _), (two, figures) = (found[run] for found in two_processes)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    alone, figures_alone = train_small(slice(None), empty=run == "with an empty mask")
    for name, value in alone.items():
        close(one[name], value)
    close(figures, figures_alone)


def test_running_statistics_are_equal_on_all_processes_at_the_next_step(two_processes):
    one, two = (found["statistics"] for found in two_processes)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_pictures_are_dealt_out_anew_and_can_be_put_back(two_processes):
    dealt = [found["exchange"] for found in two_processes]
    assert [len(images) for images, _, _ in dealt] == [3, 2]
    images = torch.cat([images for images, _, _ in dealt])
    masks = torch.cat([masks for _, masks, _ in dealt])
    order = dealt[0][2]
    assert torch.equal(order, dealt[1][2])
    assert sorted(order.tolist()) == list(range(5))
    assert torch.equal(images[:, 0], order.float())
    assert torch.equal(masks, order.to(torch.uint8))


# --- losses against plain formulas ---------------------------------------------------------------------------


@pytest.fixture(params=[1, 30, 10**6], ids=["line by line", "bands", "at once"])
def band(request, monkeypatch):
    monkeypatch.setattr(contrast, "_PIXELS_AT_ONCE", {"cpu": request.param, "cuda": request.param})


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(3, 6, 4, 3, generator=generator, dtype=torch.float64)
    masks = torch.rand(3, 13, 11, generator=generator) < torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    columns = functional.normalize(torch.randn(7, 6, generator=generator, dtype=torch.float64), dim=1)
    return embedding, masks, columns


@pytest.mark.usefixtures("band")
def test_the_contrastive_gradient_is_that_of_the_plain_formula(example):
    embedding, masks, columns = example
    targets = torch.tensor([2, 0, 1])
    weights = torch.tensor([0.3, 1.7, 0.9, 0, 0, 0, 0], dtype=torch.float64)
    leaf = embedding.clone().requires_grad_()
    vectors = functional.normalize(functional.interpolate(leaf, (13, 11), mode="bilinear", align_corners=False), dim=1)
    rows, labels = vectors.permute(0, 2, 3, 1)[masks], targets[masks.nonzero()[:, 0]]
    wanted = functional.cross_entropy(rows @ columns.T / 0.2, labels, weight=weights)
    wanted.backward()
    total = weights[labels].sum()
    loss, gradient = contrast.contrastive_gradient(embedding, masks, columns, targets, weights / total, 0.2)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("band")
def test_prototypes_are_those_of_the_plain_formula(example):
    embedding, masks, _ = example
    masks[1] = False
    upsampled = functional.interpolate(embedding, (13, 11), mode="bilinear", align_corners=False)
    sums = (functional.normalize(upsampled, dim=1) * masks[:, None]).sum((2, 3))
    seen = contrast.prototypes(embedding, masks)
    torch.testing.assert_close(seen, functional.normalize(sums, dim=1))
    assert not seen[1].any()


@pytest.mark.parametrize(("length", "target"), [(4, 32), (7, 52), (5, 5), (6, 4), (1, 9)])
def test_the_bilinear_matrix_is_torchs_interpolation(length, target):
    line = torch.randn(1, 3, length, dtype=torch.float64)
    wanted = functional.interpolate(line, target, mode="linear", align_corners=False)[0]
    torch.testing.assert_close(line[0] @ contrast.bilinear_matrix(length, target).T, wanted)


def test_saliency_losses_at_known_points():
    half = torch.tensor([1.0, 0.0]).repeat(8)
    assert float(contrast.bce(torch.zeros(16), half)) == pytest.approx(np.log(2))
    assert float(contrast.balanced_bce(torch.zeros(16), half)) == pytest.approx(np.log(2) / 2)
    logits = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for loss, extra in ((contrast.bce, {}), (contrast.balanced_bce, {"positives": half.sum()})):
        parts = [loss(logits[part], half[part], pixels=16, **extra) for part in (slice(0, 5), slice(5, 16))]
        assert float(sum(parts)) == pytest.approx(float(loss(logits, half)), rel=1e-12)


def test_enet_weights_at_their_limits():
    weights = contrast.enet_weights(torch.tensor([0, 10]))
    assert weights.tolist() == pytest.approx([1 / np.log(1.02), 1 / np.log(2.02)])
    assert contrast.enet_weights(torch.zeros(2)).isfinite().all()


def test_masks_are_reduced_to_the_cells_that_lie_half_inside():
    mask = torch.zeros(1, 4, 6)
    mask[0, :2, :2] = 1
    mask[0, 2:, 2:4] = torch.tensor([[1, 0], [0, 1]])
    mask[0, 0, 4] = 1
    assert contrast.masks_at(mask, (2, 3)).tolist() == [[[True, False, False], [False, True, False]]]


# --- the queue -----------------------------------------------------------------------------------------------


def test_the_queue_is_a_ring():
    queue, pointer = torch.zeros(2, 5), torch.tensor([3])
    contrast.enqueue(queue, pointer, torch.tensor([[1.0, 0], [2, 0], [3, 0]]))
    assert queue[0].tolist() == [3, 0, 0, 1, 2]
    assert pointer.tolist() == [1]


def test_an_empty_prototype_leaves_its_place_in_the_queue_alone():
    queue, pointer = torch.full((2, 4), 7.0), torch.tensor([0])
    contrast.enqueue(queue, pointer, torch.tensor([[1.0, 0], [0, 0], [3, 0]]))
    assert queue[0].tolist() == [1, 7, 3, 7]
    assert pointer.tolist() == [3]


def test_queues_that_do_not_suit_the_batch_are_refused():
    contrast.check_queue(128, 64)
    with pytest.raises(SettingError, match=r"queue of 128 .* batches of 24; set queue=120"):
        contrast.check_queue(128, 24)
    with pytest.raises(SettingError, match="does not fit a queue of 2"):
        contrast.enqueue(torch.zeros(2, 2), torch.tensor([0]), torch.ones(3, 2))


def test_a_random_queue_holds_directions():
    torch.testing.assert_close(contrast.random_queue(16, 5).norm(dim=0), torch.ones(5))


# --- the step ------------------------------------------------------------------------------------------------


def plain_step(model, images_q, masks_q, images_k, masks_k):
    """The loss of a step by the paper's algorithm, all at once; leaves gradients, changes nothing else that counts."""
    with torch.no_grad():
        for key, query in zip(model.model_k.parameters(), model.model_q.parameters(), strict=True):
            key.copy_(model.momentum * key + (1 - model.momentum) * query)
        vectors = functional.normalize(model.model_k.upsampled(images_k)[0], dim=1)
        keys = functional.normalize((vectors * masks_k[:, None]).sum((2, 3)), dim=1)
    rows, labels = plain_rows(model.model_q, images_q, masks_q)
    logits = rows @ torch.cat([keys.T, model.queue], dim=1) / model.temperature
    loss = functional.cross_entropy(logits, labels)
    saliency = model.model_q.upsampled(images_q)[1]
    loss = loss + functional.binary_cross_entropy_with_logits(saliency, masks_q.to(saliency.dtype))
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_without_weights_is_the_papers_algorithm(dtype):
    model = small_model(dtype, class_weights="none", saliency_loss="plain").eval()
    other = copy.deepcopy(model)
    inputs = pictures(4, dtype=dtype)
    result, wanted = model.step(*inputs), plain_step(other, *inputs)
    rel = 1e-5 if dtype == torch.float32 else 1e-10
    assert float(result.loss) == pytest.approx(float(wanted), rel=rel)
    for seen, there in zip(model.trainable(), other.trainable(), strict=True):
        close(seen.grad, there.grad, rel)


def test_the_state_has_the_names_of_the_released_files():
    with torch.device("meta"):
        model = MaskContrast(MaskContrastNetwork("resnet50"))
    ours = [f"module.{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]
    assert ours == (GOLDEN / "maskcontrast_resnet50_keys.txt").read_text().splitlines()


def test_a_batch_of_one_works_and_the_ring_goes_on():
    model = MaskContrast(MaskContrastNetwork("resnet18", dim=8), queue=8)
    inputs = pictures(4, dtype=torch.float32)
    model.step(*(value[:1] for value in inputs))
    result = model.step(*inputs)
    assert result.loss.isfinite()
    assert model.queue_ptr.tolist() == [5]


def test_a_picture_with_an_empty_key_mask_is_neither_positive_nor_negative():
    """Its rows and its column are left out, so the contrastive loss is that of the batch without it."""
    settings = {"saliency_loss": "plain"}
    model, other = small_model(**settings).eval(), small_model(**settings).eval()
    images_q, masks_q, images_k, masks_k = pictures(4)
    masks_k[1] = False
    rest = [0, 2, 3]
    result = model.step(images_q, masks_q, images_k, masks_k)
    wanted = other.step(images_q[rest], masks_q[rest], images_k[rest], masks_k[rest])
    assert float(result.empty) == 1
    assert float(result.rows) == float(wanted.rows) == float(masks_q[rest].sum())
    assert float(result.contrastive) == pytest.approx(float(wanted.contrastive), rel=1e-12)
    close(model.model_q.head.weight.grad, other.model_q.head.weight.grad)


def test_a_batch_of_background_has_no_loss_and_no_gradient():
    model = small_model()
    images_q, masks_q, images_k, masks_k = pictures(4)
    result = model.step(images_q, torch.zeros_like(masks_q), images_k, torch.zeros_like(masks_k))
    assert result.floats() == {"loss": 0, "contrastive": 0, "saliency": 0, "foreground": 0, "rows": 0, "empty": 4}
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.trainable())
    plain = small_model(saliency_loss="plain")
    assert float(plain.step(images_q, torch.zeros_like(masks_q), images_k, masks_k).saliency) > 0


def test_losses_at_feature_resolution_use_the_reduced_masks():
    model, other = small_model(resolution="feature").eval(), small_model().eval()
    images_q, masks_q, images_k, masks_k = pictures(4)
    result = model.step(images_q, masks_q, images_k, masks_k)
    assert float(result.rows) == float(contrast.masks_at(masks_q, (4, 4)).sum())
    assert float(result.rows) < float(other.step(images_q, masks_q, images_k, masks_k).rows) / 32


def test_a_step_drops_the_gradients_of_the_one_before():
    model = small_model().eval()
    inputs = pictures(4)
    again = copy.deepcopy(model)
    model.step(*inputs)
    model.queue.copy_(again.queue)
    model.model_k.load_state_dict(again.model_k.state_dict())
    model.step(*inputs)
    again.step(*inputs)
    for one, other in zip(model.trainable(), again.trainable(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_frozen_layers_stay_as_they_are():
    model = small_model(frozen=True)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.trainable(), lr=0.1, weight_decay=0.1)
    for seed in range(2):
        model.step(*pictures(4, seed=seed))
        optimizer.step()
        model.train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = tuple(f"{net}.backbone.{part}." for net in ("model_q", "model_k") for part in contrast.FROZEN)
    assert not any(name.startswith(frozen) for name in moved)
    assert {"model_q.backbone.layer3.0.conv1.weight", "model_k.backbone.layer3.0.bn1.running_mean"} <= moved


def test_autocast_changes_the_passes_and_not_the_format_of_the_gradients():
    model, other = small_model(torch.float32).eval(), small_model(torch.float32).eval()
    inputs = pictures(4, dtype=torch.float32)
    result, wanted = model.step(*inputs, autocast=torch.bfloat16), other.step(*inputs)
    assert 0 < abs(float(result.loss) - float(wanted.loss)) < 0.05
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.trainable())


# --- one of two processes ------------------------------------------------------------------------------------


def train_small(own, *, empty=False):
    """State after two optimisation steps on the pictures `own` of a batch of four, and the last figures."""
    model = small_model(momentum=0.5).eval()
    model.synchronise()
    optimizer = torch.optim.SGD(model.trainable(), lr=0.1, momentum=0.9)
    for seed in range(2):
        inputs = pictures(4, seed=seed)
        if empty:
            inputs[3][1] = False
        result = model.step(*(value[own] for value in inputs))
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}, result.floats()


def one_of_two(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, object] = {}
    for negatives in ("local", "global"):
        model, arrays, settings = eval_model(negatives)
        result = model.step(*two_step_inputs(arrays, settings, 1, slice(2 * rank, 2 * rank + 2)))
        found[negatives] = {
            "figures": result.floats(),
            "norms": gradient_norms(model),
            "queue": model.queue,
            "pointer": int(model.queue_ptr),
        }
    own = slice(0, 3) if rank == 0 else slice(3, 4)
    found["uneven"] = train_small(own)
    found["with an empty mask"] = train_small(own, empty=True)
    found["statistics"] = train_with_batch_norm(own)
    rows = torch.arange(3.0)[:, None] if rank == 0 else torch.arange(3.0, 5)[:, None]
    (images, masks), order = exchange(rows, rows[:, 0].to(torch.uint8))
    found["exchange"] = (images, masks, order)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def train_with_batch_norm(own):
    """Running statistics as a step finds them: a hook sees them before the query pass."""
    model = small_model()
    for seed in range(2):
        seen = {}

        def note(network, _, seen=seen):
            seen.update(copy.deepcopy(dict(network.named_buffers())))

        handle = model.model_q.register_forward_pre_hook(note)
        model.step(*(value[own] for value in pictures(4, seed=seed)))
        handle.remove()
    return seen


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
