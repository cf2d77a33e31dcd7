import json
import sys

import pytest
import torch
from helpers.configs import CONF, composed
from helpers.images import cat_vae, loaders, trainer
from helpers.oracles import enumerated_expectation
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import Logger

from taugrad.commands.probe import run_probe, toy
from taugrad.config import instantiate
from taugrad.errors import ConfigError
from taugrad.estimators import RLOO, Enumeration, GumbelRao, ReinMax, STGumbelSoftmax, StraightThrough
from taugrad.probe import gradients, probe, reference
from taugrad.training.checkpoints import SaveConfig, WholeCheckpoints
from taugrad.training.gradient_probe import GradientProbe


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(3)
    A = torch.randn(6, 6, generator=g, dtype=torch.float64)
    logits = torch.randn(2, 2, 3, generator=g, dtype=torch.float64)
    f = lambda z: torch.einsum("...i,ij,...j->...", z.flatten(-2), A, z.flatten(-2)).sin()  # noqa: E731
    return f, logits


def test_the_reference_is_the_enumerated_gradient(problem):
    f, logits = problem
    exact, how = reference(f, logits)
    assert how == "enumeration"
    for i in range(2):
        leaf = logits[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(enumerated_expectation(f, leaf), leaf)
        torch.testing.assert_close(exact[i], expected)


def test_the_large_sample_reference_is_near_the_exact_gradient(problem, monkeypatch):
    f, logits = problem
    exact, _ = reference(f, logits)
    monkeypatch.setattr("taugrad.probe._MOST_BITS", 0)
    estimate, how = reference(f, logits, samples=100_000)
    assert how == "RLOO, 100,000 samples"
    assert (estimate - exact).norm() < 0.02 * exact.norm()


def test_the_exact_estimator_has_no_error_and_cosine_one(problem):
    f, logits = problem
    exact, _ = reference(f, logits)
    quality = probe(Enumeration(), f, logits, exact, draws=50)
    assert quality.bias < 1e-7
    assert quality.variance < 1e-14
    assert quality.cosine == pytest.approx(1)
    assert quality.milliseconds > 0


def test_the_numbers_are_those_of_the_definitions(problem):
    f, logits = problem
    exact, _ = reference(f, logits)
    quality = probe(StraightThrough(), f, logits, exact, draws=20_000)
    torch.manual_seed(99)
    G = gradients(StraightThrough(), f, logits, 1.0, 50_000).flatten(1)
    g = exact.flatten()
    scale2 = g.square().sum()
    bias2 = (G.mean(0) - g).square().sum() / scale2
    variance = G.var(0).sum() / scale2
    cosine = torch.cosine_similarity(G, g.expand_as(G), dim=-1).mean()
    signal = G.mean(0).square().sum() / scale2
    assert quality.bias == pytest.approx(bias2.sqrt().item(), abs=6 * quality.bias_error)
    assert quality.variance == pytest.approx(variance.item(), abs=6 * quality.variance_error)
    assert quality.mse == pytest.approx((bias2 + variance).item(), abs=6 * quality.mse_error)
    assert quality.cosine == pytest.approx(cosine.item(), abs=6 * quality.cosine_error)
    assert quality.snr == pytest.approx((signal / variance).item(), rel=0.2)


def test_an_unbiased_estimator_shows_no_bias_and_a_biased_one_its_own(problem):
    f, logits = problem
    exact, _ = reference(f, logits)
    unbiased = probe(RLOO(), f, logits, exact, draws=20_000)
    biased = probe(STGumbelSoftmax(), f, logits, exact, tau=1.0, draws=20_000)
    assert unbiased.bias < 0.05
    assert biased.bias > 0.2
    assert biased.bias > 6 * biased.bias_error


def test_gumbel_rao_shows_less_variance_than_st_gumbel_softmax(problem):
    f, logits = problem
    exact, _ = reference(f, logits)
    st, rao = (probe(e, f, logits, exact, tau=0.3, draws=2000) for e in (STGumbelSoftmax(), GumbelRao(draws=10)))
    assert rao.variance + 3 * rao.variance_error < st.variance


@pytest.mark.parametrize(("draws", "sentence"), [(15, "draws must be at least 20"), (25, "a multiple of 10, got 25")])
def test_bad_draws_get_a_sentence(draws, sentence, problem):
    f, logits = problem
    with pytest.raises(ValueError, match=sentence):
        probe(ReinMax(), f, logits, reference(f, logits)[0], draws=draws)


def test_a_constant_f_gets_a_sentence(problem):
    _, logits = problem
    with pytest.raises(ValueError, match="the exact gradient is zero"):
        probe(ReinMax(), lambda z: z.sum((-2, -1)), logits, torch.zeros_like(logits))


# The script's pipeline


def probed(tmp_path, *overrides):
    keys = [f"out={tmp_path}", "draws=40", "taus=[0.5,1.0]", "estimators=[reinmax,straight_through]", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return run_probe(compose("probe", keys), CONF / "estimator")


def test_the_probe_leaves_a_table_json_and_a_picture(tmp_path, capsys):
    qualities = probed(tmp_path)
    assert [(q.estimator, q.tau) for q in qualities] == [
        ("reinmax", 0.5),
        ("reinmax", 1.0),
        ("straight_through", 0.5),
        ("straight_through", 1.0),
    ]
    written = json.loads((tmp_path / "probe.json").read_text())
    assert written["reference"] == "enumeration"
    assert written["logits"] == list(toy()[1].shape)
    assert [r["cosine"] for r in written["results"]] == [q.cosine for q in qualities]
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "reinmax" in out
    assert "cosine" in out


def test_the_probe_takes_a_trained_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    small = ["model.latents=2", "model.categories=4", "model.encoder=[16]", "model.decoder=[16]"]
    config = composed("model=cat_vae", *small)
    saved = SaveConfig({key: config[key] for key in ("task", "data", "seed")})
    run = trainer(tmp_path, saved, max_steps=1, plugins=[WholeCheckpoints()])
    run.strategy.connect(instantiate(config["task"]))
    run.save_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    qualities = probed(tmp_path, f"run={tmp_path}", "images=3")
    assert len(qualities) == 4
    assert json.loads((tmp_path / "probe.json").read_text())["logits"] == [3, 2, 4]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("estimators=[reinmx]", "estimators must be names of conf/estimator, got reinmx; did you mean reinmax"),
        ("taus=[0.0]", "taus must be a positive finite number, got 0.0"),
        ("run=nowhere", "run must be a run's directory that holds checkpoints/best.ckpt, got nowhere"),
        (f"run={300 * 'x'}", "run must be a run's directory that holds checkpoints/best.ckpt, got xxx"),
        ("taus=[]", r"taus must be a list of at least one, got \[\]"),
        ("estimators=[]", r"estimators must be a list of at least one, got \[\]"),
        ("draws=25", "draws must be a multiple of 10, got 25"),
        ("reference_samples=10", "reference_samples must be at least 100, got 10"),
        ("draws=many", "draws must be int, got 'many'"),
    ],
)
def test_bad_arguments_of_the_probe_get_a_sentence(override, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        probed(tmp_path, override)


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="this needs matplotlib: pip install 'taugrad"):
        probed(tmp_path)


# The callback


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self):
        self.logged = []

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))


def test_the_callback_logs_cosine_and_snr_and_leaves_the_training_as_it_was(tmp_path):
    weights = []
    recorder = Recorder()
    for callbacks in ((), (GradientProbe(every=5, images=2, draws=20),)):
        torch.manual_seed(0)
        task = cat_vae(latents=2)
        run = trainer(tmp_path, *callbacks, max_steps=12, logger=recorder if callbacks else False, log_every_n_steps=1)
        run.fit(task, *loaders())
        weights.append(torch.nn.utils.parameters_to_vector(task.parameters()))
    assert torch.equal(*weights)
    probes = [(step, m) for step, m in recorder.logged if "probe/cosine" in m]
    assert [step for step, _ in probes] == [5, 10]
    assert all(-1 <= m["probe/cosine"] <= 1 and m["probe/snr"] < 1e6 for _, m in probes)
