"""A hundred updates of a population against torch.nn and torch.optim, one network at a time."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline import catalog, populations
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from tasks.base import seed_for
from tasks.networks import lstm, recurrent_walk
from tasks.networks.dropout import DropoutRates, DropoutStreams

UPDATES = 100
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
OPTIMISERS = {
    "adam": {"optimiser": "adam"},
    "sgd": {"optimiser": "sgd", "momentum": 0.9},
    "adamw": {"optimiser": "adamw", "weight_decay": 0.1},
}


def choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))


def cohort(
    network, members=3, first=0, dtype="float64", optimiser="adam", windows=(4, 12), **settings
):
    """Members that differ in all they may differ in; recurrent ones read text in windows (B, T)."""
    if network == "mlp":
        task = choice("tasks", "planar", points=400, batch_size=48)
    else:
        B, T = windows
        size = {"batch_size": B, "seq_len": T, "characters": 65 * B * T}
        task = choice("tasks", "char_text", text="pydoc", **size)
    trials = []
    for n in range(first, first + members):
        config = {"dropout": 0.15 * n, "init_scale": 0.5 + 0.2 * n} | settings
        trainer = Trainer(
            dtype=dtype,
            learning_rate=1e-3 * (n + 1),
            clip_norm=(1.0, None, 0.3)[n % 3],
            decay=0.9,
            **OPTIMISERS[optimiser],
        )
        trials.append(
            TrialSpec(n, seed_for(3, n), task, choice("networks", network, **config), trainer)
        )
    return Cohort(sweep_seed=3, trials=tuple(trials))


def batches(task, updates=UPDATES):
    """(epoch, batch) of so many updates."""
    epoch = 0
    while True:
        epoch += 1
        for batch in task.training_batches(epoch):
            if updates == 0:
                return
            updates -= 1
            yield epoch, batch


def losses(population, updates=UPDATES, before=None):
    """(updates, N). `before` is called with population and number before every update."""
    found, state, last = [], None, 0
    for number, (epoch, batch) in enumerate(batches(population.task, updates)):
        if epoch != last:
            population.optimiser.start_epoch(epoch)
            last = epoch
        if before is not None:
            before(population, number)
        state = None if batch.is_start else state
        loss_N, state = populations.update(population, batch, state)
        found.append(loss_N)
    return torch.stack(found)


class Plain(nn.Module):
    """One member as anyone would write it, with the masks that its stream draws."""

    def __init__(self, population, member):
        super().__init__()
        network, trial = population.network, population.cohort.trials[member]
        self.weights = {k: p[member].detach().clone() for k, p in network.named_parameters()}
        self.dtype, self.config = network.weight_out.dtype, trial.network.config
        self.rates = DropoutRates([self.config.dropout], self.dtype, "cpu")
        self.streams = DropoutStreams([seed_for(trial.seed, "dropout")])
        self.input_size = network.input_size
        self.out = nn.Linear(1, 1, dtype=self.dtype)
        self.set(self.out, weight="weight_out", bias="bias_out")
        self.layers = nn.ModuleList(self.build())

    def set(self, module, **names):
        for ours, theirs in names.items():
            value = self.weights.get(theirs)
            setattr(module, ours, None if value is None else nn.Parameter(value))

    def masks(self, *shape):
        drawn = self.streams.draw(math.prod(shape)).view(1, -1, 1)
        self.streams.advance()
        kept = self.rates.mask(drawn, torch.empty(drawn.shape, dtype=self.dtype))
        return (kept * self.rates.scale_N11).view(shape)


class PlainMLP(Plain):
    def build(self):
        for layer in range(self.config.depth):
            yield (linear := nn.Linear(1, 1, dtype=self.dtype))
            self.set(linear, weight=f"weight_{layer}", bias=f"bias_{layer}")

    def forward(self, x, _):
        activation = getattr(torch, self.config.activation, None)
        activation = activation or getattr(nn.functional, self.config.activation)
        for layer, mask in zip(
            self.layers, self.masks(len(self.layers), self.config.width, len(x)), strict=True
        ):
            x = activation(layer(x)) * mask.T
        return self.out(x), None


class PlainRecurrent(Plain):
    """Stacked one-layer modules of torch.nn, whose second biases stand still at 0."""

    def __init__(self, kind, population, member):
        self.kind = kind
        super().__init__(population, member)

    def build(self):
        H, names = self.config.units, {"weight_ih_l0": "weight_in", "weight_hh_l0": "weight_rec"}
        for layer in range(self.config.layers):
            options = {"bias": self.config.bias, "dtype": self.dtype}
            if self.kind == "rnn":
                options["nonlinearity"] = self.config.activation
            module = getattr(nn, self.kind.upper())(H if layer else self.input_size, H, **options)
            for theirs, ours in (names | {"bias_ih_l0": "bias"}).items():
                if f"{ours}_{layer}" in self.weights:
                    getattr(module, theirs).data = self.weights[f"{ours}_{layer}"]
            if self.config.bias:
                beside_h = module.bias_hh_l0
                beside_h.data.zero_()
                moves = torch.zeros_like(beside_h)
                if self.kind == "gru":
                    moves[2 * H :] = 1
                    beside_h.data[2 * H :] = self.weights[f"bias_reset_{layer}"]
                beside_h.register_hook(lambda g, moves=moves: g * moves)
            yield module

    def forward(self, tokens, state):
        x = nn.functional.one_hot(tokens.T, self.input_size).to(self.dtype)
        T, B = tokens.shape[1], len(tokens)
        state = [None] * len(self.layers) if state is None else state
        after = []
        masks = self.masks(len(self.layers), T, self.config.units, B)
        for module, start, mask in zip(self.layers, state, masks, strict=True):
            x, end = module(x, start)
            after.append(tuple(e.detach() for e in end) if self.kind == "lstm" else end.detach())
            x = x * mask.mT
        return self.out(x).transpose(0, 1), after


def by_hand(kind, population, member, updates=UPDATES):
    """Losses of one member, trained with torch.optim."""
    network = (
        PlainMLP(population, member) if kind == "mlp" else PlainRecurrent(kind, population, member)
    )
    trainer = population.cohort.trials[member].trainer
    options = {"lr": trainer.learning_rate, "weight_decay": trainer.weight_decay}
    if trainer.optimiser == "sgd":
        options["momentum"] = trainer.momentum
    names = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
    parameters = [p for p in network.parameters() if p is not None]
    optimiser = getattr(torch.optim, names[trainer.optimiser])(parameters, **options)
    found, state = [], None
    for epoch, batch in batches(population.task, updates):
        outputs, state = network(batch.inputs, None if batch.is_start else state)
        loss = nn.functional.cross_entropy(outputs.flatten(0, -2), batch.targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        if trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)
        optimiser.param_groups[0]["lr"] = trainer.learning_rate * trainer.decay**epoch
        optimiser.step()
        found.append(loss.detach())
    return torch.stack(found)


NETWORKS = [
    ("lstm", {"units": 5, "layers": 2}),
    ("lstm", {"units": 5, "bias": False}),
    ("gru", {"units": 5, "layers": 2}),
    ("gru", {"units": 5, "bias": False}),
    ("rnn", {"units": 5, "layers": 2}),
    ("rnn", {"units": 5, "activation": "relu", "bias": False, "init_scale": 0.4}),
    ("mlp", {"width": 6, "depth": 3}),
    ("mlp", {"width": 6, "depth": 2, "activation": "gelu"}),
]
every_network = pytest.mark.parametrize(("kind", "settings"), NETWORKS)
# Of an LSTM there are two ways to train, by a fused kernel or all members at once.
every_way = pytest.mark.parametrize(
    ("kind", "settings", "is_fused"),
    [(kind, s, way) for kind, s in NETWORKS for way in (True, False) if way or kind == "lstm"],
)


@pytest.mark.parametrize("dtype", sorted(TOLERANCES))
@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@every_network
def test_losses_are_those_of_plain_torch(kind, settings, optimiser, dtype):
    if dtype == "float32" and optimiser == "adamw":
        pytest.skip("adam and sgd tell")
    whole = cohort(kind, dtype=dtype, optimiser=optimiser, **settings)
    found = losses(populations.build(whole))
    fresh = populations.build(whole)
    for n in range(3):
        expected = by_hand(kind, fresh, n)
        torch.testing.assert_close(found[:, n], expected, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", sorted(TOLERANCES))
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"layers": 2}])
def test_both_ways_of_an_lstm_give_the_same_losses(settings, dtype, monkeypatch):
    whole = cohort("lstm", dtype=dtype, units=7, **settings)
    found = {}
    for is_fused in (True, False):
        monkeypatch.setattr(lstm, "is_fused", lambda _, answer=is_fused: answer)
        found[is_fused] = losses(populations.build(whole))
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=TOLERANCES[dtype])
    assert not torch.equal(found[True], found[False])


@pytest.mark.parametrize("dtype", sorted(TOLERANCES))
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("settings", [{}, {"layers": 2}])
def test_one_product_over_all_steps_gives_the_gradient_that_is_summed(
    kind, settings, dtype, monkeypatch
):
    """What a GPU does, done here."""
    monkeypatch.setattr(lstm, "is_fused", lambda _: False)
    whole = cohort(kind, dtype=dtype, units=7, **settings)
    found = {}
    for is_gathered in (True, False):
        answer = lambda _, answer=is_gathered: answer  # noqa: E731
        monkeypatch.setattr(recurrent_walk, "is_gathered", answer)
        found[is_gathered] = losses(populations.build(whole))
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=TOLERANCES[dtype])
    assert not torch.equal(found[True], found[False])


@pytest.mark.parametrize("dtype", sorted(TOLERANCES))
@every_way
def test_a_member_alone_has_the_losses_it_has_in_company(
    kind, settings, is_fused, dtype, monkeypatch
):
    monkeypatch.setattr(lstm, "is_fused", lambda _: is_fused)
    together = losses(populations.build(cohort(kind, dtype=dtype, **settings)))
    for n in range(3):
        alone = losses(populations.build(cohort(kind, members=1, first=n, dtype=dtype, **settings)))
        torch.testing.assert_close(alone[:, 0], together[:, n], rtol=0, atol=TOLERANCES[dtype])


@every_way
def test_a_member_that_turns_nan_leaves_the_others_bits_alone(
    kind, settings, is_fused, monkeypatch
):
    monkeypatch.setattr(lstm, "is_fused", lambda _: is_fused)
    whole = cohort(kind, dtype="float32", **settings)
    healthy, poisoned = populations.build(whole), populations.build(whole)
    expected = losses(healthy, 40)

    def poison(population, number):
        if number == 20:
            population.optimiser.weights_NP[1, 3] = torch.nan

    found = losses(poisoned, 40, before=poison)
    assert torch.equal(found[:, [0, 2]], expected[:, [0, 2]])
    assert found[20:, 1].isnan().all()
    assert poisoned.died_at_N.tolist() == [0, 21, 0]
    for ours, theirs in zip(
        poisoned.network.parameters(), healthy.network.parameters(), strict=True
    ):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])


@every_way
def test_members_that_stay_go_on_as_if_nobody_had_left(kind, settings, is_fused, monkeypatch):
    monkeypatch.setattr(lstm, "is_fused", lambda _: is_fused)
    whole = cohort(kind, members=4, dtype="float64", **settings)
    stayed, left = populations.build(whole), populations.build(whole)
    for epoch in (1, 2, 3):
        together = populations.train_epoch(stayed, epoch)
        cut = populations.train_epoch(left, epoch)
        if epoch > 1:
            together = together[[3, 1]]
        torch.testing.assert_close(cut, together, rtol=0, atol=1e-10)
        if epoch == 1:
            left.keep([3, 1])
    assert left.numbers == (3, 1)
    for ours, theirs in zip(left.network.parameters(), stayed.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs[[3, 1]], rtol=0, atol=1e-10)


@every_way
def test_the_gradient_is_that_of_finite_differences(kind, settings, is_fused, monkeypatch):
    monkeypatch.setattr(lstm, "is_fused", lambda _: is_fused)
    population = populations.build(cohort(kind, members=2, **settings))
    network, task = population.network, population.task
    batch = next(iter(task.training_batches(1)))
    inputs = batch.inputs[:3]
    if kind != "mlp":
        inputs = nn.functional.one_hot(inputs[:, :4], network.input_size).to(torch.float64)
        inputs = inputs + 0.1
    parameters = list(network.parameters())

    def outputs(x, *_):
        streams = DropoutStreams([1, 2])
        return network(x, dropout=streams)[0]

    inputs = inputs.clone().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (inputs, *parameters), fast_mode=True)


def resident():
    """Of the process's own: pages of files come and go as the kernel likes."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mlp", {"width": 40, "depth": 3}),
        pytest.param("lstm", {"units": 6}, marks=pytest.mark.slow),
    ],
)
def test_a_thousand_updates_take_no_more_memory(kind, settings):
    """Resident memory of the process: it sees torch's memory, which Python's tracers do not.

    In a process of its own, where nothing else comes and goes. What leaks does so in every stretch
    of 500 updates, while an allocator that takes a further arena does it once; 1 MB leaves room for
    2 KB an update, less than one activation or one copy of the weights.
    """
    code = _FRESH.format(path=[p for p in sys.path if p], file=__file__)
    done = subprocess.run(
        [sys.executable, "-c", code, kind, json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1e6


_FRESH = """
import importlib.util, json, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("again", {file!r})
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
print(again.growth(sys.argv[1], json.loads(sys.argv[2])))
"""


def growth(kind, settings):
    """Bytes that 500 updates add to the process: the lesser of two stretches."""
    population = populations.build(cohort(kind, members=8, dtype="float32", **settings))
    losses(population, 300)
    added = []
    for _ in range(2):
        before = resident()
        losses(population, 500)
        added.append(resident() - before)
    return min(added)


def peak_bytes(run):
    """Largest sum of what torch has allocated and not freed since `run` began."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        run()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_a_cohort_takes_little_more_than_the_sum_of_its_members(kind, optimiser):
    """Against what one network keeps in torch: weights, gradient, moments and activations."""
    N, size = 64, {"mlp": {"width": 20, "depth": 8}, "lstm": {"units": 8}}[kind]
    whole = cohort(
        kind,
        members=N,
        dtype="float32",
        optimiser=optimiser,
        windows=(32, 50),
        dropout=0.1,
        init_scale=1.0,
        **size,
    )
    population = populations.build(whole)
    batch = next(iter(population.task.training_batches(1)))
    population.optimiser.start_epoch(1)
    found = peak_bytes(lambda: populations.update(population, batch, None))
    held = population.optimiser.weights_NP.nbytes
    held += sum(m.nbytes for m in population.optimiser.moments.values())
    parameters = population.optimiser.weights_NP.nbytes
    copies = 2 + len(population.optimiser.moments)
    if kind == "mlp":
        # Of every layer what φ gives, the mask and their product.
        activations = 3 * 8 * 20 * 48 * 4
    else:
        # Of every step i, f, g, o, c, tanh c, h, h's mask and product, the input, the outputs and
        # their log-probabilities.
        task = population.task
        activations = 32 * 50 * (9 * 8 + task.input_size + 2 * task.output_size) * 4
    assert held + found <= 1.2 * (copies * parameters + N * activations)


def test_products_are_rounded_only_where_a_trainer_asks_for_it_on_a_gpu():
    seen = []
    before = torch.get_float32_matmul_precision()
    for tf32, device in ((False, "cuda"), (True, "cuda"), (True, "cpu")):
        with populations.rounding(Trainer(tf32=tf32), device):
            seen.append(torch.get_float32_matmul_precision())
        assert torch.get_float32_matmul_precision() == before
    assert seen == ["highest", "high", "highest"]
    assert not Trainer().tf32
