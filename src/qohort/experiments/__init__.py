"""Experiments of many runs: sweeps, ablations and hyperparameter tuning.

Files, in reading order:
    sweep: Folds a sweep into cohorts, launches them and reports failures.
    showing: Prints what a sweep would train.
    ablation: Reads an ablation manifest and makes its arms and their overrides.
    presentation: The keys that say what a report shows and how it looks.
    stopping: The keys that say when the arms of an ablation stop.
    sequential: Decides the comparisons of an ablation group by group.
    groups: Trains an ablation group by group until every comparison is decided.
    search_space: Reads the search space of a study.
    tuning_config: Checks the configuration of a study and composes the runs of its trials.
    experiment_file: Writes settings as an experiment file.
    tuning: Runs a study: Optuna proposes trials, successive halving prunes them.
"""
