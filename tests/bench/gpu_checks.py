"""What has to hold on a GPU, and what the Lyapunov engine takes there: one command, one report.

1. Tests of updates on CUDA: recorded updates equal single kernels and the CPU's, no replay waits
   for the device, a NaN stays with its member (tests/pipeline/test_capture.py).
2. Spectra and FTLEs on the device equal the CPU's, every network, state and number of exponents.
3. Two passes of Cholesky QR against batched Householder, TF32 off.
4. Spectra of 512 units, 10 sequences × 100 steps: ours, the textbook way (batched autograd
   Jacobians and a Householder QR at every step) and the bare products and factorisations.
5. Spectra of 64 LSTMs × 10 sequences in one call, beside the same one network at a time.

    python tests/bench/gpu_checks.py --out DIR
    python tests/bench/gpu_checks.py --out DIR --scale tiny

Writes checks.md to --out. Needs torch, numpy, scipy and, for the first part, pytest. `--scale tiny`
runs all of it on a CPU in seconds, where it tells nothing but that it runs.
"""

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from textbook import jacobians, lstm_step

from pipeline import catalog
from pipeline.dynamics.ftle import ftle_field
from pipeline.dynamics.orthonormal import cholesky_qr, orthonormalise
from pipeline.dynamics.spectrum import exact_arithmetic, lyapunov_spectrum
from tasks.base import generator_for

ROOT = Path(__file__).parents[2]
F64, F32 = torch.float64, torch.float32
UPDATES = "tests/pipeline/test_capture.py"
CLOSE = 1e-8
"""Nats per step by which a spectrum of the device may differ from the CPU's."""


@dataclass(frozen=True)
class Scale:
    """How large the measurements are; `frames` of (N·B, D, K)."""

    device: str
    units: int
    sequences: int
    steps: int
    few: int
    members: int
    k: int
    frames: tuple[tuple[int, int, int], ...]
    rounds: int


SCALES = {
    "paper": Scale(
        "cuda", 512, 10, 100, 16, 64, 32,
        ((10, 1024, 16), (10, 1024, 32), (640, 512, 32), (640, 1024, 32), (640, 1024, 128)), 3,
    ),
    "tiny": Scale("cpu", 6, 2, 12, 3, 3, 3, ((4, 12, 3),), 1),
}  # fmt: skip


class Report:
    """Lines of Markdown, shown as they come, and whether all that was asserted held."""

    def __init__(self, path):
        self.path, self.lines, self.failures = path, [], []

    def say(self, *lines):
        for line in lines:
            print(line, flush=True)
            self.lines.append(line)
        # Written as it grows: what a time limit cuts off must not take the rest with it.
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def check(self, name, value, limit):
        is_fine = value <= limit
        if not is_fine:
            self.failures.append(f"{name}: {value:.3g}, at most {limit:.3g} allowed")
        self.say(f"| {name} | {value:.2g} | {'yes' if is_fine else '**no**'} |")


def seconds(device, run, rounds):
    """Median, the first of all left out."""
    times = []
    for _ in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def updates(report, scale):
    """The tests that need CUDA; the whole file, so that the CPU's are seen on this torch too."""
    report.say("", "## Updates", "")
    # Without conftest.py, which wants a store's packages; nothing of it is needed here.
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", UPDATES]
    chosen = [] if scale.device == "cuda" else ["-k", "watch or forgetting"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + chosen, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    found = re.findall(r"^.*(?:passed|failed|error|no tests ran|No module named).*$",
                       done.stdout + done.stderr, re.MULTILINE)  # fmt: skip
    report.say(f"`pytest {UPDATES}`: {found[-1].strip() if found else 'said nothing'}")
    if done.returncode != 0:
        report.failures.append(f"pytest {UPDATES} ended with {done.returncode}")
        report.say("", "```", *(done.stdout + done.stderr).splitlines()[-60:], "```")


def network(kind, members, inputs, dtype, device, **settings):
    made = catalog.load("networks", kind)
    generators = [generator_for("gpu checks", kind, n) for n in range(members)]
    return made(
        [made.Config(**settings)] * members,
        input_size=inputs,
        output_size=2,
        generators=generators,
        dtype=dtype,
        device=device,
    )


def sequences(count, steps, inputs, device):
    x = torch.randn((count, steps, inputs), generator=generator_for("gpu inputs"), dtype=F64)
    return x.to(device)


def engine_equals_cpu(report, scale):
    report.say("", "## The engine on this device against the CPU", "")
    report.say("| largest difference of | nats/step | within 1e-8 |", "| --- | --- | --- |")
    for kind in ("lstm", "gru", "rnn"):
        for layers in (1, 2):
            pair = [
                network(kind, 3, 4, F64, device, units=20, layers=layers, init_scale=0.4)
                for device in ("cpu", scale.device)
            ]
            for state in ("full", "hidden"):
                for k in (4, None):
                    found = [
                        lyapunov_spectrum(
                            each,
                            sequences(4, 60, 4, device),
                            k=k,
                            state=state,
                            warmup=10,
                            generator=torch.Generator().manual_seed(1),
                        )
                        for each, device in zip(pair, ("cpu", scale.device), strict=True)
                    ]
                    name = f"{kind}, {layers} layers, {state}, k = {k or 'all'}"
                    apart = (found[0].exponents - found[1].exponents.cpu()).abs()
                    # What met rounding is flagged as such, and may be any number below.
                    is_number = ~(found[0].at_floor | found[1].at_floor.cpu())
                    report.check(name, apart[is_number].max().item(), CLOSE)
                    if not bool(found[1].self_check_passed.all()):
                        report.failures.append(f"{name}: self-check failed")
    pair = [network("mlp", 2, 2, F64, device, width=20, depth=6)
            for device in ("cpu", scale.device)]  # fmt: skip
    grid = torch.randn((50, 2), generator=generator_for("grid"), dtype=F64)
    fields = [ftle_field(net, grid.to(net.weight_0.device)).exponents.cpu() for net in pair]
    report.check("FTLE field, 6 layers of 20", (fields[0] - fields[1]).abs().max().item(), CLOSE)


def factorisations(report, scale):
    report.say("", "## Cholesky QR (two passes) against batched Householder, TF32 off", "")
    report.say(
        "| frames | precision | Householder | Cholesky | ratio | ‖QᵀQ − 1‖ | log R apart |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    generator = torch.Generator().manual_seed(0)
    for count, D, K in scale.frames:
        normal = torch.randn((1, count, D, K), generator=generator, dtype=F64)
        for dtype in (F64, F32):
            # Columns as unequal as half of the depth that T_ON is chosen for (ε^¼) makes them.
            decay = torch.logspace(0, 1, K, base=torch.finfo(dtype).eps ** 0.125, dtype=F64)
            frame = (normal * decay).to(scale.device, dtype).mT.contiguous().mT
            with exact_arithmetic():
                slow = seconds(scale.device, lambda f=frame: orthonormalise(f), scale.rounds)
                fast = seconds(scale.device, lambda f=frame: cholesky_qr(f), scale.rounds)
                found, known = cholesky_qr(frame), orthonormalise(frame)
                Q = found.frame.double()
                off = (Q.mT @ Q - torch.eye(K, dtype=F64, device=Q.device)).abs().max().item()
            apart = (found.logs - known.logs).abs().max().item()
            report.say(
                f"| {count} × {D} × {K} | {str(dtype)[6:]} | {1e3 * slow:.3g} ms | "
                f"{1e3 * fast:.3g} ms | {slow / fast:.2f} × | {off:.1e} | {apart:.1e} |"
            )
            if off > 1e4 * torch.finfo(dtype).eps:
                report.failures.append(f"Cholesky QR of {count} × {D} × {K}: ‖QᵀQ − 1‖ = {off}")


def textbook_step_seconds(net, x, columns, state, scale):
    """Of one step: batched reverse-mode Jacobians, one product and one Householder QR."""
    H, jacobian = scale.units, jacobians(lstm_step(net, state))
    size, B = (2 if state == "full" else 1) * H, len(x)
    s, c = (x.new_zeros(B, width) for width in (size, H))
    Q = torch.linalg.qr(torch.randn(B, size, columns, dtype=F64, device=x.device)).Q

    def once():
        with exact_arithmetic():
            torch.linalg.qr(jacobian(s, c, x[:, 0]).detach() @ Q)

    return seconds(scale.device, once, scale.rounds)


def bare_step_seconds(columns, size, t_on, scale):
    """Of one step: the product with U, or with J where all is asked for, and its share of a QR."""
    H, B, device = scale.units, scale.sequences, scale.device
    options = {"dtype": F64, "device": device}
    if columns < size:
        a, b = torch.randn(B * columns, H, **options), torch.randn(H, 4 * H, **options)
    else:
        a, b = torch.randn(B, columns, H, **options), torch.randn(B, H, size, **options)
    V = torch.randn(1, B, size, columns, **options)
    with exact_arithmetic():
        product = seconds(device, lambda: a @ b, scale.rounds)
        factor = cholesky_qr if device == "cuda" and 2 * columns <= size else orthonormalise
        return product + seconds(device, lambda: factor(V), scale.rounds) / t_on


def engine(report, scale):
    H, B, T = scale.units, scale.sequences, scale.steps
    report.say("", f"## LSTM of {H} units, {B} sequences × {T} steps, float64", "")
    report.say(
        "| state, k | T_ON, method | ours | textbook | bare | textbook / ours | ours / bare |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    net = network("lstm", 1, 16, F64, scale.device, units=H)
    x = sequences(B, T, 16, scale.device)
    for state in ("full", "hidden"):
        size = (2 if state == "full" else 1) * H
        for k in (scale.few, size):
            # All exponents: a quarter of the steps, scaled; a step costs the same throughout.
            steps = T if k < size else max(4, T // 4)
            kept = []

            def run(k=k, state=state, steps=steps, kept=kept):
                kept[:] = [lyapunov_spectrum(net, x[:, :steps], k=k, state=state, warmup=0)]

            ours = seconds(scale.device, run, scale.rounds) / steps * T
            (spectrum,) = kept
            textbook = T * textbook_step_seconds(net, x, k, state, scale)
            bare = T * bare_step_seconds(k, size, spectrum.t_on[0], scale)
            report.say(
                f"| {state}, {k} | {spectrum.t_on[0]}, {spectrum.method} | {ours:.3g} s | "
                f"{textbook:.3g} s | {bare:.3g} s | {textbook / ours:.1f} × | {ours / bare:.2f} × |"
            )


def many(report, scale):
    N, H, B, T, k = scale.members, scale.units, scale.sequences, scale.steps, scale.k
    report.say("", f"## {N} LSTMs of {H} units × {B} sequences × {T} steps in one call", "")
    report.say(
        "| state | precision | one call | a network | one network alone | ratio | most memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    x = sequences(B, T, 16, scale.device)
    for dtype in (F64, F32):
        nets = [network("lstm", n, 16, dtype, scale.device, units=H) for n in (N, 1)]
        for state in ("full", "hidden"):
            times = []
            for net in nets:
                if scale.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()

                def run(net=net, state=state, dtype=dtype):
                    lyapunov_spectrum(net, x, k=k, state=state, warmup=0, dtype=dtype)

                times.append(seconds(scale.device, run, scale.rounds))
                if net is nets[0]:
                    peak = torch.cuda.max_memory_allocated() if scale.device == "cuda" else 0
            report.say(
                f"| {state}, {k} | {str(dtype)[6:]} | {times[0]:.3g} s | {times[0] / N:.3g} s | "
                f"{times[1]:.3g} s | {times[1] * N / times[0]:.1f} × | {peak / 2**30:.1f} GiB |"
            )


PARTS = {
    "updates": updates,
    "equality": engine_equals_cpu,
    "factorisations": factorisations,
    "engine": engine,
    "many": many,
}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", choices=sorted(SCALES), default="paper")
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS))
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    if scale.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, and nothing is checked: `--scale tiny` tries it on a CPU")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("highest")
    report = Report(options.out / "checks.md")
    name = torch.cuda.get_device_name() if scale.device == "cuda" else platform.machine()
    report.say(
        "# Checks on a GPU" if scale.device == "cuda" else "# Checks on a CPU, which prove nothing",
        "",
        f"    {' '.join(['python', *sys.argv])}",
        "",
        f"{datetime.date.today().isoformat()}, {name}, torch {torch.__version__}",
    )
    for part in options.only:
        PARTS[part](report, scale)
    report.say("", "## Verdict", "")
    report.say(*([f"- {line}" for line in report.failures] or ["All that was checked holds."]))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
