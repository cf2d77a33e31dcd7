"""Models of images have exactly the capabilities that they state, and need no base class of ours."""

import inspect

import pytest
from helpers.images import cat_vae, logic_gates, semi_supervised, structured, token_prior, tokenizer
from torch import nn

from taugrad.models import base

EVERY = {"ImageModel", "Checked", "Evaluated", "Greedy", "Pictured"}
CAPABILITIES = {
    cat_vae: EVERY | {"Started", "Tested", "Latent"},
    structured: EVERY | {"Started", "Tested"},
    semi_supervised: EVERY,
    logic_gates: EVERY | {"Gated"},
    tokenizer: EVERY | {"Coded", "Decoded", "Latent"},
    token_prior: {"ImageModel", "Pictured", "Tested"},
}
PROTOCOLS = {
    name: protocol
    for name, protocol in vars(base).items()
    if getattr(protocol, "_is_protocol", False) and protocol.__module__ == base.__name__
}


@pytest.mark.parametrize("small", CAPABILITIES, ids=lambda small: small.__name__)
def test_each_model_has_exactly_its_capabilities(small):
    model = small().model
    assert {name for name, protocol in PROTOCOLS.items() if isinstance(model, protocol)} == CAPABILITIES[small]
    assert type(model).__mro__[1] is nn.Module
    assert {*PROTOCOLS} == set().union(*CAPABILITIES.values())  # every protocol has a model


@pytest.mark.parametrize("small", CAPABILITIES, ids=lambda small: small.__name__)
def test_its_methods_take_what_the_protocols_say(small):
    model = small().model
    for name in CAPABILITIES[small]:
        methods = [(n, m) for n, m in vars(PROTOCOLS[name]).items() if inspect.isfunction(m) and not n.startswith("_")]
        assert methods
        for method, stated in methods:
            found = inspect.signature(getattr(type(model), method)).parameters
            if small is semi_supervised and method == "encode":  # of q(z|x,y): no part of what it can do here
                continue
            assert [*found] == [*inspect.signature(stated).parameters], (name, method)


@pytest.mark.parametrize("small", CAPABILITIES, ids=lambda small: small.__name__)
def test_its_metrics_are_what_it_reports_and_may_change_arguments_that_it_has(small):
    task = small()
    assert {*task.model.metrics} <= {*task.metrics}
    arguments = inspect.signature(type(task.model)).parameters
    assert {*getattr(task.model, "changeable", ())} <= {*arguments}
    assert task.input_size == task.model.image_size == (4, 4)
