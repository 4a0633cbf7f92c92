"""Train a task from a config.

    python train.py fit --config configs/tube_amp.yaml
    python train.py fit --config configs/tube_amp.yaml --run.name mine --model.init_args.gradient.draws 2
    python train.py fit --config configs/tube_amp.yaml --run.name mine --run.resume true
    python train.py test --config configs/tube_amp.yaml --ckpt_path runs/tube_amp/checkpoints/best.ckpt

Every option of a config can be given on the command line; ``python train.py fit --help`` lists them. A run
writes to ``runs/NAME``: its resolved config, versions, metrics, checkpoints and offline W&B record.
"""

if __name__ == "__main__":
    # Imported here, since the processes of isolated effects import this file without training.
    from dfx.cli import main

    main()
