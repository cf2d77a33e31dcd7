"""Small tasks of models of images, data for them, and a trainer."""

from functools import partial
from inspect import isabstract

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from taugrad import Constant, Cosine, Linear, STGumbelSoftmax, estimators
from taugrad.data.batches import Batches, ShuffledBatches
from taugrad.data.images import Split
from taugrad.estimators import Estimator
from taugrad.models.cat_vae import CatVAE
from taugrad.models.logic_gates import LogicGates
from taugrad.models.semi_supervised import SemiSupervised
from taugrad.models.structured import Structured
from taugrad.models.token_prior import TokenPrior
from taugrad.models.tokenizer import Tokenizer
from taugrad.training.images import ImageTask

ESTIMATORS = sorted(
    name
    for name, c in vars(estimators).items()
    if isinstance(c, type) and issubclass(c, Estimator) and not isabstract(c)
)
N, K = 2, 3  # of the structured model
C = 3  # classes of the semi-supervised one and of logic gates


def task(model, **parts):
    """A task; what is not given is straight-through Gumbel-Softmax at a temperature of 1, and a fixed learning rate."""
    usual = {"estimator": STGumbelSoftmax(), "tau": Constant(1.0), "lr_factor": Constant(1.0)}
    return ImageTask(model, **usual | {"optimizer": partial(torch.optim.Adam, lr=1e-2, fused=True)} | parts)


def cat_vae(**changes):
    """A task of a small VAE, by changes of the model's arguments and of the task's."""
    sizes = {"latents": 3, "categories": 4, "encoder": [16], "decoder": [16], "image_size": [4, 4], "nll_samples": 20}
    parts = {"tau": Linear(1.0, 0.5, steps=50), "lr_factor": Cosine(1.0, 0.1, steps=50)}
    return _task(CatVAE, sizes, parts, changes)


def structured(**changes):
    """A task of a small structured model, by changes as for `cat_vae`."""
    sizes = {"latents": N, "categories": K, "first": [], "second": [8], "decoder": [8], "activation": "SiLU"}
    return _task(Structured, sizes | {"image_size": [4, 4], "nll_samples": 20}, {}, changes)


def semi_supervised(**changes):
    """A task of a small semi-supervised model, by changes as for `cat_vae`."""
    sizes = {"classes": C, "latent_size": 2, "channels": [4], "hidden": 16, "activation": "SiLU", "dropout": 0.0}
    return _task(SemiSupervised, sizes | {"augment": nn.Identity(), "alpha": 2.0, "image_size": [4, 4]}, {}, changes)


def logic_gates(**changes):
    """A task of a small network of logic gates, by changes as for `cat_vae`."""
    sizes = {"gates": 30, "depth": 2, "classes": C, "image_size": [4, 4]}
    return _task(LogicGates, sizes, {}, changes)


def tokenizer(**changes):
    """A task of a small tokenizer of grey pictures, by changes as for `cat_vae`."""
    sizes = {"image_size": [4, 4], "codes": 8, "dim": 2, "channels": [8], "blocks": 1}
    return _task(Tokenizer, sizes, {}, changes)


def token_prior(**changes):
    """A task of a small prior over the tokens of an untrained tokenizer, by changes as for `cat_vae`."""
    sizes = {"width": 8, "depth": 1, "heads": 2}
    return _task(TokenPrior, sizes | {"tokenizer": tokenizer().model}, {}, changes)


def _task(model, sizes, parts, changes):
    own = {
        name: value
        for name, value in changes.items()
        if name in ("estimator", "tau", "optimizer", "lr_factor", "kl_weight")
    }
    sizes = sizes | {name: value for name, value in changes.items() if name not in own}
    return task(model(**sizes), **parts | own)


def images(n=130):
    g = torch.Generator().manual_seed(0)
    return Split(255 * torch.randint(2, (n, 4, 4), generator=g, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def stripes(n=120):
    """Three classes that differ by one bright row, under some noise."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % C
    x = (torch.rand(n, 4, 4, generator=g) < 0.05).to(torch.uint8)
    x[torch.arange(n), labels] = 1
    return Split(255 * x, labels)


def loaders(split=None, stack=1):
    """Training and validation batches: 13 steps an epoch."""
    split = split or images()
    return ShuffledBatches(split, 10, seed=0, stack=stack), Batches(split, 10)


def trainer(tmp_path, *callbacks, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    quiet |= {"num_sanity_val_steps": 0}
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        default_root_dir=tmp_path, callbacks=list(callbacks), enable_checkpointing=checkpoints, **(quiet | arguments)
    )


class Losses(Callback):
    """Loss, tau, learning rate and batch of every optimizer step, as the model meets them."""

    def __init__(self):
        self.losses = {}

    def on_fit_start(self, trainer, pl_module):
        loss_terms = pl_module.model.loss_terms

        def noted(x, labels, estimator, tau):
            terms = loss_terms(x, labels, estimator, tau)
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            self.losses[trainer.global_step] = (terms["loss"].item(), tau, lr, x.flatten(1).sum(-1).tolist())
            return terms

        pl_module.model.loss_terms = noted


def first_and_last_loss(task, x, directory, steps=150):
    """Mean training losses of the first 5 and the last 20 steps on images x (50, 4, 4)."""
    losses = Losses()
    split = Split(x.repeat(30, 1, 1), torch.zeros(1500, dtype=torch.int64))  # one epoch
    run = trainer(directory, losses, max_steps=steps, limit_val_batches=0)
    run.fit(task, *loaders(split, stack=10))
    seen = torch.tensor([loss for loss, *_ in losses.losses.values()])
    assert len(seen) == steps
    return seen[:5].mean(), seen[-20:].mean()
