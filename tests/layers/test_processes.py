"""A quantizer in two processes: gradients averaged by DDP, codes counted over both."""

import os

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from taugrad import STGumbelSoftmax
from taugrad.layers import CategoricalQuantizer

pytestmark = pytest.mark.system


def quantizer():
    torch.manual_seed(0)
    return CategoricalQuantizer(4, 8, STGumbelSoftmax(), logits="distance", loss="diversity", weight=0.1)


def _train(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=2)
    layer = DistributedDataParallel(quantizer())
    torch.manual_seed(rank)
    quantized, _, loss = layer(torch.randn(50, 4), 0.7)
    (quantized.square().sum() + loss).backward()
    indices = torch.arange(4) + 2 * rank  # 0 to 3 here, 2 to 5 there
    found = {name: p.grad for name, p in layer.module.named_parameters()}
    torch.save((found, layer.module.usage(indices)), os.path.join(directory, f"{rank}.pt"))  # noqa: PTH118
    distributed.destroy_process_group()


def test_two_processes_share_gradients_and_counts(tmp_path):
    multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)
    (first, usage), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected = []
    for rank in (0, 1):
        layer = quantizer()
        torch.manual_seed(rank)
        quantized, _, loss = layer(torch.randn(50, 4), 0.7)
        (quantized.square().sum() + loss).backward()
        expected.append({name: p.grad for name, p in layer.named_parameters()})
    for name in first:
        torch.testing.assert_close(first[name], (expected[0][name] + expected[1][name]) / 2)
    share = torch.tensor([1, 1, 2, 2, 1, 1]) / 8
    perplexity = torch.exp(-(share * share.log()).sum())
    for found in (usage, other):
        torch.testing.assert_close(found[0], perplexity)
        assert found[1] == 6 / 8
