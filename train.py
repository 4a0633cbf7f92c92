"""Train a task from a config; ``python train.py --help`` shows how, from dfx/commands/help/."""

from dfx.commands import run_train

if __name__ == "__main__":
    run_train()
