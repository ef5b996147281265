"""What the peer programs have in common: their arguments and the line they end with."""

import argparse
import json


def arguments(description, **more):
    """Parsed arguments; `more` names further switches and what they do."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("problem", choices=("mlp10", "mlp50", "lstm16", "lstm64"))
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--folder", required=True, help="an empty folder for all that is kept")
    for switch, explanation in more.items():
        parser.add_argument(f"--{switch.replace('_', '-')}", action="store_true", help=explanation)
    return parser.parse_args()


def conclude(losses):
    """Prints the last line: how many trials ended, and the lowest validation loss among them."""
    print(json.dumps({"trials": len(losses), "best": min(losses)}))
