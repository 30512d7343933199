"""Runs: training members, and everything that a run directory contains.

Files, in reading order:
    preparing: Checks a configuration before anything is made of it.
    training: Trains the members of a configuration, from their checkpoints if they have any.
    members: The members of a cohort with their run directories, and the check for results of other code.
    checking: Checks the environment, network, optimiser, device and loggers before training.
    room: Checks that replays fit into memory and checkpoints onto the disk.
    directory: A run directory: its path, files, lock and state.
    manifest: `manifest.json`, what it takes to reproduce a run.
    code: The hash of the sources that a run was made with.
    metrics: The definitions of all metrics, and `metrics.jsonl`.
    loggers: W&B, CSV and TensorBoard, which get the rows of `metrics.jsonl`.
    wandb_runs: Starts W&B's runs, and continues them without a row twice.
    wandb_agent: The run of a W&B agent, which gets the evaluations of the whole cohort.
    trackers: Loggers of Lightning by their `_target_`, as MLflow's.
    checkpoints: The files of checkpoints: their names, which of them are whole, reading one.
    checkpointing: Saves checkpoints, one file per member: at intervals, and when training is asked to stop.
    interruption: Signals that ask training to stop.
    progress_bar: The progress bar, or one line per evaluation without a terminal.
    sweep_display: The progress of a sweep that several processes train.
    learning_curve: The learning curve of a run and of a cohort.
    summary: The table that is printed after training.
    evaluating: Loads a trained member and plays episodes.
    evaluations: Evaluates one run, several or a cohort, and writes their files.
    evaluation_videos: Films evaluations while training, where `evaluation.video_at` asks for it.
    video: Records a video of an episode, and puts videos side by side.
    policy: A trained policy as an ordinary object, and its network without a member axis.
    exporting: Exports a policy to a directory or to the Hugging Face Hub.
    formats: The formats of an exported policy, and how each is compared with the policy.
    exported: What rebuilds a policy without its run.
    loading: Loads policies of runs, and exported ones.
    model_card: The model card of an exported policy.
    hub: The upload to the Hugging Face Hub.
    plan: What a command would train, for a dry run.
"""
