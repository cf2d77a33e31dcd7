import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.cases import each
from helpers.estimators import PATHWISE
from helpers.images import C, logic_gates, stripes, trainer
from torch.nn.functional import cross_entropy

from taugrad import REBAR, GumbelSoftmax, STGumbelSoftmax
from taugrad.circuits import Circuit, input_bits
from taugrad.data.batches import Batches, ShuffledBatches
from taugrad.errors import DataError
from taugrad.models.logic_gates import (
    LogicGates,
    most_probable,
    random_wiring,
    readers,
)


def truth(g, a, b):
    """Bit 2a + b of g, counted from the lowest."""
    return g >> (2 * a + b) & 1


def evaluated(circuit, bits):
    """Sums of the classes' groups, (n, classes), of bits (n, inputs), by integer arithmetic of numpy."""
    x = bits.numpy().astype(np.int64).T
    for a, b, gate in circuit.layers:
        x = truth(gate.numpy()[:, None], x[a.numpy()], x[b.numpy()])
    return x.reshape(circuit.classes, -1, x.shape[1]).sum(1).T


def mixed(z, a, b):
    """Outputs of gates with weights `z` (gates, 16) of the functions, each the multilinear extension of its table."""
    y = torch.zeros_like(a)
    for g, (i, j) in itertools.product(range(16), itertools.product((0, 1), repeat=2)):
        if truth(g, i, j):
            y = y + z[:, g, None] * (a if i else 1 - a) * (b if j else 1 - b)
    return y


def shuffled(model, seed=0):
    """The model with random gates and choices of wiring."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 3)
    return model


@each("inputs, gates", [(784, 8000), (8000, 8000), (9, 9), (2, 2), (2, 30), (50, 3), (3, 3)])
def test_the_wiring_gives_each_gate_two_inputs_and_uses_all_of_them_evenly(inputs, gates):
    a, b = random_wiring(inputs, gates)
    assert len(a) == len(b) == gates
    assert (a != b).all()
    uses = torch.cat([a, b]).bincount(minlength=inputs)
    assert uses.max() - uses.min() <= 1
    if inputs == gates:
        assert torch.equal(a, torch.arange(gates))


@pytest.mark.usefixtures("backend")
@each("depth, candidates, soft", itertools.product((1, 3), (None, 3), (True, False)))
def test_the_classes_and_their_gradient_are_those_of_the_dense_network(depth, candidates, soft):
    model = shuffled(logic_gates(depth=depth, candidates=candidates).model).double()
    x = torch.rand(16, 7, dtype=torch.float64).round()
    weights = torch.randn(7, C, dtype=torch.float64)
    drawn = []  # of a soft or a hard choice, as leaves

    def choose(logits):
        drawn.append((logits.softmax(-1) if soft else most_probable(logits)).detach().requires_grad_())
        return drawn[-1]

    actual = model.class_logits(x, choose)
    found = torch.autograd.grad((actual * weights).sum(), drawn)
    expected, chosen = x, iter(drawn)
    for layer in model.layers:
        z = next(chosen)
        a, b = (
            (layer.a, layer.b)
            if candidates is None
            else torch.einsum("agk,agkj->agj", next(chosen), expected[layer.places])
        )
        expected = mixed(z, *((expected[a], expected[b]) if candidates is None else (a, b)))
    expected = torch.stack([part.sum(0) for part in expected.chunk(C)], 1) / model.scale
    torch.testing.assert_close(actual, expected)
    for grad, oracle in zip(found, torch.autograd.grad((expected * weights).sum(), drawn), strict=True):
        torch.testing.assert_close(grad, oracle)


@each("candidates", [None, 3])
@each("estimator", PATHWISE)
def test_every_pathwise_estimator_trains_all_layers_and_a_hard_one_by_bits(estimator, candidates):
    model = logic_gates(candidates=candidates).model
    shuffled(model)
    x, labels = torch.rand(40, 4, 4).round(), torch.arange(40) % C
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, y: seen.append(y))
    model.loss_terms(x, labels, estimator, 0.7)["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    hard = not isinstance(estimator, GumbelSoftmax)
    assert all(((y == 0) | (y == 1)).all() == hard for y in seen)
    assert len(seen) == 2


@each(
    "changes, size",
    [
        ({}, (4, 4)),
        ({"depth": 1}, (4, 4)),
        ({"candidates": 4}, (4, 4)),
        ({"thresholds": 3}, (4, 4)),
        ({"thresholds": 1, "gates": 48}, (3, 4, 4)),
    ],
)
def test_the_circuit_by_integer_arithmetic_is_the_network_that_is_evaluated(changes, size):
    model = shuffled(logic_gates(image_size=size, **changes).model)
    x = torch.rand(50, *size)
    x = x if model.thresholds else x.round()
    circuit = model.circuit()
    assert circuit.inputs == math.prod(size) * (model.thresholds or 1)
    bits = x.flatten(1)
    if model.thresholds:
        bits = torch.cat([(bits > k / (model.thresholds + 1)).float() for k in range(1, model.thresholds + 1)], 1)
    sums = evaluated(circuit, bits)
    with torch.no_grad():
        logits = model.class_logits(model.bits(x), most_probable)
    assert np.array_equal((logits * model.scale).round().numpy(), sums)
    assert torch.equal(model.greedy(x), logits.argmax(-1))
    labels = torch.arange(50) % C
    terms, s = model.evaluation_terms(x, labels, torch.Generator().manual_seed(0))
    torch.testing.assert_close(s[:, 0], logits)
    torch.testing.assert_close(terms["loss"], cross_entropy(logits, labels))
    assert terms["accuracy"] == (logits.argmax(-1) == labels).float().mean()
    a, b, gate = circuit.layers[-1]
    assert a.dtype == b.dtype == gate.dtype == torch.int64


def test_terms_of_gates_that_are_sure_agree_and_of_gates_that_know_nothing_are_even():
    x, labels = torch.rand(60, 4, 4).round(), torch.arange(60) % C
    evaluate = partial(LogicGates.evaluation_terms, generator=torch.Generator().manual_seed(0))
    model = shuffled(logic_gates().model)
    with torch.no_grad():
        for layer in model.layers:
            layer.logits.copy_(100 * most_probable(layer.logits))
        terms, _ = evaluate(model, x, labels)
        assert terms["accuracy"] == terms["drawn_accuracy"] == terms["relaxed_accuracy"]
        assert terms["gap"] == 0
        assert terms["gate_entropy"] < 1e-6
        share = model.shares()
        assert share.shape == (2, 16)
        perplexity = [math.exp(-sum(p * math.log(p) for p in row if p > 0)) for row in share.tolist()]
        assert terms["gate_perplexity"].item() == pytest.approx(sum(perplexity) / 2, rel=1e-5)
        for layer in model.layers:
            layer.logits.zero_()
        terms, s = evaluate(model, x, labels)
        assert terms["gate_entropy"].item() == pytest.approx(math.log(16))
        assert terms["gate_perplexity"].item() == pytest.approx(1)
        assert (s == 0).all()  # all gates are the constant 0
        relaxed = model.class_logits(model.bits(x), lambda logits: logits.softmax(-1))
        torch.testing.assert_close(relaxed * model.scale, torch.full((60, C), 10 / 2))


def test_a_new_network_passes_a_pixel_to_each_output():
    model = logic_gates(gates=48, depth=3).model
    x = torch.rand(30, 4, 4).round()
    first = model.layers[0].a
    expected = x.flatten(1)[:, first].unflatten(1, (C, -1)).sum(-1)
    torch.testing.assert_close(model.class_logits(model.bits(x), most_probable) * model.scale, expected)
    assert (model.shares()[:, 12] == 1).all()


def test_thresholds_give_an_intensity_its_bits():
    x = torch.tensor([0.0, 0.25, 0.26, 0.5, 0.75, 0.76, 1.0])
    expected = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
    assert torch.equal(input_bits(x.unsqueeze(0), 3).view(3, 7), expected.bool())


def test_readers_are_counted_among_the_gates_that_the_outputs_depend_on():
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        sizes = [7, 12, 12, 6]
        layers = tuple(
            (*torch.randint(n, (2, m), generator=g), torch.randint(16, (m,), generator=g))
            for n, m in itertools.pairwise(sizes)
        )
        live, counts = set(range(6)), [0] * 7
        for a, b, gate in reversed(layers):
            reads = [
                place
                for i in live
                for place, differs in (
                    (a[i].item(), any(truth(int(gate[i]), 0, j) != truth(int(gate[i]), 1, j) for j in (0, 1))),
                    (b[i].item(), any(truth(int(gate[i]), j, 0) != truth(int(gate[i]), j, 1) for j in (0, 1))),
                )
                if differs
            ]
            live, counts = set(reads), [reads.count(n) for n in range(7)]
        assert readers(Circuit(7, layers, 2)).tolist() == counts


@each("size, thresholds", [((4, 4), None), ((4, 6), 3), ((3, 4, 6), 2), ((2, 4, 4), None)])
def test_pictures_show_functions_and_pixels(size, thresholds):
    model = shuffled(logic_gates(image_size=size, thresholds=thresholds).model)
    pictures = model.pictures(torch.zeros(1, *size), torch.zeros(1))
    assert pictures["gates"].shape == (2 * 8, 16 * 8)
    assert pictures["pixels_read"].shape == (size if size[0] != 2 else (8, 4))
    for picture in pictures.values():
        assert picture.min() >= 0
        assert picture.max() == 1


@pytest.mark.parametrize("candidates", [None, 4], ids=["fixed", "learned"])
def test_a_small_network_learns_stripes_and_its_circuit_with_it(candidates, tmp_path):
    split = stripes()
    task = logic_gates(gates=60, candidates=candidates, optimizer=partial(torch.optim.Adam, lr=0.1), residual=2.0)
    run = trainer(tmp_path, max_steps=100, limit_val_batches=0)
    before = run.test(task, Batches(split, 40), verbose=False)[0]
    run.fit(task, ShuffledBatches(split, 40, seed=0, stack=3), Batches(split, 40))
    after = run.test(task, Batches(split, 40), verbose=False)[0]
    assert after["test/accuracy"] > 0.9 > before["test/accuracy"] + 0.2
    assert after["test/loss"] < before["test/loss"] - 0.2
    assert (
        np.mean(evaluated(task.model.circuit(), split.images.flatten(1) // 255).argmax(1) == split.labels.numpy()) > 0.9
    )


def test_a_checkpoint_has_its_wiring_whatever_the_seed():
    for candidates in (None, 3):
        trained, other = (logic_gates(seed=seed, candidates=candidates).model for seed in (1, 2))
        shuffled(trained)
        assert not torch.equal(trained.circuit().layers[0][1], other.circuit().layers[0][1])
        other.load_state_dict(trained.state_dict())
        for a, b in zip(trained.circuit().layers, other.circuit().layers, strict=True):
            assert all(map(torch.equal, a, b))
        again = logic_gates(seed=1, candidates=candidates).model
        assert torch.equal(
            again.layers[1].state_dict()["b" if candidates is None else "places"],
            trained.layers[1].state_dict()["b" if candidates is None else "places"],
        )


@each(
    "changes, sentence",
    [
        ({"gates": 31}, "gates must be a multiple of classes, 3, got 31"),
        ({"gates": 0}, "gates must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"scale": 0.0}, "scale must be a positive finite number, got 0.0"),
        ({"thresholds": 0}, "thresholds must be at least 1, got 0"),
        ({"candidates": 1}, "candidates must be at least 2, got 1"),
        ({"residual": math.nan}, "residual must be a finite number in float32, got nan"),
        ({"residual": 1e39}, r"residual must be a finite number in float32, got 1e\+39"),
        ({"seed": 2**64}, r"seed must be below 2\^64, got 18446744073709551616"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"residual": "5"}, "residual must be a number, got '5'"),
        ({"image_size": [4, 0]}, r"image_size\[1\] must be at least 1, got 0"),
        ({"image_size": [1, 1]}, "image_size must have at least 2 bits, got 1"),
        ({"image_size": [4]}, "image_size must be height and width, or channels, height and width"),
    ],
)
def test_bad_sizes_get_a_sentence(changes, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        logic_gates(**changes)


@each(
    "changes, x, labels, sentence",
    [
        (
            {},
            0.5,
            0,
            "images must be 0 or 1 without model.thresholds, got 0.5: data.binarize=static makes them so, model.t",
        ),
        ({}, 255.0, 0, "images must be 0 or 1 without model.thresholds, got 255"),
        ({}, math.nan, 0, "images must be 0 or 1 without model.thresholds, got nan"),
        ({"thresholds": 3}, 1.5, 0, r"images must be in \[0, 1\], got 1.5 to 1.5"),
        (
            {},
            1.0,
            3,
            "labels must be in 0 to 2, got 3 to 3: model.classes must be the data's number of classes, and every",
        ),
        ({}, 1.0, -1, "labels must be in 0 to 2, got -1 to -1: model.classes must be"),
    ],
)
def test_bad_images_and_labels_get_a_sentence_in_training_and_evaluation(changes, x, labels, sentence):
    model = logic_gates(**changes).model
    x, labels = torch.full((2, 4, 4), x), torch.full((2,), labels)
    with pytest.raises(DataError, match=sentence):
        model.loss_terms(x, labels, STGumbelSoftmax(), 1.0)
    with pytest.raises(DataError, match=sentence):
        model.evaluation_terms(x, labels, torch.Generator())


def test_an_estimator_without_samples_is_refused():
    with pytest.raises(TypeError, match="estimator must be a pathwise estimator, which gives samples, got REBAR"):
        logic_gates(estimator=REBAR())
