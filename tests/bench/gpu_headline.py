"""Two whole experiments on one GPU, as populations: what they take, and what they would have taken.

`lstm`: the experiment of Vogt et al. (2022), Fig. 4: 60 LSTMs of 512 units that read War and Peace
(batch 100, windows of 100 characters, 15 epochs, Adam, no biases, weights U(±0.08), rates times
0.95 from epoch 10 on), with k = 32 spectra of the hidden and of the full state before training
and after every epoch. Learning rates are log-uniform in e^-7.5 … e^-5 and dropout in e^-9 … e^-1.
`mlp`: 1,000 MLPs of 16 layers of 20 units on MNIST, batch 100, rates and start weights drawn.

    python tests/bench/gpu_headline.py --data DIR --out DIR --checkpoint DIR --limit 500
    python tests/bench/gpu_headline.py --data DIR --out DIR --checkpoint DIR --limit 500 --tf32
    python tests/bench/gpu_headline.py --only mlp --data DIR --out DIR
    python tests/bench/gpu_headline.py --scale tiny --out DIR

With --checkpoint an experiment is saved after every epoch, and with --limit no epoch is begun that
would not end in so many seconds: the same command then goes on, to the same numbers (on a CPU to
the bit). Results are NAME-MODE.json and headline.md in --out; what earlier runs left in
--checkpoint or --earlier is told beside it. Peaks are measured, as large products in the same
run. Needs torch, numpy and scipy. `--scale tiny` takes seconds on a CPU.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy import stats
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline import catalog, populations, rung_rows
from pipeline.diagnostics.base import Moment
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from tasks.base import generator_for, seed_for

SWEEP_SEED = 4
NOT_ALL = 3
"""Exit code where --limit came before the end."""


@dataclass(frozen=True)
class Scale:
    """How large both experiments are."""

    device: str
    lstms: int
    units: int
    text: dict
    spectrum: dict
    lstm_epochs: int
    mlps: int
    mlp: dict
    images: tuple[str, dict]
    mlp_epochs: int
    timed: int
    product: int


SCALES = {
    "paper": Scale(
        device="cuda",
        lstms=60,
        units=512,
        text={"text": "war_and_peace", "batch_size": 100, "seq_len": 100},
        spectrum={"k": 32},
        lstm_epochs=15,
        mlps=1000,
        mlp={"depth": 16, "width": 20},
        images=("digits", {"data": "mnist", "batch_size": 100}),
        mlp_epochs=5,
        timed=20,
        product=8192,
    ),
    "tiny": Scale(
        device="cpu",
        lstms=3,
        units=6,
        text={"text": "pydoc", "characters": 3000, "batch_size": 4, "seq_len": 20},
        spectrum={"k": 4, "sequences": 2, "steps": 20, "warmup": 10},
        lstm_epochs=3,
        mlps=4,
        mlp={"depth": 3, "width": 5},
        images=("planar", {"points": 400, "batch_size": 48}),
        mlp_epochs=3,
        timed=2,
        product=128,
    ),
}


@dataclass
class Progress:
    """What an experiment has found so far; JSON and `torch.save` both keep it exactly.

    seconds: by what they went to; `start` is building, once a run.
    spectra: state → epoch → (N, k).
    """

    epoch: int = -1
    updates: int = 0
    runs: int = 0
    seconds: dict = field(default_factory=dict)
    epoch_seconds: list = field(default_factory=list)
    train_loss: list = field(default_factory=list)
    val_loss: list = field(default_factory=list)
    test_loss: list = field(default_factory=list)
    spectra: dict = field(default_factory=dict)
    is_recorded: bool = False
    peak_bytes: int = 0

    def add(self, name, seconds):
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))


def uniform(generator, low, high):
    return low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator).item()


def lstms(scale, tf32):
    """The cohort of Fig. 4."""
    generator = generator_for(SWEEP_SEED, "design", "lstm")
    task = choice("tasks", "char_text", **scale.text)
    trials = []
    for n in range(scale.lstms):
        rate = math.exp(uniform(generator, -7.5, -5.0))
        dropout = math.exp(uniform(generator, -9.0, -1.0))
        network = choice(
            "networks", "lstm", units=scale.units, bias=False, init_scale=0.08, dropout=dropout
        )
        trainer = Trainer(
            epochs=scale.lstm_epochs, learning_rate=rate, decay=0.95, decay_from=10, tf32=tf32
        )
        trials.append(TrialSpec(n, seed_for(SWEEP_SEED, n), task, network, trainer))
    measure = tuple(
        choice("diagnostics", "lyapunov_spectrum", state=state, **scale.spectrum)
        for state in ("hidden", "full")
    )
    return Cohort(sweep_seed=SWEEP_SEED, trials=tuple(trials), measure=measure, device=scale.device)


def mlps(scale, tf32):
    """Deep narrow networks of the ensemble of Storm et al. (2024)."""
    generator = generator_for(SWEEP_SEED, "design", "mlp")
    name, settings = scale.images
    task = choice("tasks", name, **settings)
    trials = []
    for n in range(scale.mlps):
        rate = math.exp(uniform(generator, math.log(1e-4), math.log(1e-2)))
        network = choice("networks", "mlp", init_scale=uniform(generator, 0.5, 2.5), **scale.mlp)
        trainer = Trainer(epochs=scale.mlp_epochs, learning_rate=rate, tf32=tf32)
        trials.append(TrialSpec(n, seed_for(SWEEP_SEED, n), task, network, trainer))
    return Cohort(sweep_seed=SWEEP_SEED, trials=tuple(trials), device=scale.device)


COHORTS = {"lstm": lstms, "mlp": mlps}


class Clock:
    """Seconds since it was made or last read, everything asked of the device included."""

    def __init__(self, device):
        self.is_cuda = torch.device(device).type == "cuda"
        self.lap()

    def lap(self):
        if self.is_cuda:
            torch.cuda.synchronize()
        before, self.now = getattr(self, "now", 0.0), time.perf_counter()
        return self.now - before


def tensors(population):
    """By name, all that decides how training goes on between two epochs."""
    optimiser = population.optimiser
    return {
        "weights": optimiser.weights_NP,
        "alive": population.alive_N,
        "begun": population.begun_N,
        "dropout": population.dropout.position_N1,
        **{f"moment {name}": tensor for name, tensor in optimiser.moments.items()},
        **{f"column {name}": tensor for name, tensor in optimiser._columns.items()},
    }


def save(path, population, progress, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save({"what": what, "tensors": tensors(population), "progress": vars(progress)}, fresh)
    os.replace(fresh, path)


def load(path, population, what):
    """The progress in a checkpoint, whose tensors go to where the population's are."""
    found = torch.load(path, map_location=population.cohort.device, weights_only=True)
    if found["what"] != what:
        raise SystemExit(f"{path} is of another experiment: {found['what']}, not {what}")
    for name, tensor in tensors(population).items():
        tensor.copy_(found["tensors"][name])
    progress = Progress(**found["progress"])
    population.update = progress.updates
    return progress


def go(name, scale, tf32, checkpoint, limit):
    """The experiment until its end or the limit. Returns cohort, task and progress."""
    started = time.monotonic()
    clock = Clock(scale.device)
    cohort = COHORTS[name](scale, tf32)
    population = populations.build(cohort)
    diagnostics = populations.diagnostics_of(cohort, population.network, population.task)
    what = f"{name} {mode(tf32)} {seed_for(cohort):x}"
    path = checkpoint and checkpoint / f"{name}-{mode(tf32)}.pt"
    progress = load(path, population, what) if path and path.exists() else Progress()
    progress.runs += 1
    progress.add("start", clock.lap())
    num_epochs = cohort.trials[0].trainer.epochs
    is_first = True
    while progress.epoch < num_epochs:
        longest = max(progress.epoch_seconds, default=0.0)
        if limit and not is_first and time.monotonic() - started + longest > limit:
            break
        is_first = False
        began = time.monotonic()
        progress.epoch += 1
        one_epoch(population, diagnostics, progress, clock)
        progress.epoch_seconds.append(time.monotonic() - began)
        if progress.epoch == num_epochs:
            scores = rung_rows.evaluate(population.network, population.task, "test")
            progress.test_loss = scores["loss"].tolist()
            progress.add("evaluating", clock.lap())
        if clock.is_cuda:
            progress.peak_bytes = max(progress.peak_bytes, torch.cuda.max_memory_allocated())
        if path:
            save(path, population, progress, what)
            progress.add("saving", clock.lap())
        print(
            f"{name} {mode(tf32)} epoch {progress.epoch}: {progress.epoch_seconds[-1]:.2f} s, "
            f"validation loss {statistics.median(progress.val_loss[-1]):.4f} (median)",
            flush=True,
        )
    return cohort, population.task, progress


def one_epoch(population, diagnostics, progress, clock):
    epoch = progress.epoch
    if epoch > 0:
        loss_N = populations.train_epoch(population, epoch)
        progress.train_loss.append(loss_N.tolist())
        progress.add("training", clock.lap())
    progress.updates = population.update
    progress.is_recorded |= population.steps.is_recorded
    scores = rung_rows.evaluate(population.network, population.task, "validation")
    progress.val_loss.append(scores["loss"].tolist())
    progress.add("evaluating", clock.lap())
    moment = Moment(
        epoch=epoch,
        update=population.update,
        probe_seed=seed_for(SWEEP_SEED, "probe"),
        tangent_seeds=tuple(seed_for(t.seed, "tangents") for t in population.cohort.trials),
    )
    for diagnostic in diagnostics:
        state = diagnostic.config.state
        for reading in diagnostic.measure(population.network, population.task, moment):
            if reading.quantity == "lyapunov.spectrum":
                progress.spectra.setdefault(state, []).append(reading.values_N.tolist())
        progress.add(f"spectra, {state} state", clock.lap())


def mode(tf32):
    return "tf32" if tf32 else "fp32"


def flop_per_update(name, scale, task):
    """Of one member's update, by its matrix products: one forth, two back."""
    if name == "lstm":
        H, each = scale.units, scale.text["batch_size"] * scale.text["seq_len"]
        weights = 4 * H * (H + task.input_size) + H * task.output_size
    else:
        W, each = scale.mlp["width"], scale.images[1]["batch_size"]
        hidden = (scale.mlp["depth"] - 1) * W * W
        weights = task.input_size * W + hidden + W * task.output_size
    return 6 * weights * each


class OneLSTM(nn.Module):
    """A network of the experiment as one would write it, through cuDNN on a GPU."""

    def __init__(self, scale, task):
        super().__init__()
        self.size = task.input_size
        self.lstm = nn.LSTM(self.size, scale.units, bias=False, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(scale.units, task.output_size, bias=False)
        self.state = None

    def forward(self, tokens):
        x = nn.functional.one_hot(tokens, self.size).to(self.out.weight.dtype)
        y, state = self.lstm(x, self.state)
        self.state = tuple(part.detach() for part in state)
        return self.out(self.drop(y)).flatten(0, 1)


def one_mlp(scale, task):
    sizes = [task.input_size, *[scale.mlp["width"]] * scale.mlp["depth"]]
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], task.output_size))


@contextlib.contextmanager
def rounding(tf32):
    """As `pipeline.populations` rounds, and cuDNN alike."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def seconds_alone(name, scale, task, tf32):
    """Of one update of one network, trained by itself with torch.nn and torch.optim."""
    torch.manual_seed(0)
    network = OneLSTM(scale, task) if name == "lstm" else one_mlp(scale, task)
    network.to(scale.device).train()
    fused = {"fused": True} if scale.device == "cuda" else {}
    optimiser = torch.optim.Adam(network.parameters(), 2e-3, **fused)
    batches = [b for b, _ in zip(task.training_batches(1), range(scale.timed + 5), strict=False)]
    batches = [b for b in batches if b.inputs.shape == batches[0].inputs.shape]
    times, clock = [], Clock(scale.device)
    with rounding(tf32):
        # The first few warm up; halves tell whether it has settled.
        for part in (batches[:5], batches[5:], batches[5:]):
            clock.lap()
            for batch in part:
                outputs = network(batch.inputs)
                loss = nn.functional.cross_entropy(outputs, batch.targets.flatten())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            times.append(clock.lap() / max(1, len(part)))
    return min(times[1:])


def seconds_kernel_by_kernel(cohort, task, scale):
    """Of one update of the population, not recorded."""
    population = populations.build(cohort, task, recorder=None)
    population.network.train()
    population.optimiser.start_epoch(1)
    clock, state, times = Clock(scale.device), None, []
    with populations.rounding(cohort.trials[0].trainer, cohort.device):
        for _, batch in zip(range(6), task.training_batches(1), strict=False):
            _, state = populations.update(population, batch, state)
            times.append(clock.lap())
    return statistics.median(times[1:])


def peaks(scale):
    """FLOP/s of a large product on random data, by precision."""
    n, found = scale.product, {}
    kinds = {"fp32": (torch.float32, False)}
    if scale.device == "cuda":
        kinds |= {"tf32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    for name, (dtype, tf32) in kinds.items():
        a, b = (torch.randn(n, n, device=scale.device, dtype=dtype) for _ in range(2))
        with rounding(tf32):
            for _ in range(3):
                a @ b
            clock = Clock(scale.device)
            for _ in range(10):
                a @ b
            found[name] = 10 * 2 * n**3 / clock.lap()
    return found


def hardware(scale):
    if scale.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"{properties.multi_processor_count} multiprocessors"
        )
    return f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads"


def summary(name, scale, cohort, task, progress, tf32):
    """Everything that the report tells, as plain numbers."""
    training, members = progress.seconds.get("training", 0.0), len(cohort.trials)
    flop = flop_per_update(name, scale, task)
    done = progress.updates * members
    return {
        "name": name,
        "scale": next(known for known, value in SCALES.items() if value == scale),
        "mode": mode(tf32),
        "hardware": hardware(scale),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "members": members,
        "epochs": progress.epoch,
        "flop": flop * done,
        "member_updates_per_second": done / training if training else math.nan,
        "flop_per_second": flop * done / training if training else math.nan,
        "peaks": peaks(scale),
        "update_seconds": training / progress.updates if progress.updates else math.nan,
        "update_seconds_kernel_by_kernel": seconds_kernel_by_kernel(cohort, task, scale),
        "update_seconds_alone": seconds_alone(name, scale, task, tf32),
        "rates": [t.trainer.learning_rate for t in cohort.trials],
        "dropout": [t.network.config.dropout for t in cohort.trials],
        **vars(progress),
    }


TITLES = {
    "lstm": "LSTMs that read (Vogt et al. 2022, Fig. 4)",
    "mlp": "Deep narrow MLPs",
}


def report(results):
    """Markdown of all results there are."""
    lines = ["# Whole experiments as populations"]
    for found in results:
        seconds = found["seconds"]
        alone = found["update_seconds_alone"] * found["members"]
        total = sum(seconds.values())
        lines += [
            "",
            f"## {TITLES[found['name']]}, {found['scale']} scale, {found['mode']}",
            "",
            f"    {found['command']}",
            "",
            f"{found['date']}, {found['hardware']}, torch {found['torch']}; "
            f"{found['members']} members, {found['epochs']} epochs, {found['updates']} updates, "
            f"in {found['runs']} run(s).",
            "",
            "| what | |",
            "| --- | --- |",
            f"| total | {total:.1f} s |",
            *(f"| of that, {what} | {value:.1f} s |" for what, value in seconds.items()),
            f"| updates recorded as a CUDA graph | {'yes' if found['is_recorded'] else 'no'} |",
            f"| an update of all | {1e3 * found['update_seconds']:.3g} ms |",
            "| the same kernel by kernel | "
            f"{1e3 * found['update_seconds_kernel_by_kernel']:.3g} ms |",
            f"| one after the other with torch.nn | {1e3 * alone:.4g} ms "
            f"({alone / found['update_seconds']:.1f} ×) |",
            f"| members' updates | {found['member_updates_per_second']:.4g} a second |",
            f"| products | {found['flop']:.3g} FLOP, {found['flop_per_second']:.3g} FLOP/s |",
            *(
                f"| of the {kind} rate of a product of {peak:.3g} FLOP/s | "
                f"{100 * found['flop_per_second'] / peak:.1f} % |"
                for kind, peak in found["peaks"].items()
            ),
            f"| most memory | {found['peak_bytes'] / 2**30:.1f} GiB |",
            f"| validation loss, best and median | {best(found)} |",
        ]
    by_mode = {(r["name"], r["mode"]): r for r in results}
    for name in COHORTS:
        if (name, "fp32") in by_mode and (name, "tf32") in by_mode:
            lines += effect(by_mode[name, "fp32"], by_mode[name, "tf32"])
    return "\n".join(lines) + "\n"


def best(found):
    finite = [x for x in found["val_loss"][-1] if math.isfinite(x)]
    return f"{min(finite):.4f}, {statistics.median(finite):.4f} nats" if finite else "none"


def effect(plain, rounded):
    """What TF32 did to the loss of every member."""
    epochs = min(len(plain["val_loss"]), len(rounded["val_loss"]))
    lines = [
        "",
        f"## What TF32 does to the validation loss ({plain['name']})",
        "",
        "| epoch | median abs. difference | largest | spread of the members (sd) | rank corr. |",
        "| --- | --- | --- | --- | --- |",
    ]
    for epoch in range(epochs):
        pairs = zip(plain["val_loss"][epoch], rounded["val_loss"][epoch], strict=True)
        both = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        apart = [abs(a - b) for a, b in both]
        first = [a for a, _ in both]
        rank = stats.spearmanr(*zip(*both, strict=True)).statistic
        lines.append(
            f"| {epoch} | {statistics.median(apart):.2g} | {max(apart):.2g} | "
            f"{statistics.stdev(first):.2g} | {rank:.4f} |"
        )
    return lines


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=sorted(SCALES), default="paper")
    parser.add_argument("--only", choices=sorted(COHORTS))
    parser.add_argument("--tf32", action="store_true", help="round factors of training's products")
    parser.add_argument("--data", type=Path, help="folder of the data sets; else LYAPSWEEP_DATA")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--earlier", type=Path, help="where results of earlier runs lie")
    parser.add_argument("--limit", type=float, help="seconds after which no epoch is begun")
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    if scale.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, and none is used: `--scale tiny` runs this on a CPU")
        return 1
    if options.data:
        os.environ["LYAPSWEEP_DATA"] = str(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    began, is_whole = time.monotonic(), True
    for name in [options.only] if options.only else COHORTS:
        left = options.limit and max(1e-9, options.limit - (time.monotonic() - began))
        cohort, task, progress = go(name, scale, options.tf32, options.checkpoint, left)
        is_whole = progress.epoch == cohort.trials[0].trainer.epochs
        found = summary(name, scale, cohort, task, progress, options.tf32)
        for folder in filter(None, (options.out, options.checkpoint)):
            (folder / f"{name}-{mode(options.tf32)}.json").write_text(json.dumps(found))
        if not is_whole:
            break
    print(write_report(options))
    return 0 if is_whole else NOT_ALL


def write_report(options):
    """headline.md of what lies in all folders, this run's first."""
    results = {}
    for folder in filter(None, (options.out, options.checkpoint, options.earlier)):
        for path in sorted(folder.glob("*-??32.json")):
            results.setdefault(path.name, json.loads(path.read_text()))
    text = report([results[name] for name in sorted(results)])
    (options.out / "headline.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    sys.exit(main())
