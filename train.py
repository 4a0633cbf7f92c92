"""Train a task from a config; ``python train.py --help`` shows how, as dfx/commands/train.py does."""

from dfx.commands import run_train

if __name__ == "__main__":
    run_train()
