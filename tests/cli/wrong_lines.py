"""Wrong command lines of every command, by hand and by mutation of right ones."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from functools import cache

import yaml
from mutations import CONF, keys
from wrong import DIRECTORY, SHORT, Wrong

from qohort.cli.main import COMMANDS

HYDRA = ("train", "evaluate", "export", "report", "verify", "tune")
"""The commands that compose a configuration."""
RIGHT = {
    "train": SHORT,
    "evaluate": ("run={run}", "episodes=1"),
    "export": ("run={run}", "to=exported"),
    "report": ("ablation=own", "resamples=100", "reports_dir=written"),
    "verify": ("report=reports/own", "sample=1"),
    "tune": ("study=own",),
}
"""A right line of each of them."""

# Each line, and words that its message must have.
COMMAND_LINES = [
    ("trian", "trian is not a command", "did you mean train"),
    ("Train", "Train is not a command", "train"),
    ("evalute run=x", "did you mean evaluate"),
    ("reports", "did you mean report"),
    ("run", "did you mean runs"),
    ("list", "list is not a command", "it must be one of"),
    ("''", "is not a command"),
    ("seed=3", "seed=3 is not a command", "write the command first, as in qohort train"),
    ("env=acrobot agent=dqn", "write the command first"),
    ("-m train", "-m is not a command", "write the command first"),
    ("--foo", "--foo is not a command"),
    ("--verison", "--verison", "did you mean --version"),
    ("train.py", "train.py is not a command", "did you mean train"),
    ("é", "é is not a command"),
    ("new", "new needs one directory"),
    ("new a b", "new needs one directory"),
    ("new --force", "new needs one directory"),
    ("new 1lab", "1lab cannot be the name of a package"),
    ("new json", "json is the name of another package"),
    ("new conf", "conf"),
    ("new qohort", "qohort"),
    ("new .", "exists and is not an empty directory"),
    ("new 'a file'", "a file", "exists"),
    ("new 'a file/lab2'", "a file"),
    ("new lab=3", "lab=3 is a setting"),
    ("new class", "class", "cannot be the name of a package"),
    ("new outputs", "outputs"),
    ("new ''", "'' is an empty path"),
    ("new /proc/lab2", "/proc/lab2"),
    ("new torch", "torch is the name of another package"),
    ("new numpy", "numpy is the name of another package"),
    ("new " + "x" * 300, "xxx"),
    ("completion bash", "completion takes no arguments"),
    ("completion --shell", "completion takes no arguments"),
    ("runs nowhere", "nowhere is not a directory"),
    ("runs 'a file'", "a file is not a directory"),
    ("runs --jsn", "--jsn is not an option", "did you mean --json"),
    ("runs -j", "-j is not an option"),
    ("runs sate=failed", "sate=failed is not a filter", "did you mean state"),
    ("runs state=fnished", "state=fnished is not a state", "did you mean finished"),
    ("runs state=", "state", "finished"),
    ("runs state=Finished", "state=Finished", "finished"),
    ("runs seed=0", "seed=0 is not a filter", "env"),
    ("runs outputs nowhere", "nowhere is not a directory"),
    ("runs ''", "'' is an empty path"),
    ("runs =3", "=3"),
    ("runs env=", "env= has no value"),
    ("runs 'outputs/*'", "outputs/*"),
    ("diff", "diff needs two runs, got 0"),
    ("diff {run}", "diff needs two runs, got 1"),
    ("diff {run} {other} {twin}", "diff needs two runs, got 3"),
    ("diff {run} nowhere", "nowhere is not a directory"),
    ("diff {run} 'a file'", "a file is not a directory"),
    ("diff outputs {run}", "outputs has those of 2 experiments", "qohort runs"),
    ("diff {run} conf", "conf has no runs"),
    ("diff --json {run}", "--json is not an option", "--help"),
    ("diff {run} ''", "'' is an empty path"),
    ("diff run={run} run={other}", "run={run}"),
    ("rm", "rm needs a run"),
    ("rm --yes", "rm needs a run"),
    ("rm --yes nowhere", "nowhere is not a directory"),
    ("rm --yes {run}0", "0 is not a directory: did you mean", "a run's or an experiment's directory"),
    ("diff {run} {run}0", "0 is not a directory: did you mean", "a run's or an experiment's directory"),
    ("rm --yes outputz", "outputz is not a directory: did you mean outputs?"),
    ("rm --yes outputs", "outputs is not the directory of a run or of an experiment"),
    ("rm --yes conf", "conf is not the directory of a run"),
    ("rm --yes 'a file'", "a file is not a directory"),
    ("rm --force {run}", "--force is not an option", "--yes"),
    ("rm -rf {run}", "-rf is not an option"),
    ("rm --yes {run} nowhere", "nowhere is not a directory"),
    ("rm --yes .", "is not the directory of a run"),
    ("rm --yes /", "/"),
    ("rm --yes ''", "'' is an empty path"),
    ("rm --yes {run}/checkpoints", "checkpoints is not the directory of a run"),
    ("rm --yes run={run}", "run="),
]
EVALUATE = [
    ("", "run has no value", "run=VALUE"),
    ("run=", "run"),
    ("run=nowhere", "run=nowhere is not a directory", "seed-<n>"),
    ("'run=a file'", "a file is not a directory"),
    ("run=outputs", "run=outputs", "config.yaml", "did you mean run="),
    ("run=conf", "run=conf", "config.yaml"),
    ("'run=nowhere/*'", "nowhere/*", "no"),
    ("'run=outputs/*'", "outputs"),
    ("'run=[{run},nowhere]'", "nowhere"),
    ("'run=[]'", "run"),
    ("'run=[{run},3]'", "run=[{run},3] is not text or a list, each text"),
    ("'run={a:{run}}'", "run"),
    ("run={run} episodes=0", "episodes=0", "at least 1"),
    ("run={run} episodes=abc", "episodes=abc", "an integer of at least 1"),
    ("run={run} episodes=1.5", "episodes=1.5", "an integer"),
    ("run={run} episodes=[1]", "episodes=[1]"),
    ("run={run} episodes=null", "episodes=null"),
    ("run={run} episodes=true", "episodes=true"),
    ("run={run} epsilon=2", "epsilon=2", "at most 1"),
    ("run={run} epsilon=nan", "epsilon=nan", "at most 1"),
    ("run={run} epsilon=-0.1", "epsilon=-0.1"),
    ("run={run} seed=-1", "seed=-1", "at least 0"),
    ("run={run} seed=[0,1]", "seed=[0,1]", "an integer"),
    ("run={run} seed=99999999999999999999", "seed=99999999999999999999"),
    ("run={run} max_episode_steps=0", "max_episode_steps=0", "null"),
    ("run={run} video=yes", "video=yes", "grid"),
    ("run={run} video=gird", "video=gird", "grid"),
    ("run={run} accelerator=gpu", "accelerator=gpu", "no GPU"),
    ("run={run} accelerator=cuda", "accelerator=cuda", "auto, cpu, gpu"),
    ("run={run} threads=0", "threads=0", "at least 1"),
    ("run={run} episods=3", "episods=3", "did you mean episodes"),
    ("run={run} budget=3", "budget=3", "it must be one of"),
    ("run={run} +foo=3", "foo=3"),
    ("run={run} episodes.a=3", "episodes.a=3"),
    ("run={run} episodes=1,2", "episodes=1,2", "add -m"),
    ("{run}", "is not a setting", "key=value"),
    ("run {run}", "is not a setting", "key=value"),
    ("--run {run}", "{run}", "key=value"),
    ("run={run} run={other} env=acrobot", "env=acrobot"),
    ("run={run} --video", "--video"),
    ("run={run} --dry-run", "--dry-run"),
    ("run={run} -m episodes=1,0", "episodes=0"),
    ("run={run} -m nope=1,2", "nope"),
    ("run=~nobody/x", "run="),
    ("run={run}/config.yaml", "config.yaml is not a directory"),
    ("run={run}/checkpoints", "no config.yaml"),
]
EXPORT = [
    ("", "run has no value"),
    ("run=nowhere", "run=nowhere is not a directory"),
    ("'run=a file'", "a file is not a directory"),
    ("run={experiment}", "did you mean run={run}"),
    ("run=outputs", "run=outputs"),
    ("'run=[{run},{other}]'", "run=["),
    ("run={run} format=onxn", "format=onxn", "did you mean onnx"),
    ("run={run} format=[onnx]", "format=[onnx]"),
    ("run={run} format=null", "format=null"),
    ("run={run} format=", "format=''"),
    ("run={run} 'to=a file'", "a file", "not a directory"),
    ("run={run} to=conf", "to=conf", "not of an export"),
    ("run={run} to=outputs", "to=outputs"),
    ("run={run} to=", "to=''"),
    ("run={run} 'to=a file/x'", "a file"),
    ("run={run} to=hub:", "hub:"),
    ("run={run} 'to=hub:a b'", "hub:a b"),
    ("run={run} to=hub:a/b/c", "hub:a/b/c"),
    ("run={run} to=3", "to=3"),
    ("run={run} to=/proc/x", "/proc"),
    ("run={run} checkpoint=nope.ckpt", "checkpoint=nope.ckpt", "final.ckpt"),
    ("run={run} checkpoint=../config.yaml", "checkpoint=../config.yaml"),
    ("run={run} checkpoint=3", "checkpoint=3"),
    ("run={run} video=maybe", "video=maybe", "true or false"),
    ("run={run} private=2", "private=2", "true or false"),
    ("run={run} license=[mit]", "license=[mit]"),
    ("run={run} formt=onnx", "formt=onnx", "did you mean format"),
    ("run={run} --format onnx", "--format"),
    ("run={run} format", "'format' is not a setting"),
    ("run={run} license=3", "license=3"),
    ("run={run} dir=x", "dir=x"),
    ("run={run} -m format=onnx,onxn", "onxn"),
]
REPORT = [
    ("", "ablation has no value", "runs=PATTERN"),
    ("ablation=onw", "ablation=onw", "did you mean own"),
    ("ablation=null runs=null", "ablation has no value"),
    ("ablation=[own,nope]", "nope"),
    ("ablation={a:1}", "ablation"),
    ("ablation=own runs=outputs", "both given"),
    ("runs=nowhere", "runs=nowhere has no runs"),
    ("'runs=nowhere/*'", "no runs"),
    ("runs=conf", "runs=conf has no runs"),
    ("'runs=a file'", "a file has no runs"),
    ("runs=[]", "runs"),
    ("runs=[outputs,nowhere]", "nowhere"),
    ("runs=[outputs,3]", "runs=[outputs,3] is not text or a list, each text"),
    ("runs=3", "runs=3"),
    ("runs=", "runs"),
    ("runs=outputs baseline=dqnn", "baseline=dqnn", "did you mean dqn"),
    ("runs=outputs baseline=3", "baseline=3"),
    ("runs=outputs baseline=nowhere", "baseline=nowhere", "it must be one of"),
    ("runs=outputs name=../x", "name=../x"),
    ("runs=outputs name=/x", "name=/x"),
    ("runs=outputs name=.", "name=."),
    ("runs=outputs name=''", "name=''"),
    ("runs=outputs 'overrides=[budget=3]'", "overrides"),
    ("ablation=own baseline=dqn", "baseline=dqn does not go with ablation"),
    ("ablation=own name=x", "name=x does not go with ablation"),
    ("ablation=own overrides=budget", "overrides=budget"),
    ("ablation=own overrides=[budget]", "budget", "key=value"),
    ("ablation=own 'overrides=[\"bdget=40\"]'", "bdget=40", "did you mean budget"),
    ("ablation=own 'overrides=[\"env=acrobot\"]'", "env=acrobot does not go with ablation"),
    ("ablation=own 'overrides=[\"gamma=2\"]'", "gamma=2", "at most 1"),
    ("ablation=own 'overrides=[\"budget=80\"]'", "4 of 4 runs", "qohort train -m ablation=own budget=80"),
    ("ablation=own 'overrides=[\"seed=0,1,2\"]'", "2 of 6 runs", "allow_missing=true"),
    ("ablation=own output_dir=nowhere", "4 of 4 runs"),
    ("ablation=own 'output_dir=a file'", "4 of 4 runs"),
    ("ablation=own 'reports_dir=a file'", "reports_dir", "a file", "not a directory"),
    ("ablation=own reports_dir=/proc/x", "reports_dir=/proc/x"),
    ("ablation=own reports_dir=", "reports_dir=''"),
    ("ablation=own reports_dir=3", "reports_dir=3"),
    ("ablation=own allow_missing=maybe", "allow_missing=maybe", "true or false"),
    ("ablation=own other_code=alow", "other_code=alow", "did you mean allow"),
    ("ablation=own resamples=10", "resamples=10", "at least 100"),
    ("ablation=own resamples=many", "resamples=many"),
    ("ablation=own wandb=offline", "wandb=offline", "true or false"),
    ("ablation=own external=nowhere.csv", "nowhere.csv"),
    ("ablation=own external=conf", "conf"),
    ("ablation=own 'external=a file'", "a file", ".csv"),
    ("ablation=own external=3", "external=3"),
    ("ablation=own external=[published.csv]", "external=[published.csv]"),
    ("ablation=own resample=200", "resample=200", "did you mean resamples"),
    ("ablation=own seed=0", "seed=0"),
    ("own", "'own' is not a setting"),
    ("reports/own", "is not a setting"),
    ("-m ablation=own resamples=100,10", "resamples=10"),
    ("ablation=own,cartpole_components", "ablation=own,cartpole_components", "-m"),
]
VERIFY = [
    ("", "report has no value"),
    ("report=", "report=''"),
    ("report=nowhere", "report=nowhere", "scores.csv"),
    ("report=outputs", "report=outputs", "scores.csv"),
    ("'report=a file'", "a file", "scores.csv"),
    ("report=reports", "report=reports", "reports/own"),
    ("report=reports/own/report.html", "report.html"),
    ("report=[reports/own]", "report="),
    ("report=own", "report=own"),
    ("report=reports/own sample=0", "sample=0", "at least 1"),
    ("report=reports/own sample=all", "sample=all", "an integer"),
    ("report=reports/own sample=nan", "sample=nan"),
    ("report=reports/own seed=-1", "seed=-1"),
    ("report=reports/own level=0", "level=0", "above 0"),
    ("report=reports/own level=1", "level=1", "below 1"),
    ("report=reports/own level=x", "level=x"),
    ("report=reports/own sampel=1", "sampel=1", "did you mean sample"),
    ("report=reports/own resamples=1", "resamples=1"),
    ("reports/own", "is not a setting"),
    ("ablation=own", "ablation=own"),
    ("report=reports/own --sample 3", "--sample"),
]
TUNE = [
    ("", "name has no value"),
    ("study=onw", "study=onw", "did you mean own"),
    ("study=own trials=0", "trials=0", "at least 1"),
    ("study=own trials=abc", "trials=abc"),
    ("study=own parallel=0", "parallel=0"),
    ("study=own rungs=40", "rungs=40", "a list"),
    ("study=own rungs=[]", "rungs=[]"),
    ("study=own rungs=[40,40]", "rungs=[40,40] must increase"),
    ("study=own rungs=[40,20]", "rungs=[40,20] must increase"),
    ("study=own rungs=[0]", "rungs[0]=0"),
    ("study=own rungs=[a]", "rungs[0]=a"),
    ("study=own rungs=[4]", "rungs", "budget=4"),
    ("study=own reduction=1", "reduction=1", "at least 2"),
    ("study=own tuning_seeds=[]", "tuning_seeds=[]"),
    ("study=own tuning_seeds=[1,1]", "tuning_seeds", "twice"),
    ("study=own tuning_seeds=3", "tuning_seeds=3", "a list"),
    ("study=own reporting_seeds=[1000]", "share 1000"),
    ("study=own reporting_seeds=[-1]", "reporting_seeds[0]=-1"),
    ("study=own sampler=tpee", "sampler=tpee", "did you mean tpe"),
    ("study=own sampler_seed=-1", "sampler_seed=-1"),
    ("study=own max_members=0", "max_members=0"),
    ("study=own name=../x", "name=../x is not a file name"),
    ("study=own 'name=a b'", "name=a b"),
    ("study=own name=", "name=''"),
    ("study=own name=3", "name=3"),
    ("study=own 'output_dir=a file'", "output_dir", "a file"),
    ("study=own overwrite=2", "overwrite=2"),
    ("study=own space=3", "space=3"),
    ("study=own +space.gama={low:0.1,high:0.5}", "gama", "did you mean gamma"),
    ("study=own space.gamma=3", "space.gamma=3"),
    ("study=own +space.batch_size={low:8,high:4}", "space.batch_size"),
    ("study=own +space.batch_size={low:0,high:4}", "batch_size=0"),
    ("study=own +space.batch_size={low:a,high:4}", "space.batch_size.low=a"),
    ("study=own +space.batch_size={low:1}", "space.batch_size.high"),
    ("study=own +space.batch_size={min:1,max:4}", "space.batch_size", "low"),
    ("study=own +space.batch_size={low:1,high:4,step:0}", "step"),
    ("study=own +space.batch_size={low:1,high:8,step:2,log:true}", "space.batch_size"),
    ("study=own +space.batch_size={low:1,high:8,logg:true}", "logg"),
    ("study=own +space.batch_size={low:0,high:8,log:true}", "space.batch_size"),
    ("study=own +space.batch_size={choices:[]}", "space.batch_size.choices=[]"),
    ("study=own +space.batch_size={choices:4}", "space.batch_size.choices=4"),
    ("study=own +space.batch_size={choices:[4,a]}", "batch_size=a"),
    ("study=own +space.batch_size={choices:[4],low:1}", "low"),
    ("study=own +space.optimizer={choices:[adam,adamm]}", "optimizer=adamm", "did you mean adam"),
    ("study=own +space.budget={low:10,high:40}", "budget cannot be set here"),
    ("study=own +space.seed={choices:[1,2]}", "seed cannot be set here"),
    ("study=own +space.logger={choices:[none,wandb]}", "logger"),
    ("study=own +train.gama=0.5", "gama", "did you mean gamma"),
    ("study=own train.batch_size=-4", "batch_size=-4"),
    ("study=own +train.env=cartpol", "env=cartpol", "did you mean cartpole"),
    ("study=own +train.seed=3", "seed cannot be set here"),
    ("study=own 'space={optimizer.lr:null,gamma:null}'", "space"),
    ("study=own trails=3", "trails=3", "did you mean trials"),
    ("study=own env=acrobot", "env=acrobot"),
    ("name=x", "space has no value"),
    ("own", "'own' is not a setting"),
    ("-m study=own trials=1,0", "trials=0"),
]
BENCHMARK = [
    ("geometries=[nope]", "geometries", "nope"),
    ("geometries=cleanrl", "geometries=cleanrl"),
    ("cohorts=[0]", "cohorts[0]=0"),
    ("repeats=0", "repeats=0"),
    ("sweep=-1", "sweep=-1"),
    ("core=999", "core=999"),
    ("core=a", "core=a"),
    ("compile=fast", "compile=fast"),
    ("backend=jax", "backend=jax"),
    ("bits=portabel", "bits=portabel", "portable"),
    ("budget_factor=0", "budget_factor=0"),
    ("repeat=3", "repeat=3", "did you mean repeats"),
    ("--fast", "--fast"),
    ("cleanrl", "is not a setting"),
]
SWEEPS = [
    ("-m seed=0,0", "seed"),
    ("-m seed=0,-1", "seed"),
    ("-m seed=range(3,0)", "seed=range(3,0)", "no values"),
    ("-m seed=range(0,2,0)", "seed=range(0,2,0)"),
    ("-m agent=dqn,double,agent", "agent=agent"),
    ("-m agent=[dqn,double]", "agent=[dqn,double]", "-m agent=dqn,double"),
    ("-m gamma=0.9,0.99, seed=0", "gamma=0.9,0.99,"),
    ("-m gamma=", "gamma=''"),
    ("-m gama=0.9,0.99", "gama", "did you mean gamma"),
    ("-m optimizer.lrr=1e-3,1e-4", "optimizer.lrr", "did you mean optimizer.lr"),
    ("-m env=cartpole,acrobt", "env=acrobt", "did you mean acrobot"),
    ("-m env.id=CartPole-v1,CartPole-v9", "CartPole-v9"),
    ("-m budget=40,abc", "budget=abc"),
    ("-m budget=40,0", "budget=0"),
    ("-m seed=0,1 budget=4,40", "budget=4"),
    ("-m agent=dqn,stream_q train_every=4", "stream_q", "train_every=1"),
    ("-m network.hidden=[8],[a]", "network.hidden[0]=a"),
    ("-m 'network.hidden=[8],[8'", "close every bracket"),
    ("-m seed=0,1 hydra/launcher=jobllib", "hydra/launcher=jobllib", "did you mean joblib"),
    ("-m seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=many", "n_jobs"),
    ("-m seed=0,1 hydra.sweeper.max_member=2", "hydra.sweeper.max_member", "max_members"),
    ("-m seed=0,1 hydra/sweeper=optuna", "hydra/sweeper=optuna"),
    ("-m seed=0,1 hydra.sweep.dir=/proc/x", "/proc/x"),
    ("-m ablation=onw", "ablation=onw", "did you mean own"),
    ("-m ablation=own agent=dqn", "agent=dqn does not go with ablation"),
    ("-m ablation=own env=acrobot", "env=acrobot does not go with ablation"),
    ("-m ablation=own gamma=0.9,0.99", "gamma=0.9,0.99 does not go with ablation"),
    ("-m ablation=own budget=4", "budget=4"),
    ("-m ablation=own bootstrap=double", "arms dqn and double are the same experiment"),
    ("-m ablation=own until=decidde", "until=decidde", "decided"),
    ("-m ablation=own until=decided sequential.seeds_per_group=0", "seeds_per_group"),
    ("-m ablation=own sequential.margn=1", "margn", "margin"),
    ("ablation=own", "ablation is a sweep: add -m"),
    ("-m ablation=own,onw", "onw"),
    ("-m fold=[{gamma:0.5},{gama:0.5}] seed=[0,1]", "gama"),
    ("-m seed=0,1 --dry-run agent=dqnn", "agent=dqnn"),
    ("-m seed=0,1 --cfg hydra", "--cfg"),
    ("seed=0,1", "add -m"),
    ("-m seed=0,1 -m gamma=2", "gamma=2"),
    ("--multirun=yes seed=0", "--multirun"),
    ("-m experiment=debug,nope", "experiment=nope"),
]
TRAIN = [
    ("device=cuda", "unknown key device=cuda", "trainer=gpu or trainer=cpu"),
    ("gpu=1", "unknown key gpu=1", "trainer=gpu or trainer=cpu"),
    ("accelerator=gpu", "unknown key accelerator=gpu", "trainer=gpu or trainer=cpu"),
    ("agent=dqn agent=dqnn", "agent=dqnn"),
    ("agent=dqn.yaml", "agent=dqn.yaml", "did you mean dqn"),
    ("agent=conf/agent/dqn", "agent=conf/agent/dqn"),
    ("agent=DQN", "agent=DQN", "dqn"),
    ("agent={a:1}", "agent"),
    ("agent=3", "agent=3"),
    ("agent=true", "agent=true"),
    ("env=CartPole-v1", "env=CartPole-v1", "cartpole"),
    ("env={id:CartPole-v1} env.idd=3", "env"),
    ("optimizer={lr:abc}", "optimizer={lr:abc}", "optimizer.lr=VALUE"),
    ("optimizer.lr.value=3", "optimizer.lr is", "no key value"),
    ("lr=1e-3", "did you mean optimizer.lr"),
    ("optimizer=lr", "optimizer=lr"),
    ("network=64", "network=64"),
    ("network=[64,64]", "network"),
    ("network.hidden={a:3}", "network.hidden"),
    ("network.hidden=[[8]]", "network.hidden[0]=[8]"),
    ("network.hidden=[]", "network.hidden"),
    ("network.hidden=[-8]", "network.hidden[0]=-8"),
    ("network.hidden=[1000000000000]", "network", "allocate memory"),
    ("batch_size=1000000000000", "batch_size=1000000000000"),
    ("env.num_envs=100000000000", "env.num_envs"),
    ("evaluation=3", "evaluation", "a group of keys"),
    ("evaluation.episodes=[1]", "evaluation.episodes=[1]"),
    ("evaluation.video_at=[100000]", "evaluation.video_at=100000"),
    ("evaluation.env={id:x}", "evaluation.env has no id"),
    ("checkpoint.every=nan", "checkpoint.every=nan"),
    ("checkpoint.every=-5", "checkpoint.every=-5"),
    ("compile=true", "compile=true"),
    ("bits=native64", "bits=native64", "native"),
    ("other_code=yes", "other_code=yes"),
    ("output_dir=[outputs]", "output_dir=[outputs]"),
    ("'output_dir=a file'", "output_dir=a file", "not a directory"),
    ("'output_dir=a file/x'", "output_dir=a file/x"),
    ("output_dir=/proc/x", "/proc/x"),
    ("gamma", "'gamma' is not a setting"),
    ("gamma 0.5", "is not a setting"),
    ("'gamma= 0.5 0.6'", "gamma"),
    ("gamma=0,5", "gamma=0,5", "-m"),
    ("gamma=½", "gamma=½"),
    ("gamma=0.9.9", "gamma=0.9.9"),
    ("'gamma=\"0.9'", "close every bracket and quote"),
    ("'gamma=[0.9'", "close every bracket"),
    ("'gamma=0.9]'", "gamma"),
    ("gamma=1e-", "gamma=1e-"),
    ("Gamma=0.5", "Gamma=0.5", "did you mean gamma"),
    ("--gamma=0.5", "--gamma"),
    ("--seed 3", "--seed"),
    ("-seed=3", "-s"),
    ("seed=None", "seed=None"),
    ("seed=range(0,3)", "seed=range(0,3)", "-m"),
    ("seed=0..4", "seed=0..4"),
    ("seed=0-4", "seed=0-4"),
    ("seed=[0,1,]", "seed"),
    ("seed=[0 1]", "seed"),
    ("'seed=\"3\"'", "seed=3"),
    ("logger=wandbb", "logger=wandbb", "did you mean wandb"),
    ("callbacks=parameter_norms", "callbacks=parameter_norms", "did you mean parameter_norm"),
    ("trainer=tpu", "trainer=tpu"),
    ("trainer.accelerator=cuda", "trainer.accelerator=cuda"),
    ("trainer.max_steps=10", "trainer.max_steps"),
    ("trainer.precision=16", "trainer.precision"),
    ("+trainer.foo=1", "foo"),
    ("experiment=cartpol", "experiment=cartpol", "did you mean cartpole"),
    ("experiment=[cartpole,debug]", "experiment"),
    ("experiment=mine.yaml", "experiment=mine.yaml", "mine"),
    ("+experiment=mine", "+experiment=mine"),
    ("~experiment", "~experiment"),
    ("ablation=own", "ablation is a sweep"),
    ("study=own", "study=own"),
    ("run={run}", "run="),
    ("episodes=3", "did you mean evaluation.episodes"),
    ("arm='a b'", "arm=a b"),
    ("arm=../x", "arm=../x"),
    ("fold=[{a:1}]", "fold"),
    ("--config-dir=nowhere", "--config-dir nowhere: no such directory"),
    ("'--config-dir=a file'", "--config-dir a file"),
    ("--config-name=own", "own"),
    ("--config-name=conf/train.yaml", "conf/train"),
    ("--config-path=nowhere", "nowhere"),
    ("--config-dir", "--config-dir", "expected one argument"),
    ("--cfg", "--cfg", "expected one argument"),
    ("--cfg jobs", "jobs", "job"),
    ("--info config_", "config_"),
    ("--package", "--package"),
    ("hydra.searchpath=[file://nowhere]", "nowhere"),
    ("hydra.searchpath=nowhere", "hydra.searchpath"),
    ("hydra.job.nme=x", "hydra.job.nme"),
    ("hydra.job.chdir=perhaps", "hydra.job.chdir=perhaps"),
    ("hydra.run.dir=/proc/x", "/proc/x"),
    ("'hydra.run.dir=a file/x'", "a file"),
    ("hydra.mode=TRAIN", "hydra.mode"),
    ("hydra/job_logging=nope", "hydra/job_logging=nope"),
    ("hydra/nope=1", "hydra/nope"),
    ("hydra=3", "hydra"),
    ("'gamma=${gama}'", "gamma=${gama}"),
    ("'gamma=${oc.env:NOT_SET}'", "gamma=${oc.env:NOT_SET}"),
    ("'gamma=${nope:1}'", "gamma=${nope:1}"),
    ("'gamma=${budget}'", "gamma=40"),
    ("env.kwargs=3", "env.kwargs"),
    ("env.wrappers=3", "env.wrappers=3"),
    ("env.wrappers=[TimeLimit]", "env.wrappers[0]=TimeLimit"),
    ("env.backend=torch", "env.backend=torch"),
    ("env.workers=-1", "env.workers=-1"),
    ("env=acrobot env.backend=tensr", "env.backend=tensr"),
    ("info_metrics=is_success", "info_metrics=is_success", "a list"),
    ("until=decided", "until=decided is for ablations"),
    ("head=categorical head.atoms=0", "head.atoms=0"),
    ("head=categorical head.v_min=a", "head.v_min=a"),
    ("head=quantile head.v_min=1", "head.v_min"),
    ("replay=prioritized replay.alpha=-1", "replay.alpha=-1"),
    ("replay=prioritized replay.alpha=abc", "replay.alpha=abc"),
    ("exploration=linear exploration.epsilon.end=-0.1", "end=-0.1"),
    ("exploration.epsilon.fraction=0", "fraction=0"),
    ("target_network=polyak target_network.every=3", "target_network.every"),
    ("agent=dqn network=nature", "network"),
    ("env=mountaincar env.id=MountainCarContinuous-v0", "MountainCarContinuous-v0", "Discrete"),
]
LOOKS = (
    "000000000]",
    "CartPole-v9",
    "network=nature",
    "MountainCarContinuous",
    "ablation=own bootstrap=double",
    "output_dir=/proc/x",
    "trials=1,0",  # studies are checked one after the other
)
"""Parts of lines whose mistake only the environment can tell."""


def by_hand() -> Iterator[Wrong]:
    """The tables."""
    yield from (_wrong("command", line, told) for line, *told in COMMAND_LINES)
    tables = {"evaluate": EVALUATE, "export": EXPORT, "report": REPORT, "verify": VERIFY, "tune": TUNE}
    for command, table in {**tables, "benchmark": BENCHMARK}.items():
        yield from (_wrong(command, f"{command} {line}", told) for line, *told in table)
    short = shlex.join(SHORT)
    yield from (_wrong("train", f"train {short} {line}", told) for line, *told in TRAIN)
    for line, *told in SWEEPS:
        # What a line of a sweep sets is not set before, as a user would write it.
        plain = shlex.join(one for one in SHORT if one.split("=")[0] not in ("seed", "budget", "network.hidden"))
        if "ablation=" in line:
            plain = ""
        budget = "" if "budget=" in line or "ablation=" in line else "budget=40 "
        yield _wrong("sweep", f"train {plain} {budget}{line}", told)


def _wrong(kind: str, line: str, told: list[str]) -> Wrong:
    lists = any("runs" in words and words[0].isdigit() for words in told)
    looks = any(part in line for part in LOOKS)
    return Wrong(kind, tuple(shlex.split(line)), tuple(told), looks=looks, lists=lists)


@cache
def _own_keys(command: str) -> dict[str, object]:
    """The keys of a command, and their values."""
    if command == "train":
        return {key: value for key, value in keys().items() if key.split(".")[0] not in ("logger", "callbacks")}
    primary = yaml.safe_load((CONF / f"{command}.yaml").read_text())
    return {key: value for key, value in primary.items() if key not in ("defaults", "hydra")}


def misspelt(word: str) -> str:
    """A word with two letters in its middle swapped, or one doubled if they are equal."""
    at = len(word) // 2
    swapped = word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    return swapped if swapped != word else word[:at] + "q" + word[at:]


ODD = ("{a:1}", "[1,[2]]", "nan", "-1", "🎲", "[]", "{}", "1.5", "true", "''", "1e400", "'a b'", "${nope}", "0", "null")
"""Values that fit few keys."""


def misspelt_keys() -> Iterator[Wrong]:
    """Every key of every command with two letters swapped; of train, every second one."""
    for command in HYDRA:
        for number, (key, _) in enumerate(sorted(_own_keys(command).items())):
            if command == "train" and number % 3:
                continue
            front, _, last = key.rpartition(".")
            if len(last) < 3 or last.startswith("_"):
                continue
            wrong = f"{front}.{misspelt(last)}" if front else misspelt(last)
            told = (wrong, key) if len(last) > 4 and "." not in key else (wrong,)
            yield Wrong("misspelt key", (command, *RIGHT[command], f"{wrong}=1"), told)


def odd_values() -> Iterator[Wrong]:
    """Every key of every command with three odd values; of train, every other key with one."""
    draw = random.Random(0)
    for command in HYDRA:
        own = [key for key in sorted(_own_keys(command)) if not key.endswith("_")]
        for key in draw.sample(own, 40) if command == "train" else own:
            for value in draw.sample(ODD, 1 if command == "train" else 3):
                words = (command, *RIGHT[command], f"{key}={value}")
                yield Wrong("odd value", words, (key.split(".")[-1],), may_be_right=True, lists=key == "output_dir")


ADDED = ("=", "a", "=1", "a:1", "[", "--nope", "-x", "~nope", "+a.b", "a=(", "a='", "@x=1", "a@b=1", "++=1", "a = 1")
"""Words that no command takes."""


def stray_words() -> Iterator[Wrong]:
    """A right line of each command and a word that it does not take."""
    for command in HYDRA:
        for word in ADDED:
            yield Wrong("stray word", (command, *RIGHT[command], word))
    for command in ("runs", "diff", "rm", "completion", "new"):
        for word in ("--nope", "-x") if command == "new" else ("--nope", "-x", "a:1"):
            right = {"runs": ("outputs",), "diff": ("{run}", "{other}"), "rm": ("{run}",)}.get(command, ())
            yield Wrong("stray word", (command, *right, word), ())


def misspelt_commands() -> Iterator[Wrong]:
    """Every command with two letters swapped."""
    for command in COMMANDS:
        yield Wrong("misspelt command", (misspelt(command),), (misspelt(command), command))


def missing_places() -> Iterator[Wrong]:
    """Files where directories should be, the other way round, and places that cannot be written."""
    places = {
        "train": ("output_dir", SHORT),
        "report": ("reports_dir", RIGHT["report"][:2]),
        "export": ("to", RIGHT["export"][:1]),
        "tune": ("output_dir", RIGHT["tune"]),
    }
    for command, (key, right) in places.items():
        yield Wrong("place", (command, *right, f"{key}=here"), (f"{key}=", "here"), {"here": "a file"})
        yield Wrong("place", (command, *right, f"{key}=here/x/y"), (f"{key}=", "here"), {"here": "a file"})
        yield Wrong("place", (command, *right, f"{key}=/proc/x"), ("/proc/x",), looks=command in ("train", "tune"))
        yield Wrong("place", (command, *right, f"{key}=here"), ("cannot be written",), user=True)
    yield Wrong("place", ("evaluate", *RIGHT["evaluate"]), ("run=", "not writable"), user=True)
    yield Wrong("place", ("export", "run={run}"), ("to=",), user=True)
    yield Wrong("place", ("tune", *RIGHT["tune"]), (), {"conf/experiment/found.yaml": DIRECTORY}, looks=True)
    yield Wrong("place", ("tune", *RIGHT["tune"]), ("found",), {"conf/experiment/found.yaml": "gamma: 0.5\n"})
    yield Wrong("place", ("rm", "--yes", "{run}"), (), user=True)
    yield Wrong("place", ("new", "here"), ("here",), user=True)
    yield Wrong("place", ("train", *SHORT), (), {"outputs": "a file"})
    yield Wrong("place", ("train", *SHORT), (), {"outputs/CartPole-v1": "a file"})


def lines() -> Iterator[Wrong]:
    """All of them."""
    for some in (by_hand, misspelt_commands, misspelt_keys, odd_values, stray_words, missing_places):
        yield from some()
