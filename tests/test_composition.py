"""Many configurations composed quickly are the ones that Hydra composes one by one."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.cli.entry_point import _options_first
from qohort.config.composition import CONFIG_DIRECTORY, Composer, without_hydra
from qohort.config.mistakes import explain

JOBS = [
    ["env=acrobot", "gamma=0.5"],
    ["env=acrobot", "gamma=0.6", "+env.kwargs.max_episode_steps=7"],
    ["env=acrobot"],
    ["gamma=0.5", "env=cartpole", "++gamma=0.7"],
    ["logger=[csv,wandb]", "optimizer=sgd", "+optimizer.momentum=0.9"],
    ["experiment=article/dqn", "budget=100", "~network.layer_norm"],
    ["seed=[1,2]", "fold=[{gamma:0.5},{gamma:0.6}]", "hydra.sweep.dir=x"],
    ["output_dir=${hydra:runtime.choices.env}", "env=frozenlake"],
]


@pytest.fixture(autouse=True)
def hydra():
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield


def test_as_hydra_composes_them():
    composer = Composer(GlobalHydra.instance().config_loader(), "train")
    for job in JOBS:
        own = without_hydra(composer(job))
        assert OmegaConf.to_yaml(own, resolve=True) == OmegaConf.to_yaml(compose("train", job), resolve=True)


def test_files_are_read_once_for_jobs_that_choose_alike(monkeypatch):
    loader, loads = GlobalHydra.instance().config_loader(), []
    load = loader.load_configuration
    monkeypatch.setattr(loader, "load_configuration", lambda *a, **k: loads.append(a) or load(*a, **k))
    composer = Composer(loader, "train")
    for job in JOBS[:3]:
        composer(job)
    assert len(loads) == 1
    assert composer(["env=acrobot"]).gamma == compose("train", ["env=acrobot"]).gamma


def test_what_hydra_refuses_is_refused():
    composer = Composer(GlobalHydra.instance().config_loader(), "train")
    for job in (["nope=1"], ["env=nope"], ["+gamma=1", "gamma.x=1"], ["~nope"]):
        with pytest.raises(HydraException):
            compose("train", job)
        with pytest.raises(HydraException):
            composer(job)


def test_options_may_stand_between_settings():
    words = ["seed=0,1", "-m", "gamma=0.5", "--config-dir", "mine", "env=acrobot"]
    settings = ["seed=0,1", "gamma=0.5", "env=acrobot"]
    assert _options_first(words, settings) == ["-m", "--config-dir", "mine", *settings]


def test_a_key_that_a_group_of_settings_lacks_is_named_in_full() -> None:
    config = OmegaConf.create({"arms": {"dqn": {"agent": "dqn"}}})
    OmegaConf.set_struct(config, True)
    with pytest.raises(OmegaConfBaseException) as raised:
        config.merge_with({"arms": {"dqn": {"agnt": "dqn"}}})
    assert str(explain(raised.value, [], None)) == "arms.dqn has no agnt; write +arms.dqn.agnt=VALUE to add it"
