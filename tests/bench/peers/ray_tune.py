"""Ray Tune with OptunaSearch and the MLflow callback: the program that is written today.

python ray_tune.py mlp10 --folder /tmp/x [--reuse-actors] [--no-logger]
"""

import os
from pathlib import Path

os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import ray
from command_line import arguments, conclude
from problems import RANGES, data_of
from ray import tune
from ray.tune.search.optuna import OptunaSearch


def trial(settings, data, name):
    """One trial, in a process of Tune's choosing."""
    from training import train

    train(name, settings, data, lambda step, values: tune.report({"step": step, **values}))


def main():
    options = arguments(
        __doc__,
        reuse_actors="do not start a process for every trial",
        no_logger="without MLflow",
    )
    folder = Path(options.folder).absolute()
    os.chdir(folder)
    ray.init(
        num_cpus=options.slots,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    data = data_of(options.problem)
    callbacks = []
    if not options.no_logger:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks = [
            MLflowLoggerCallback(
                tracking_uri=f"sqlite:///{folder}/mlflow.db",
                experiment_name="sweep",
                save_artifact=True,
            )
        ]
    space = {
        "learning_rate": tune.loguniform(*RANGES["learning_rate"]),
        "init_scale": tune.loguniform(*RANGES["init_scale"]),
        "dropout": tune.uniform(*RANGES["dropout"]),
    }
    bound = tune.with_parameters(trial, data=data, name=options.problem)
    results = tune.Tuner(
        tune.with_resources(bound, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_loss",
            mode="min",
            search_alg=OptunaSearch(seed=0),
            num_samples=options.trials,
            max_concurrent_trials=options.slots,
            reuse_actors=options.reuse_actors,
        ),
        run_config=tune.RunConfig(
            name="sweep", storage_path=str(folder / "ray"), callbacks=callbacks, verbose=0
        ),
    ).fit()
    losses = [result.metrics["val_loss"] for result in results if result.error is None]
    ray.shutdown()
    conclude(losses)


if __name__ == "__main__":
    main()
