"""Wrong projects of one's own: `qohort new lab`, and then a mistake in one of its files."""

from __future__ import annotations

from collections.abc import Iterator

from wrong import DIRECTORY, SHORT, Wrong, swap

MINE = ("train", "experiment=mine", *(one for one in SHORT if not one.startswith("network.")))
"""A right line of the project's own experiment."""
NETWORK, HEAD, ENVIRONMENT = "lab/networks.py", "lab/heads.py", "lab/environments.py"


SUPER = "        super().__init__(torso, ActionValues(torso.width, actions, atoms))\n"
FEATURES = "        value: Tensor = self.first(self.features(observation)).relu()\n"
NETWORKS = [
    (swap(("class Residual(", "class Residual(:")), "lab.networks", "SyntaxError"),
    (swap(('"""A residual', 'import nopackage\n"""A residual')), "lab.networks", "nopackage"),
    (swap(("class Residual(", "class Residuals(")), "lab.networks.Residual does not exist"),
    (swap((SUPER, f"{SUPER}        raise ValueError('too wide')\n")), "network", "too wide"),
    (swap((SUPER, f"{SUPER}        raise KeyError('width')\n")), "network", "width"),
    (swap((SUPER, f"{SUPER}        raise RuntimeError('no luck')\n")), "network", "no luck"),
    (swap((SUPER, "        self.torso = torso\n")), "network"),
    (swap((SUPER, f"{SUPER}        assert width > 100\n")), "network", "AssertionError"),
    (swap((SUPER, f"{SUPER}        self.gone.width\n")), "network", "gone"),
    (swap((SUPER, f"{SUPER}        1 / 0\n")), "network", "division"),
    (swap((SUPER, f"{SUPER}        open('weights.pt')\n")), "network", "weights.pt"),
    (swap(("torso.width, actions, atoms", "torso.width + 1, actions, atoms")), "network"),
    (swap(("torso.width, actions, atoms", "torso.width, actions + 1, atoms")), "network", "3", "2"),
    (swap(("torso.width, actions, atoms", "torso.width, actions, atoms + 1")), "network"),
    (swap(("        atoms: int,\n", "")), "network", "atoms"),
    (swap(("        atoms: int,\n", "        atoms: int,\n        depth: int,\n")), "network.depth has no value"),
    (swap((FEATURES, f"{FEATURES}        if value.sum() > 0:\n            value = -value\n")), "network", "lifted"),
    (swap((FEATURES, f"{FEATURES}        value = value.numpy()\n")), "network"),
    (swap((FEATURES, f"{FEATURES}        return (value, value)\n")), "network"),
    (swap((FEATURES, f"{FEATURES}        return value.mean()\n")), "network"),
    (swap((FEATURES, f"{FEATURES}        raise KeyError('x')\n")), "network", "x"),
    (swap((FEATURES, f"{FEATURES}        value.nope()\n")), "network", "nope"),
    (swap((FEATURES, f"{FEATURES}        value = value + torch.ones(3)\n")), "network", "torch"),
    (swap((FEATURES, f"{FEATURES}        value = value * float(value.sum())\n")), "network"),
    (swap((FEATURES, f"{FEATURES}        value = value.double()\n")), "network"),
    (swap(("nn.Linear(self.features.width, width)", "nn.LazyLinear(width)")), "network"),
    (swap(("nn.Linear(self.features.width, width)", "nn.Linear(7, width)")), "network"),
    (swap(("class Residual(QNetwork)", "class Residual")), "lab.networks.Residual", "torch.nn.Module"),
    (swap(("Range(1)", "Ragne(1)")), "lab.networks", "Ragne"),
    (b"", "lab.networks.Residual does not exist"),
    (b"\xff\xfe", "lab.networks"),
    (b"raise SystemExit(3)\n", "lab.networks"),
    (b"import sys\nsys.exit()\n", "lab.networks"),
    (b"1 / 0\n", "lab.networks", "division"),
    (b"def Residual(observation_space, actions, atoms, width, blocks):\n    return 3\n", "network"),
    (b"def Residual(observation_space, actions, atoms, width, blocks):\n    pass\n", "network"),
    (b"Residual = 3\n", "lab.networks.Residual"),
    (None, "lab.networks"),
    (DIRECTORY, "lab.networks"),
]
DIVERGENCE = "        size = (target - online).abs() / self.scale\n"
RETURN = "        return self.scale**2 * (size + softplus(-2 * size) - math.log(2)), target - online\n"
SIGNATURE = "self, online: Tensor, target: Tensor, fractions: Tensor | None = None"
HEADS = [
    (swap(("class LogCosh(", "class LogCosh(:")), "lab.heads", "SyntaxError"),
    (swap(("class LogCosh(ScalarHead)", "class LogCosh")), "lab.heads.LogCosh", "qohort.agent.heads.Head"),
    (swap(("import math\n", "import nopackage\n")), "lab.heads", "nopackage"),
    (swap((SIGNATURE, "self, online: Tensor")), "head"),
    (swap((SIGNATURE, "self, prediction: Tensor, target: Tensor")), "head"),
    (swap((SIGNATURE, "self, online: Tensor, target: Tensor, fractions: Tensor, tau: Tensor")), "head"),
    (swap(("def divergence", "def loss")), "head"),
    (swap((RETURN, "        return size\n")), "head"),
    (swap((RETURN, "        return size.mean(), target - online\n")), "head"),
    (swap((RETURN, "        return size, size.mean()\n")), "head"),
    (swap((RETURN, "        return size, size, size\n")), "head"),
    (swap((RETURN, "        return None\n")), "head"),
    (swap((RETURN, "        return size.unsqueeze(-1), size\n")), "head"),
    (swap((DIVERGENCE, f"{DIVERGENCE}        raise ValueError('no loss')\n")), "head", "no loss"),
    (swap((DIVERGENCE, f"{DIVERGENCE}        size.nope()\n")), "head", "nope"),
    (swap((DIVERGENCE, f"{DIVERGENCE}        nope(size)\n")), "head", "nope"),
    (swap((DIVERGENCE, f"{DIVERGENCE}        if size.mean() > 1:\n            size = 2 * size\n")), "head"),
    (swap((DIVERGENCE, f"{DIVERGENCE}        size = size.detach().numpy()\n")), "head"),
    (swap((DIVERGENCE, f"{DIVERGENCE}        size = size.item()\n")), "head"),
    (swap(("self.scale\n", "self.sacle\n")), "head", "sacle"),
    (swap(("@dataclass(frozen=True)\n", "")), "head"),
    (b"LogCosh = 3\n", "lab.heads.LogCosh"),
    (None, "lab.heads"),
]
STEP = "        return self._cell, -1.0, self._cell == self._last, False, {}\n"
START = "        return self._cell, {}\n"
SPACE = "        self.observation_space = spaces.Discrete(length)\n"
ACTIONS = "        self.action_space = spaces.Discrete(2)\n"
REGISTER = 'gym.register("Corridor-v0", "lab.environments:Corridor", max_episode_steps=50)'
ENVIRONMENTS = [
    (swap(("class Corridor(", "class Corridor(:")), "env.id=", "SyntaxError"),
    (swap(("import Any\n", "import Any\nimport nopackage\n")), "env.id=", "nopackage"),
    (swap((REGISTER, "")), "env.id="),
    (swap((REGISTER, REGISTER.replace("Corridor-v0", "Coridor-v0"))), "env.id=", "Corridor"),
    (swap((REGISTER, REGISTER.replace(":Corridor", ":Coridor"))), "env.id=", "Coridor"),
    (swap((REGISTER, REGISTER.replace("lab.env", "lap.env"))), "env.id=", "lap"),
    (swap(("class Corridor(gym.Env[Any, Any])", "class Corridor")), "env.id=", "gymnasium.Env"),
    (swap((STEP, "        return self._cell, -1.0, False, {}\n")), "env.id=", "step"),
    (swap((STEP, "        return self._cell\n")), "env.id=", "step"),
    (swap((STEP, STEP.replace("-1.0", "'x'"))), "env.id=", "reward"),
    (swap((STEP, STEP.replace("-1.0", "float('nan')"))), "env.id=", "reward"),
    (swap((STEP, STEP.replace("-1.0", "None"))), "env.id=", "reward"),
    (swap((STEP, STEP.replace("return self._cell", "return 99"))), "env.id=", "99"),
    (swap((STEP, STEP.replace("return self._cell", "return None"))), "env.id=", "None"),
    (swap((STEP, STEP.replace("{}", "None"))), "env.id="),
    (swap((STEP, f"        raise RuntimeError('stuck')\n{STEP}")), "env.id=", "stuck"),
    (swap((START, "        return self._cell\n")), "env.id=", "reset"),
    (swap((START, "        return 'a', {}\n")), "env.id="),
    (swap((START, "        return -1, {}\n")), "env.id=", "-1"),
    (swap((START, f"        raise KeyError('map')\n{START}")), "env.id=", "map"),
    (swap((START, "        import random\n        return random.randrange(3), {}\n")), "env.id="),
    (swap(("seed: int | None = None, options", "options")), "env.id=", "seed"),
    (swap((ACTIONS, "        self.action_space = spaces.Box(-1, 1)\n")), "env.id=", "Discrete"),
    (swap((ACTIONS, "        self.action_space = 2\n")), "env.id="),
    (swap((ACTIONS, "")), "env.id="),
    (swap((SPACE, "        self.observation_space = None\n")), "env.id="),
    (swap((SPACE, "")), "env.id="),
    (swap((SPACE, "        self.observation_space = spaces.Text(3)\n")), "env.id=", "Text"),
    (swap((SPACE, f"{SPACE}        raise FileNotFoundError('level.txt')\n")), "env.id=", "level.txt"),
    (swap(("length: int = 8, ", "")), "env.kwargs", "length"),
    (b"raise SystemExit(3)\n", "env.id="),
    (None, "env.id=", "lab.environments"),
]
CONF = [
    ("conf/network/residual.yaml", swap(("lab.networks", "lap.networks")), "there is no package lap"),
    ("conf/network/residual.yaml", swap(("Residual", "Resdual")), "did you mean lab.networks.Residual?"),
    ("conf/network/residual.yaml", swap(("_target_", "target")), "network", "_target_"),
    ("conf/network/residual.yaml", swap(("width: 64", "widht: 64")), "widht", "did you mean network.width"),
    ("conf/network/residual.yaml", swap(("width: 64", "width: wide")), "network.width=wide"),
    ("conf/network/residual.yaml", swap(("width: 64", "width: 0")), "network.width=0"),
    ("conf/network/residual.yaml", swap(("width: 64", "width: [64]")), "network.width=[64]"),
    ("conf/network/residual.yaml", swap(("blocks: 2", "blocks: -2")), "network.blocks=-2"),
    ("conf/network/residual.yaml", swap(("width: 64", "width = 64")), "residual"),
    ("conf/network/residual.yaml", b"", "network"),
    ("conf/network/residual.yaml", b"3\n", "residual"),
    ("conf/network/residual.yaml", None, "residual"),
    ("conf/network/residual.yaml", b"_target_: [a\n", "residual.yaml"),
    ("conf/head/log_cosh.yaml", swap(("scale: 1.0", "scale: -1.0")), "head.scale=-1"),
    ("conf/head/log_cosh.yaml", swap(("scale: 1.0", "scale: x")), "head.scale=x"),
    ("conf/head/log_cosh.yaml", swap(("scale: 1.0", "sacle: 1.0")), "sacle"),
    ("conf/head/log_cosh.yaml", swap(("LogCosh", "LogCos")), "did you mean lab.heads.LogCosh?"),
    ("conf/env/corridor.yaml", swap(("cartpole", "cartpol")), "env/cartpol", "did you mean cartpole?"),
    ("conf/env/corridor.yaml", swap(("id: lab", "idd: lab")), "idd", "did you mean env.id"),
    ("conf/env/corridor.yaml", swap(("Corridor-v0", "Coridor-v0")), "Coridor-v0"),
    ("conf/env/corridor.yaml", swap(("lab.environments", "lab.enviroments")), "lab.enviroments"),
    ("conf/env/corridor.yaml", swap(("length: 8", "lenght: 8")), "lenght"),
    ("conf/env/corridor.yaml", swap(("length: 8", "length: long")), "length"),
    ("conf/env/corridor.yaml", swap(("kwargs:\n", "kwargs: 3\n"), ("  length: 8", "num_envs: 1")), "env.kwargs=3"),
    ("conf/env/corridor.yaml", swap(("defaults:\n  - cartpole\n", "")), "env"),
    ("conf/experiment/mine.yaml", swap(("# @package _global_\n", "")), "# @package _global_"),
    ("conf/experiment/mine.yaml", swap(("# @package _global_", "# @package global")), "# @package _global_"),
    ("conf/experiment/mine.yaml", swap(("/env: corridor", "/env: corridr")), "corridr", "corridor"),
    (
        "conf/experiment/mine.yaml",
        swap(("/network: residual", "/networks: residual")),
        "experiment/mine.yaml",
        "did you mean network or target_network?",
    ),
    ("conf/experiment/mine.yaml", swap(("override /env: corridor", "/env: corridor")), "env"),
    ("conf/experiment/mine.yaml", swap(("  - override /head: log_cosh\n", "  - override head: log_cosh\n")), "head"),
    ("conf/experiment/mine.yaml", swap(("budget: 20_000", "bugdet: 20_000")), "bugdet", "did you mean budget"),
    ("conf/experiment/mine.yaml", swap(("  lr: 1e-3", "  lrr: 1e-3")), "optimizer.lrr", "did you mean optimizer.lr"),
    ("conf/experiment/mine.yaml", swap(("  lr: 1e-3", "  lr: fast")), "optimizer.lr=fast"),
    ("conf/experiment/mine.yaml", swap(("optimizer:\n  lr: 1e-3", "lr: 1e-3")), "did you mean optimizer.lr?"),
    ("conf/experiment/mine.yaml", swap(("optimizer:\n  lr: 1e-3", "optimizer: 1e-3")), "optimizer"),
    ("conf/experiment/mine.yaml", swap(("optimizer:\n", "optimizer:")), "mine.yaml"),
    ("conf/experiment/mine.yaml", swap(("  lr: 1e-3", "lr: 1e-3")), "lr"),
    ("conf/experiment/mine.yaml", swap(("evaluation:\n  every", "evaluation.every")), "evaluation.every"),
    (
        "conf/experiment/mine.yaml",
        swap(("learning_starts: 500", "learning_starts: 500\nlearning_starts: 4")),
        "mine.yaml",
    ),
    ("conf/experiment/mine.yaml", swap(("learning_starts: 500", "gamma: 0,99")), "gamma=0,99"),
    ("conf/experiment/mine.yaml", swap(("learning_starts: 500", "gamma: ${gama}")), "gamma=${gama}"),
    ("conf/experiment/mine.yaml", swap(("defaults:", "default:")), "default"),
    ("conf/experiment/mine.yaml", None, "experiment=mine"),
    ("conf/network", b"a file", "residual"),
    ("conf", b"a file", "experiment=mine"),
    ("lab/__init__.py", b"import nopackage\n", "nopackage"),
    ("lab/__init__.py", b"raise RuntimeError('not now')\n", "not now"),
    ("lab", None, "lab"),
]


def projects() -> Iterator[Wrong]:
    """All of them."""
    for file, table in ((NETWORK, NETWORKS), (HEAD, HEADS), (ENVIRONMENT, ENVIRONMENTS)):
        for change, *told in table:
            yield Wrong(f"own {file}", MINE, tuple(map(str, told)), {file: change}, looks=True)
    for file, change, *told in CONF:
        yield Wrong("own conf", MINE, tuple(map(str, told)), {str(file): change}, looks=True)
    for file, change, *told in CONF[::6]:
        line = ("train", "-m", *MINE[1:], "gamma=0.9,0.99")
        yield Wrong("own conf, sweep", line, tuple(map(str, told)), {str(file): change}, looks=True)
