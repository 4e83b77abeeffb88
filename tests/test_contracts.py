"""Everything registered keeps its contract, whoever registered it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench import registry
from bench.backbone import Backbone
from bench.errors import InputError, UnknownNameError
from bench.estimators import _deepusps, basnet, u2net
from bench.records import AdapterRequest, Checkpoint, DatasetCard, EstimatorRequest
from bench.testing import check_adapter, check_estimator, check_estimator_card, check_method_card, check_protocol

ARGUMENTS = {"timm": "resnet18"}
SMALL = {"dino": "small16", "dinov2": "small", "dinov3": "small", "maskcontrast": "small"}
"""The least of the networks of methods that have several: full sizes are built by the tests of their adapters."""


def build(name: str, argument: str = ""):
    card = registry.card("methods", name)
    checkpoint = Checkpoint(name="random", kind="random" if card.trainable else "none")
    options = card.options(arch=SMALL[name]) if name in SMALL else card.options()
    request = AdapterRequest(card=card, checkpoint=checkpoint, argument=argument, options=options, classes=3)
    return registry.load(card.factory)(request)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_method_cards_state_their_facts(name):
    check_method_card(registry.card("methods", name))


@pytest.mark.parametrize("name", registry.names("methods"))
def test_adapters_keep_their_contract(name):
    check_adapter(build(name, ARGUMENTS.get(name, "")))


def test_a_vision_transformer_keeps_the_contract():
    check_adapter(build("timm", "vit_tiny_patch16_224"))


SHORT = {"finetune": {"iterations": 80, "lr": 1.0, "decoder": "none", "crop": 24, "scale": "1,1", "fractions": "100%"}}
"""Settings that let a protocol reach the known answer in seconds."""


@pytest.mark.parametrize("name", registry.names("protocols"))
def test_protocols_keep_their_contract(name):
    check_protocol(registry.card("protocols", name), SHORT.get(name))


@pytest.mark.parametrize("name", registry.names("estimators"))
def test_estimators_keep_their_contract(name, monkeypatch):
    for module in (_deepusps, basnet, u2net):
        monkeypatch.setattr(module, "INPUT", 64)
    card = registry.card("estimators", name)
    check_estimator_card(card)
    checkpoint = Checkpoint(name="random", kind="random" if card.trainable else "none")
    check_estimator(
        registry.load(card.factory)(EstimatorRequest(card=card, checkpoint=checkpoint, options=card.options()))
    )


@pytest.mark.parametrize("name", registry.names("datasets"))
def test_dataset_cards_state_their_facts(name):
    card = registry.card("datasets", name)
    assert isinstance(card, DatasetCard)
    assert card.name == name
    assert len(card.classes) > 1
    assert card.background is None or card.classes[card.background] == "background"
    assert callable(registry.load(card.prepare))


def test_a_random_initialisation_is_a_function_of_its_seed():
    card = registry.card("methods", "supervised")

    def weights(seed):
        checkpoint = Checkpoint(name="random", kind="random", seed=seed)
        adapter = registry.load(card.factory)(AdapterRequest(card=card, checkpoint=checkpoint, options=card.options()))
        return torch.cat([p.flatten()[:10] for p in adapter.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_nothing_is_registered_by_a_name_in_the_core():
    """The built-ins come in by entry points: cards load without torch."""
    code = (
        "import sys\nfrom bench import registry\n"
        "for kind in registry.GROUPS: registry.cards(kind)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(UnknownNameError, match=r"no method called 'swaf'.*'swav'.*moco_v2.*bench\.adapters"):
        registry.card("methods", "swaf")


def test_a_broken_plugin_is_named_and_does_not_hide_the_others(monkeypatch, caplog):
    from importlib.metadata import EntryPoint

    points = dict(registry._points("methods"))
    broken = EntryPoint("broken", "no.such.module:CARD", "bench.adapters")
    monkeypatch.setattr(registry, "_points", lambda kind: {**points, "broken": broken})
    monkeypatch.setattr(registry, "origin", lambda kind, name: "some-plugin")
    with pytest.raises(InputError, match=r"'broken' of some-plugin cannot be loaded: ModuleNotFoundError"):
        registry.card("methods", "broken")
    assert "swav" in registry.cards("methods")
    assert "cannot be loaded" in caplog.text


class Blind(torch.nn.Module):
    """A network that looks at the rest of its batch."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("network", "channels", "says"),
    [
        (Blind(), 3, "changes by"),
        (torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.MaxPool2d(2)), 4, "its tap promises"),
    ],
)
def test_broken_adapters_are_found_out(network, channels, says):
    with pytest.raises(AssertionError, match=says):
        check_adapter(Backbone(network, stride=1, channels=channels))


def test_maps_without_gradients_are_found_out():
    class Detached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.layer(x).detach().requires_grad_(True)

    with pytest.raises(AssertionError, match="gradient"):
        check_adapter(Backbone(Detached(), stride=1, channels=4))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"body_tap": "layer9"}, "body_tap 'layer9' is none of"),
        ({"decoder_tap": "last"}, "needs decoder_parameters"),
        ({"decoder_tap": "last", "decoder_parameters": tuple}, "gives none"),
        ({"decoder_tap": "last", "decoder_parameters": lambda: [torch.nn.Parameter(torch.ones(1))]}, "must be some"),
    ],
)
def test_a_decoder_that_is_not_the_adapters_is_refused(given, wanted):
    adapter = Backbone(torch.nn.Conv2d(3, 4, 1), stride=1, channels=4)
    for name, value in given.items():
        setattr(adapter, name, value)
    with pytest.raises(AssertionError, match=wanted):
        check_adapter(adapter)


def test_a_protocol_that_loses_pixels_is_found_out(monkeypatch):
    import dataclasses

    from bench.contracts import Outcome
    from bench.metrics import Counts

    card = registry.card("protocols", "kmeans")
    run = registry.load(card.run)

    def lossy(work, settings, seed):
        dense = run(work, settings, seed).counts.dense()
        dense[0] //= 2
        return Outcome(counts=Counts.from_dense(dense))

    real = registry.load
    monkeypatch.setattr(registry, "load", lambda target: lossy if target == "lossy" else real(target))
    with pytest.raises(AssertionError, match="counted"):
        check_protocol(dataclasses.replace(card, run="lossy"))
