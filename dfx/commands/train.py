"""Train a neural network that operates audio effects.

    python train.py fit --config configs/tube_amp.yaml            train; the run's folder is runs/NAME
    python train.py fit --config configs/tube_amp.yaml --run.name mine --run.resume true    continue a run
    python train.py test --config configs/tube_amp.yaml --ckpt_path runs/tube_amp/checkpoints/best.ckpt
    python train.py fit --help                                    all options of runs, data, logging and trainer
    python train.py fit --model.help Mastering                    all options of a task: TubeAmp, NonSpeech, Mastering

Every option of a config can be given on the command line too: ``--data.batch_size 8``. A run writes its resolved
config, versions, metrics, checkpoints and offline W&B record.
"""
