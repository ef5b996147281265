"""How the peers train one network: plain torch, one thread, as a user writes it.

`report(step, values)` is called after every epoch (MLP) or every five updates (LSTM).
"""

import math

import torch
from torch import nn

MLP_EPOCHS, LSTM_UPDATES, LSTM_REPORT_EVERY = 30, 100, 5


def train(problem, settings, data, report):
    """Trains one network for `mlp10`, `mlp50`, `lstm16` or `lstm64`."""
    how = train_mlp if problem.startswith("mlp") else train_lstm
    how(settings, data, report, width=int(problem[-2:]))


def train_mlp(settings, data, report, width, depth=8, batch=64):
    """SGD with momentum on four fifths of the points; the rest validates."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, classes = (torch.tensor(part) for part in data)
    split = len(inputs) * 4 // 5
    stack = []
    for fan_in in (2, *[width] * (depth - 1)):
        linear = nn.Linear(fan_in, width)
        nn.init.normal_(linear.weight, std=settings["init_scale"] / math.sqrt(fan_in))
        nn.init.zeros_(linear.bias)
        stack += [linear, nn.Tanh(), nn.Dropout(settings["dropout"])]
    network = nn.Sequential(*stack, nn.Linear(width, 2))
    optimiser = torch.optim.SGD(network.parameters(), lr=settings["learning_rate"], momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(1, MLP_EPOCHS + 1):
        network.train()
        total = 0.0
        batches = torch.randperm(split).split(batch)
        for chosen in batches:
            loss = loss_of(network(inputs[chosen]), classes[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        network.eval()
        with torch.no_grad():
            outputs = network(inputs[split:])
            right = (outputs.argmax(1) == classes[split:]).float().mean().item()
            held_out = loss_of(outputs, classes[split:]).item()
        report(
            epoch,
            {"train_loss": total / len(batches), "val_loss": held_out, "val_accuracy": right},
        )


class Writer(nn.Module):
    """Embedding, LSTM, read-out."""

    def __init__(self, alphabet, width, dropout):
        super().__init__()
        self.embedding = nn.Embedding(alphabet, 16)
        self.recurrent = nn.LSTM(16, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.read_out = nn.Linear(width, alphabet)

    def forward(self, codes):
        states, _ = self.recurrent(self.embedding(codes))
        return self.read_out(self.dropout(states))


def train_lstm(settings, data, report, width, length=100, batch=32):
    """Adam with clipping on random windows; what is reported is the loss of training."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codes, alphabet = torch.tensor(data[0]), data[1]
    network = Writer(alphabet, width, settings["dropout"])
    for name, weight in network.recurrent.named_parameters():
        if name.startswith("weight"):
            nn.init.normal_(weight, std=settings["init_scale"] / math.sqrt(width))
    optimiser = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"])
    loss_of = nn.CrossEntropyLoss()
    windows = codes.unfold(0, length + 1, 1)
    total = 0.0
    for update in range(1, LSTM_UPDATES + 1):
        window = windows[torch.randint(len(windows), (batch,))]
        outputs = network(window[:, :-1])
        loss = loss_of(outputs.flatten(0, 1), window[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        total += loss.item()
        if update % LSTM_REPORT_EVERY == 0:
            mean = total / LSTM_REPORT_EVERY
            report(update, {"train_loss": mean, "val_loss": mean, "val_accuracy": 0.0})
            total = 0.0
