"""MaskContrast's losses, queue and training step.

Source: Van Gansbeke et al. (arXiv 2102.06191), Algorithm 1 of its supplement, and the authors' code where it says more:
pixels of the foreground of a query picture are classified against the mean foreground embedding ("prototype") of the
key view of every picture of the batch and against a queue of former prototypes.

All losses are taken on maps brought bilinearly (align_corners False) to the size of the masks. Upsampling is linear and
the number of rows per picture is known before, so the contrastive loss and its gradient at the resolution of the
features are summed over bands of the picture: neither the upsampled embedding nor the logits are ever held as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from bench import distributed
from bench.errors import SettingError
from bench.networks.maskcontrast import MaskContrastNetwork

__all__ = [
    "MaskContrast",
    "StepResult",
    "balanced_bce",
    "bce",
    "bilinear_matrix",
    "check_queue",
    "contrastive_gradient",
    "contrastive_loss",
    "enet_weights",
    "enqueue",
    "masks_at",
    "prototypes",
    "random_queue",
]

ClassWeights = Literal["enet", "none"]
SaliencyLoss = Literal["balanced", "plain"]
Negatives = Literal["global", "local"]
Resolution = Literal["input", "feature"]

FROZEN = ("conv1", "bn1", "layer1", "layer2")
"""What of the backbone `frozen` keeps as it is, as in the released configuration with supervised saliency."""

_SMALLEST_NORM = 1e-12
_PIXELS_AT_ONCE = {"cpu": 2**14, "cuda": 2**19}
"""Pixels per band: on a CPU the rows and logits of a band stay in the cache."""


# --- saliency ----------------------------------------------------------------------------------------------


def bce(logits: torch.Tensor, labels: torch.Tensor, *, pixels: int | None = None) -> torch.Tensor:
    """Mean binary cross entropy of logits, any shape, against labels in {0, 1} or bool of the same shape.

    pixels: what to divide by, where this is a part of a larger batch.
    """
    total = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
    return total / (logits.numel() if pixels is None else pixels)


def balanced_bce(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    positives: torch.Tensor | None = None,
    pixels: int | None = None,
) -> torch.Tensor:
    """Class-balanced binary cross entropy of logits, any shape, against labels in {0, 1} or bool of the same shape.

    With P positive and N negative pixels in the batch and w = N / (P + N):
    (w · Σ_positive softplus(−x) + (1 − w) · Σ_negative softplus(x)) / (P + N). It is exactly 0, without gradient, where
    all pixels are of one kind. Source: the authors' code, after HED (Xie and Tu, arXiv 1504.06375).
    positives, pixels: P (scalar) and P + N of the whole batch, where this is a part of it.
    """
    pixels = logits.numel() if pixels is None else pixels
    positives = labels.sum() if positives is None else positives
    share = (positives / pixels).to(logits.dtype)
    labels = labels.to(logits.dtype)
    weights = share + labels * (1 - 2 * share)
    total = functional.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum")
    return total / pixels


# --- contrast ----------------------------------------------------------------------------------------------


def enet_weights(counts: torch.Tensor) -> torch.Tensor:
    """Weights of labels, float64 (C,), from their numbers of pixels, (C,): 1 / ln(1.02 + share of the pixels).

    From 1.42 (all pixels) to 50.5 (none). Source: ENet (Paszke et al., arXiv 1606.02147, §5.2).
    """
    counts = counts.to(torch.float64)
    return 1 / torch.log(1.02 + counts / counts.sum().clamp_min(1))


def prototypes(embedding: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The direction of each picture's foreground, (B, D) of length 1; zeros where its mask is empty.

    The embedding, float (B, D, h, w), is brought to the size of the masks, bool (B, H, W), and L2-normalised per pixel;
    the vectors inside the mask are summed, and the sum is L2-normalised. No gradient passes.
    """
    upsampling = _Upsampling(embedding, masks)
    sums = embedding.new_zeros(embedding.shape[:2])
    for band in upsampling.bands():
        pixels = upsampling.vectors(band).flatten(1, 2)
        scale = masks[band].flatten(1) / pixels.norm(dim=2).clamp_min(_SMALLEST_NORM)
        sums[band[0]] += (scale[:, None] @ pixels).squeeze(1)
    return functional.normalize(sums, dim=1, eps=_SMALLEST_NORM)


def contrastive_loss(
    rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Weighted cross entropy of rows, (n, D), L2-normalised here, against columns, (M, D) of length 1.

    Logits are cosines over the temperature. targets: int64 (n,), the column of each row. weights: (M,), the weight of
    a row whose target is that column; the loss is Σ_rows weight · cross entropy, so that weights which add up to 1 over
    the rows of a batch give the weighted mean.
    """
    logits = functional.normalize(rows, dim=1, eps=_SMALLEST_NORM) @ (columns.T / temperature)
    return functional.cross_entropy(logits, targets, weight=weights, reduction="sum")


def contrastive_gradient(
    embedding: torch.Tensor,
    masks: torch.Tensor,
    columns: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The contrastive loss of all foreground pixels, scalar, and its gradient at the embedding, (B, D, h, w).

    embedding: float (B, D, h, w), not normalised, brought bilinearly to the size of the masks, bool (B, H, W).
    targets: int64 (B,), the column of each picture. columns, weights: as for `contrastive_loss`.
    """
    upsampling = _Upsampling(embedding, masks)
    gradient = torch.zeros_like(upsampling.cells)
    loss = embedding.new_zeros(())
    for band in upsampling.bands():
        inside = masks[band].flatten().nonzero().squeeze(1)
        if not len(inside):
            continue
        vectors = upsampling.vectors(band)
        pixels = vectors.view(-1, vectors.shape[3])
        rows = pixels[inside].requires_grad_()
        labels = targets[band[0], None, None].expand(vectors.shape[:3]).reshape(-1)[inside]
        with torch.enable_grad():
            part = contrastive_loss(rows, columns, labels, weights, temperature)
        (at_rows,) = torch.autograd.grad(part, rows)
        pixels.zero_().index_copy_(0, inside, at_rows)
        gradient[band[0]] += upsampling.adjoint(vectors, band)
        loss += part.detach()
    return loss, gradient.permute(0, 3, 1, 2)


def bilinear_matrix(length: int, target: int) -> torch.Tensor:
    """The matrix, float64 (target, length), of linear interpolation as torch has it with align_corners False."""
    unit = torch.eye(length, dtype=torch.float64)[None]
    return functional.interpolate(unit, target, mode="linear", align_corners=False)[0].T.contiguous()


Band = tuple[slice, slice]
"""Some pictures, and some lines of them at the size of the masks."""


class _Upsampling:
    """A map (B, D, h, w) at the size (H, W) of the masks, band by band.

    Bilinear interpolation is a matrix along either axis; lines come first, since the map is still narrow then.
    """

    def __init__(self, embedding: torch.Tensor, masks: torch.Tensor) -> None:
        self.cells = embedding.detach().permute(0, 2, 3, 1).contiguous()
        self.pictures, self.height, self.width = masks.shape
        self.down = bilinear_matrix(embedding.shape[2], self.height).to(self.cells)
        self.across = bilinear_matrix(embedding.shape[3], self.width).to(self.cells)

    def bands(self) -> Iterator[Band]:
        most = _PIXELS_AT_ONCE["cpu" if self.cells.device.type == "cpu" else "cuda"]
        lines = min(max(most // self.width, 1), self.height)
        pictures = max(most // (self.width * self.height), 1)
        for first in range(0, self.pictures, pictures):
            for top in range(0, self.height, lines):
                yield slice(first, first + pictures), slice(top, top + lines)

    def vectors(self, band: Band) -> torch.Tensor:
        """The upsampled map of a band, (b, lines, W, D)."""
        pictures, lines = band
        cells = self.cells[pictures]
        high = (self.down[lines] @ cells.flatten(2)).view(len(cells), -1, *cells.shape[2:])
        return self.across @ high

    def adjoint(self, vectors: torch.Tensor, band: Band) -> torch.Tensor:
        """What a gradient at a band's `vectors` is at the cells of its pictures, (b, h, w, D)."""
        narrow = (self.across.T @ vectors).flatten(2)
        return (self.down[band[1]].T @ narrow).view(len(vectors), *self.cells.shape[1:])


# --- masks and queue ---------------------------------------------------------------------------------------


def masks_at(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks, bool or {0, 1} (B, H, W), at another size, bool (B, h, w): the cells that lie half or more inside."""
    share = functional.adaptive_avg_pool2d(masks[:, None].to(torch.float32), size)
    return share.squeeze(1) >= 0.5


def random_queue(dim: int, length: int) -> torch.Tensor:
    """Random directions, float32 (dim, length), drawn from torch's global generator."""
    return functional.normalize(torch.randn(dim, length), dim=0)


def check_queue(length: int, batch: int) -> None:
    """Raise SettingError where a queue does not hold a whole number of batches (over all processes)."""
    if length % batch or not length:
        fits = max(round(length / batch), 1) * batch
        raise SettingError(
            f"a queue of {length} does not hold a whole number of batches of {batch}; set queue={fits}, or a batch "
            "size that divides the queue"
        )


def enqueue(queue: torch.Tensor, pointer: torch.Tensor, directions: torch.Tensor) -> None:
    """Write prototypes, (n, D), over the oldest columns of the queue, (D, K), and move the pointer, int64 (1,), on.

    A zero vector (an empty mask) is not written: the place keeps its former prototype, and the pointer passes it.
    Raises SettingError where n > K.
    """
    if len(directions) > queue.shape[1]:
        raise SettingError(
            f"a batch of {len(directions)} does not fit a queue of {queue.shape[1]}; make the queue longer or the "
            "batch smaller"
        )
    places = (pointer + torch.arange(len(directions), device=pointer.device)) % queue.shape[1]
    there = directions.any(dim=1)
    queue[:, places[there]] = directions[there].T.to(queue.dtype)
    pointer.copy_((pointer + len(directions)) % queue.shape[1])


# --- the step ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step saw; scalars are detached tensors on the device, so that nothing waits for it.

    With global negatives the figures are those of the batch over all processes, else of this process's own.
    loss: contrastive + saliency. rows: number of foreground pixels that were classified. foreground: their pictures'
    share of foreground, in [0, 1]. empty: key masks without a pixel, whose pictures were left out of the contrastive
    loss.
    A loss of exactly 0 has no gradient (no rows, and one kind of pixels only under the balanced saliency loss).
    """

    loss: torch.Tensor
    contrastive: torch.Tensor
    saliency: torch.Tensor
    foreground: torch.Tensor
    rows: torch.Tensor
    empty: torch.Tensor

    def floats(self) -> dict[str, float]:
        """All figures as numbers, by name."""
        return {name: float(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contrast:
    """What the rows of a group of pictures are classified against, and the sums its losses are divided by.

    columns: (M, D): the group's prototypes, empty ones left out, then the queue. targets: int64 (b,), the column of
    each of this process's pictures, meaningless where `there`, bool (b,), is False. weights: (M,), for
    `contrastive_loss`. positives, pixels: foreground and all pixels of the group.
    """

    columns: torch.Tensor
    targets: torch.Tensor
    there: torch.Tensor
    weights: torch.Tensor
    rows: torch.Tensor
    positives: torch.Tensor
    pixels: int
    empty: torch.Tensor


class MaskContrast(nn.Module):
    """A query network, its momentum copy, a queue of prototypes, and the losses between them.

    The state dict has the released names, `queue` (D, K), `queue_ptr` (1,), `model_q.*`, `model_k.*`; the released
    files put `module.` before them. The networks are kept channels-last.

    network: the query network; the key network begins as its copy.
    queue: K, the number of former prototypes; `check_queue` says whether it suits a batch size.
    temperature: divides the cosines. momentum: m in k ← m·k + (1 − m)·q, over parameters only; batch norm statistics of
        the key network are its own.
    class_weights: `enet` weighs the rows of a picture by `enet_weights` of the batch's foreground, `none` all alike.
    saliency_loss: `balanced_bce` or plain `bce`.
    negatives: with several processes, `global` takes the batches of all as one; `local` leaves each its own
        prototypes, weights and counts and takes the mean of the gradients, as the authors' code does. The queue holds
        the prototypes of all processes either way.
    resolution: of the losses: `input`, as the authors' code does, or `feature` (masks reduced, much cheaper).
    frozen: keep conv1, bn1, layer1 and layer2 of both networks as they are, in eval mode.
    """

    queue: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(
        self,
        network: MaskContrastNetwork,
        *,
        queue: int = 128,
        temperature: float = 0.5,
        momentum: float = 0.999,
        class_weights: ClassWeights = "enet",
        saliency_loss: SaliencyLoss = "balanced",
        negatives: Negatives = "global",
        resolution: Resolution = "input",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.class_weights, self.saliency_loss = class_weights, saliency_loss
        self.negatives, self.resolution, self.frozen = negatives, resolution, frozen
        self.register_buffer("queue", random_queue(network.head.out_channels, queue))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self.model_q = network
        self.model_k = copy.deepcopy(network).requires_grad_(False)
        for name in FROZEN if frozen else ():
            self.model_q.backbone.get_submodule(name).requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        self.train()

    def train(self, mode: bool = True) -> MaskContrast:
        """Training mode for all but what is frozen."""
        super().train(mode)
        for network in (self.model_q, self.model_k) if self.frozen else ():
            for name in FROZEN:
                network.backbone.get_submodule(name).eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        """The query network's parameters that are trained, for the optimizer."""
        return [parameter for parameter in self.model_q.parameters() if parameter.requires_grad]

    def synchronise(self) -> None:
        """Give every process the state of rank 0; called once, after the weights are in place."""
        distributed.broadcast_([tensor.detach() for tensor in (*self.parameters(), *self.buffers())])

    def step(
        self,
        images_q: torch.Tensor,
        masks_q: torch.Tensor,
        images_k: torch.Tensor,
        masks_k: torch.Tensor,
        *,
        autocast: torch.dtype | None = None,
    ) -> StepResult:
        """Move the key network on, take the losses, leave the query network's gradients in `.grad`, fill the queue.

        images: float (B, 3, H, W), two views of the same pictures. masks: bool or {0, 1} (B, H, W).
        autocast: number format of the networks' passes; losses are taken in that of the weights.
        Former gradients are dropped. Every process calls this with its own pictures; the optimizer's step is the
        caller's.
        """
        masks_q, masks_k = masks_q.to(torch.bool), masks_k.to(torch.bool)
        self.model_q.zero_grad(set_to_none=True)
        distributed.broadcast_(buffer for network in (self.model_q, self.model_k) for buffer in network.buffers())
        # The reference has the query pass first. Neither reads what the other changes, and in this order the key
        # network's activations are gone before the query network's are held.
        self._move_key()
        keys, sizes = self._keys(images_k, masks_k, autocast)
        with self._number_format(images_q, autocast):
            maps = self.model_q(images_q.contiguous(memory_format=torch.channels_last))
        outputs = (maps["embedding"], maps["saliency"])
        del maps
        gradients, result = self._losses(outputs, self._sized(masks_q, outputs[0]), keys, sizes)
        torch.autograd.backward(outputs, gradients)
        enqueue(self.queue, self.queue_ptr, keys)
        trained = [parameter.grad for parameter in self.trainable() if parameter.grad is not None]
        distributed.sum_(trained, divide=self.negatives == "local")
        return result

    @torch.no_grad()
    def _move_key(self) -> None:
        torch._foreach_lerp_(list(self.model_k.parameters()), list(self.model_q.parameters()), 1 - self.momentum)

    @torch.no_grad()
    def _keys(
        self, images: torch.Tensor, masks: torch.Tensor, autocast: torch.dtype | None
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Prototypes (B over all processes, D) of the key views, and the number of each process.

        Batch norm sees the pictures shuffled over the processes. A prototype depends on nothing but its picture and
        mask, so both travel, and only prototypes come back.
        """
        (mixed, mixed_masks), order = distributed.exchange(images, masks.to(torch.uint8))
        with self._number_format(images, autocast):
            embedding = self.model_k(mixed.contiguous(memory_format=torch.channels_last))["embedding"]
        directions = prototypes(embedding.to(self.queue.dtype), self._sized(mixed_masks.to(torch.bool), embedding))
        gathered, sizes = distributed.gather(directions)
        restored = torch.empty_like(gathered)
        restored[order.to(gathered.device)] = gathered
        return restored, sizes

    @torch.no_grad()
    def _losses(
        self,
        outputs: tuple[torch.Tensor, torch.Tensor],
        masks: torch.Tensor,
        keys: torch.Tensor,
        sizes: tuple[int, ...],
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], StepResult]:
        """The gradients of the loss at the two heads' outputs, and its figures."""
        embedding, saliency = (output.detach().to(self.queue.dtype) for output in outputs)
        group = self._group(masks, keys, sizes)
        contrastive, at_embedding = contrastive_gradient(
            embedding, masks & group.there[:, None, None], group.columns, group.targets, group.weights, self.temperature
        )
        saliency_loss, at_saliency = self._saliency(saliency, masks, group)
        figures = torch.stack([contrastive, saliency_loss])
        if self.negatives == "global":
            distributed.sum_([figures])
        result = StepResult(
            loss=figures.sum(),
            contrastive=figures[0],
            saliency=figures[1],
            foreground=group.positives / group.pixels,
            rows=group.rows,
            empty=group.empty,
        )
        return (at_embedding.to(outputs[0].dtype), at_saliency.to(outputs[1].dtype)), result

    def _saliency(
        self, logits: torch.Tensor, masks: torch.Tensor, group: _Contrast
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's share of the saliency loss, and its gradient at the logits (B, 1, h, w)."""
        logits = logits.requires_grad_()
        with torch.enable_grad():
            upsampled = functional.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=False).squeeze(1)
            if self.saliency_loss == "balanced":
                loss = balanced_bce(upsampled, masks, positives=group.positives, pixels=group.pixels)
            else:
                loss = bce(upsampled, masks, pixels=group.pixels)
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss.detach(), gradient

    def _group(self, masks: torch.Tensor, keys: torch.Tensor, sizes: tuple[int, ...]) -> _Contrast:
        """The pictures that are taken as one batch: of all processes, or this process's own."""
        counts = masks.flatten(1).sum(dim=1)
        first = distributed.offset(sizes)
        if self.negatives == "global":
            counts, _ = distributed.gather(counts)
        else:
            keys, first = keys[first : first + len(masks)], 0
        there = keys.any(dim=1)
        rows = torch.where(there, counts, 0)
        weights = enet_weights(rows) if self.class_weights == "enet" else torch.ones_like(rows, dtype=torch.float64)
        weights = weights / (weights * rows).sum().clamp_min(_SMALLEST_NORM)
        own = slice(first, first + len(masks))
        return _Contrast(
            columns=torch.cat([keys[there], self.queue.T]),
            targets=(there.cumsum(0) - 1)[own],
            there=there[own],
            weights=functional.pad(weights[there], (0, self.queue.shape[1])).to(keys.dtype),
            rows=rows.sum(),
            positives=counts.sum(),
            pixels=len(keys) * masks[0].numel(),
            empty=(~there).sum(),
        )

    def _sized(self, masks: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Masks (B, H, W) at the resolution of the losses."""
        return masks_at(masks, (maps.shape[2], maps.shape[3])) if self.resolution == "feature" else masks

    def _number_format(self, images: torch.Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
        return torch.autocast(images.device.type, dtype=dtype) if dtype is not None else nullcontext()
