"""timm's networks as adapters: how one is built, which maps it has, and where their cells lie."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import requests
import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.backbone import Backbone
from bench.checkpoints import read_checkpoint
from bench.errors import CheckpointError, DownloadError, FeatureError, MismatchError, SettingError, UnknownNameError
from bench.records import AdapterRequest, Checkpoint, KeyRule, Tap
from bench.registry import near
from bench.weights import BESIDE, holds_network, load_into, normalised_as, seeded

log = logging.getLogger(__name__)

LAST = "last"


class TimmBackbone(Backbone):
    """A timm network that gives its intermediate maps.

    order: tap name -> its place among the network's intermediate maps. normed: ask for the final norm on each map.
    fixed_size: (H, W) of the only input the network takes, None when it takes any.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        name: str,
        order: Mapping[str, int],
        normed: bool,
        fixed_size: tuple[int, int] | None,
        **facts: Any,
    ) -> None:
        super().__init__(body, **facts)
        self.name, self.order, self.normed, self.fixed_size = name, order, normed, fixed_size

    def check_input(self, size: tuple[int, int]) -> None:
        """FeatureError for an input (H, W) that the network does not take."""
        if self.fixed_size and size != self.fixed_size:
            height, width = self.fixed_size
            raise FeatureError(
                f"timm:{self.name} takes pictures of {height}×{width} only, got {size[0]}×{size[1]}; use --size "
                f"{height if height == width else f'{height}x{width}'}"
            )

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        height, width = inputs.shape[-2:]
        self.check_input((height, width))
        if not taps:
            return {}
        places = sorted({self.order[name] for name in taps})
        maps = dict(zip(places, _intermediates(self.body, inputs, self.normed, places), strict=True))
        return {name: maps[self.order[name]] for name in taps}


def build_timm(request: AdapterRequest) -> Backbone:
    """The adapter of `timm:NAME`.

    Raises UnknownNameError for a name timm does not have, DownloadError when its weights are out of reach,
    SettingError for an output stride the network cannot have, MismatchError for a network without maps.
    """
    return _adapter(request.argument, request.checkpoint, request.options.output_stride)


def build_released(request: AdapterRequest, networks: Mapping[str, str]) -> Backbone:
    """The adapter of a method all of whose networks are timm's.

    networks: name of each released checkpoint -> timm's name of the network and its weights. The option `arch` names
    one of them; `auto` is that of the checkpoint, and the first where the checkpoint tells none.
    Raises SettingError for an `arch` that is not that of the released checkpoint.
    """
    checkpoint, arch = request.checkpoint, request.options.arch
    held = checkpoint.name if checkpoint.kind == "released" else ""
    if held and arch not in ("auto", held):
        method = request.card.name
        raise SettingError(f"{method}@{held} is the network {held}, not {arch}: drop --set {method}.arch={arch}")
    if arch == "auto":
        arch = held or _held(checkpoint, networks) or next(iter(networks))
    return _adapter(networks[arch], checkpoint, "auto")


def _adapter(name: str, checkpoint: Checkpoint, output_stride: str | int) -> Backbone:
    """A network of timm with the weights of a checkpoint, in the normalisation that timm keeps with the name."""
    _check_name(name)
    body, fixed_size = _body(name, output_stride, checkpoint)
    loaded = load_into(body, checkpoint, likely=partial(likely_network, name))
    maps, normed = _measure(name, body, fixed_size or _trial_size(body))
    taps, order = _taps(name, body, maps, fixed_size or _trial_size(body))
    _check_stride(name, taps[-1].stride, output_stride)
    data = timm.data.resolve_model_data_config(body)
    normalised = normalised_as(checkpoint, f"timm:{name}", data["mean"], data["std"])
    return TimmBackbone(
        body,
        name=name,
        order=order,
        normed=normed,
        fixed_size=fixed_size,
        taps=taps,
        mean=data["mean"],
        std=data["std"],
        default_tap=LAST,
        fingerprint=f"timm {timm.__version__} {name} mean={data['mean']} std={data['std']}",
        account=loaded.as_dict() | normalised if loaded else None,
    )


# --- names and weights -----------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise UnknownNameError(
            f"timm has no network {name!r}.{near(name, timm.list_models())} Search with: python -c "
            "\"import timm; print(timm.list_models('*resnet*'))\""
        )
    bare, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]
    if tag and tag not in tags:
        raise UnknownNameError(
            f"timm's {bare} has no weights {tag!r}.{near(tag, tags)} Known: {', '.join(tags) or 'none'}"
        )


def _pretrained_source(name: str) -> dict[str, Any]:
    """What `timm.create_model` needs to find the weights of a name; checks first that they can be had.

    The hub's own client tries for most of a minute before it says that there is no network, also for files that it
    has already: those are handed over as files, and for others one request tells.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise CheckpointError(f"timm:{name} has no released weights; give timm:{name}@random or timm:{name}@FILE")
    kept = _kept_file(config)
    if kept is not None:
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(kept)}}
    address = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
    try:
        requests.head(address, timeout=10)
    except requests.RequestException as error:
        raise DownloadError(
            f"cannot reach {address} for the weights of timm:{name}; connect, or download them there and give "
            f"timm:{name}@FILE, or take timm:{name}@random"
        ) from error
    return {"pretrained": True}


def _kept_file(config: Any) -> Path | None:
    """The weights in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if not config.hf_hub_id:
        return None
    for filename in filter(None, (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")):
        kept = try_to_load_from_cache(config.hf_hub_id, filename)
        if isinstance(kept, str):
            return Path(kept)
    return None


def _held(checkpoint: Checkpoint, networks: Mapping[str, str]) -> str:
    """The first of the networks that a file holds, "" for none."""
    if checkpoint.path is None:
        return ""
    found = read_checkpoint(checkpoint.path)
    fitting = (name for name, network in networks.items() if holds_network(found, checkpoint.rules, _shapes(network)))
    return next(fitting, "")


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's state, without making its values."""
    return {key: tuple(value.shape) for key, value in _without_values(name).state_dict().items()}


class _NoInitialisation(TorchFunctionMode):
    """Leaves out changes of tensors in place: without values there are none to change, and most time goes there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], torch.Tensor):
            return args[0]
        return func(*args, **(kwargs or {}))


def _without_values(name: str) -> nn.Module:
    with torch.device("meta"), _NoInitialisation():
        body: nn.Module = timm.create_model(name, num_classes=0)
    return body


_KIN = 48
"""So many networks are tried for a file that is not that of its name: a second or two."""


def likely_network(name: str, state: Mapping[str, Any]) -> str:
    """The network of timm to which a state dict belongs, "" for none among those most like `name` in name.

    They are of the same source file. Many differ in nothing that a file tells: the first that fits is taken.
    """
    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    kin = sorted(timm.list_models(module=module), key=lambda other: -SequenceMatcher(None, name, other).ratio())
    return next((other for other in kin[:_KIN] if _is_of(other, state)), "")


def _is_of(name: str, state: Mapping[str, Any]) -> bool:
    try:
        body = _without_values(name)
    except (NotImplementedError, RuntimeError, ValueError) as error:  # some compute with values while they are built
        log.debug("timm:%s cannot be built without values: %s", name, error)
        return False
    expected = {key: tuple(value.shape) for key, value in body.state_dict().items()}
    return holds_network(state, (KeyRule(drop=BESIDE),), expected, [child for child, _ in body.named_children()])


# --- the network -----------------------------------------------------------------------------------------------------


def _body(name: str, output_stride: str | int, checkpoint: Checkpoint) -> tuple[nn.Module, tuple[int, int] | None]:
    """The network without its classifier, in eval mode, and the one input size it takes (None: any)."""
    source = _pretrained_source(name) if checkpoint.kind == "pretrained" else {}
    how, body = _first_that_builds(name, output_stride, checkpoint.seed)
    if source:
        body = _create(name, {**how, **source}, checkpoint.seed)
    if not hasattr(body, "forward_intermediates"):
        raise MismatchError(f"timm:{name} gives no intermediate maps (forward_intermediates); choose another network")
    return body, None if _takes(body, _trial_size(body)) else _own_size(body)


def _first_that_builds(name: str, output_stride: str | int, seed: int) -> tuple[dict[str, Any], nn.Module]:
    """Arguments under which a network can be built, the most wanted that work, and the network they give.

    What a network accepts is told only by trying: transformers take any input size with `dynamic_img_size`, many CNNs
    an `output_stride`, window transformers `strict_img_size`.
    """
    stride = 8 if output_stride == "auto" else output_stride
    for how in ({"dynamic_img_size": True}, {"output_stride": stride}, {"strict_img_size": False}, {}):
        try:
            return how, _create(name, how, seed)
        except (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError, KeyError) as error:
            log.debug("timm:%s cannot be built with %s: %s", name, how, error)
    raise MismatchError(f"timm:{name} cannot be built without its classifier; choose another network")


def _create(name: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    with seeded(seed):
        body: nn.Module = timm.create_model(name, num_classes=0, **arguments)
    return body.eval()


def _patch(body: nn.Module) -> int:
    """Side of a transformer's patches in pixels; 1 for other networks."""
    size = getattr(getattr(body, "patch_embed", None), "patch_size", 1)
    return int(size[0] if isinstance(size, (tuple, list)) else size)


def _trial_size(body: nn.Module) -> tuple[int, int]:
    """A small input that networks of any size take: 128 pixels, or the multiple of the patch below."""
    side = 128 // _patch(body) * _patch(body)
    return side, side


def _own_size(body: nn.Module) -> tuple[int, int]:
    _, height, width = timm.data.resolve_model_data_config(body)["input_size"]
    return height, width


def _takes(body: nn.Module, size: tuple[int, int]) -> bool:
    try:
        _run(body, size, normed=False)
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


# --- its maps --------------------------------------------------------------------------------------------------------


def _intermediates(
    body: nn.Module, inputs: torch.Tensor, normed: bool, places: Sequence[int] | None
) -> list[torch.Tensor]:
    """Maps (B, D, h, w) at `places` (None: all), shallow to deep; class and register tokens left out."""
    maps: list[torch.Tensor] = body.forward_intermediates(  # type: ignore[operator]
        inputs,
        indices=None if places is None else list(places),
        norm=normed,
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    return maps


def _run(body: nn.Module, size: tuple[int, int], normed: bool) -> list[torch.Tensor]:
    with torch.no_grad():
        return _intermediates(body, torch.zeros(1, 3, *size), normed, None)


def _measure(name: str, body: nn.Module, size: tuple[int, int]) -> tuple[list[torch.Tensor], bool]:
    """All maps of a black picture, and whether the network can put its final norm on them."""
    for normed in (True, False):
        try:
            maps = _run(body, size, normed)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            failure = error
            continue
        return maps, normed
    raise MismatchError(
        f"timm:{name} does not give maps for a picture of {size[0]}×{size[1]} ({failure}); choose another network"
    ) from failure


def _taps(
    name: str, body: nn.Module, maps: Sequence[torch.Tensor], size: tuple[int, int]
) -> tuple[list[Tap], dict[str, int]]:
    """The taps, with `last` at the end, and the place of each among the maps."""
    taps = [
        Tap(name=label, channels=given.shape[1], stride=_stride(name, label, given, size))
        for label, given in zip(_labels(body, maps), maps, strict=True)
    ]
    order = {tap.name: place for place, tap in enumerate(taps)}
    return [*taps, replace(taps[-1], name=LAST, alias_of=taps[-1].name)], {**order, LAST: len(taps) - 1}


def _stride(name: str, label: str, given: torch.Tensor, size: tuple[int, int]) -> int:
    if given.ndim != 4 or size[0] % given.shape[2] or size[0] // given.shape[2] != size[1] // given.shape[3]:
        raise MismatchError(
            f"timm:{name}: map {label} of a picture of {size[0]}×{size[1]} is {tuple(given.shape)}; expected "
            "(1, D, h, w) whose cells tile the picture; choose another network"
        )
    return size[0] // given.shape[2]


def _labels(body: nn.Module, maps: Sequence[torch.Tensor]) -> list[str]:
    """Names for people: stem and stage1 … of networks in stages, block1 … of stacks of equal blocks."""
    count = len(maps)
    if len(getattr(body, "blocks", ())) == count and len({given.shape for given in maps}) == 1:
        return [f"block{i}" for i in range(1, count + 1)]
    stem = int(_module_names(body, count)[0].startswith(("stem", "act1", "bn1", "conv")))
    return ["stem"] * stem + [f"stage{i}" for i in range(1, count + 1 - stem)]


def _module_names(body: nn.Module, count: int) -> list[str]:
    info = getattr(body, "feature_info", None)
    rows = getattr(info, "info", info) or [{}] * count
    return [str(row.get("module", "")) for row in rows]


def _check_stride(name: str, seen: float, wanted: str | int) -> None:
    if wanted == "auto":
        log.info("timm:%s: output stride %d", name, seen)
    elif seen != wanted:
        raise SettingError(
            f"timm.output_stride={wanted} does not fit {name}: its deepest map has a stride of {seen}; leave it at auto"
        )
