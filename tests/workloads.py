"""Trainings whose memory is estimated and measured: `build(batch_size)` returns what does one step."""

import torch
from torch.nn import functional as F


def mlp_adam(batch_size):
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 2048), torch.nn.ReLU(),
        torch.nn.Linear(2048, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    return _train(model, optimizer, torch.randn(batch_size, 784), torch.randint(10, (batch_size,)))


def mlp_sgd(batch_size):
    model = torch.nn.Sequential(torch.nn.Linear(784, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return _train(model, optimizer, torch.randn(batch_size, 784), torch.randint(10, (batch_size,)))


def cnn_sgd(batch_size):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(64 * 16 * 16, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return _train(model, optimizer, torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,)))


class Transformer(torch.nn.Module):
    def __init__(self, width=128, depth=2, words=1000, checkpointed=False):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.body = torch.nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.words, self.head = torch.nn.Embedding(words, width), torch.nn.Linear(width, words)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.words(x)
        if self.checkpointed:
            for layer in self.body.layers:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        else:
            x = self.body(x)
        return self.head(x).flatten(0, 1)


def transformer_adam(batch_size):
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = torch.randint(1000, (batch_size, 64)), torch.randint(1000, (batch_size * 64,))
    return _train(model, optimizer, x, y)


def transformer_bf16(batch_size):
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = torch.randint(1000, (batch_size, 64)), torch.randint(1000, (batch_size * 64,))
    return _train(model, optimizer, x, y, bf16=True)


def transformer_checkpointed(batch_size):
    model = Transformer(depth=6, words=100, checkpointed=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randint(100, (batch_size, 64)), torch.randint(100, (batch_size * 64,))
    return _train(model, optimizer, x, y)


WORKLOADS = {  # and batch sizes that were not traced
    "MLP, Adam": (mlp_adam, (2048, 8192)),
    "MLP, SGD": (mlp_sgd, (2048, 8192)),
    "CNN, SGD with momentum": (cnn_sgd, (64, 256)),
    "transformer, AdamW": (transformer_adam, (64, 256)),
    "transformer, AdamW, bf16": (transformer_bf16, (64, 256)),
    "transformer, SGD, checkpointing": (transformer_checkpointed, (64, 256)),
}


def _train(model, optimizer, x, y, bf16=False):
    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = model(x)
        F.cross_entropy(output.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
