"""Compare a trained model with baselines; ``python evaluate.py --help`` shows how, as dfx/commands/evaluate.py does."""

from dfx.commands import run_evaluate

if __name__ == "__main__":
    run_evaluate()
