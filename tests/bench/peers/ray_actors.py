"""Ray actors that live as long as the sweep, Optuna in the driver, one MLflow batch a trial.

python ray_actors.py mlp10 --folder /tmp/x
"""

import os
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import optuna
import ray
from command_line import arguments, conclude
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
from optuna.distributions import FloatDistribution
from problems import RANGES, data_of


@ray.remote(num_cpus=1)
class Trainer:
    """Keeps torch and the data between trials."""

    def __init__(self, name):
        self.name, self.data = name, data_of(name)

    def run(self, settings):
        from training import train

        reports = []
        train(
            self.name,
            settings,
            self.data,
            lambda step, values: reports.append((step, int(time.time() * 1000), values)),
        )
        return reports


def publish(client, experiment, number, settings, reports):
    """One run, with everything in one batch."""
    run = client.create_run(experiment, start_time=reports[0][1], tags={"trial": str(number)})
    metrics = [
        Metric(key, value, stamp, step)
        for step, stamp, values in reports
        for key, value in values.items()
    ]
    params = [Param(key, str(value)) for key, value in settings.items()]
    client.log_batch(run.info.run_id, metrics=metrics, params=params)
    client.set_terminated(run.info.run_id)


def main():
    options = arguments(__doc__)
    folder = Path(options.folder).absolute()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/optuna.db", sampler=optuna.samplers.TPESampler(seed=0)
    )
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("sweep", artifact_location=str(folder / "artifacts"))
    ray.init(
        num_cpus=options.slots,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    space = {name: FloatDistribution(*ends, log=name != "dropout") for name, ends in RANGES.items()}
    running, losses, asked = {}, [], 0

    def start(worker):
        nonlocal asked
        asked += 1
        trial = study.ask(space)
        running[worker.run.remote(trial.params)] = worker, trial

    for worker in [Trainer.remote(options.problem) for _ in range(options.slots)]:
        start(worker)
    while running:
        (done,), _ = ray.wait(list(running))
        worker, trial = running.pop(done)
        reports = ray.get(done)
        if asked < options.trials:
            start(worker)
        loss = reports[-1][2]["val_loss"]
        publish(client, experiment, trial.number, trial.params, reports)
        study.tell(trial, loss)
        losses.append(loss)
    ray.shutdown()
    conclude(losses)


if __name__ == "__main__":
    main()
