"""The DQN agent: acting, exploration, the TD loss, the update, and the LightningModule that runs them.

The files in reading order:

- `acting.py`: `Actor` takes one action in every environment.
- `exploration.py`: ε-greedy and Boltzmann action selection.
- `q_values.py`: builds the Q-networks and computes action values.
- `bootstrap.py`: the next-state policy of the TD target: greedy, double, soft, expected SARSA.
- `heads.py`: expected, categorical, quantile and implicit quantile values, with their targets and losses.
- `td_loss.py`: the TD loss of one member, made of a bootstrap and a head.
- `optimizers.py`: the optimisers of a cohort, and gradient clipping.
- `target_networks.py`: hard copies, Polyak averaging, or no target network.
- `update.py`: one gradient step of every member, compiled as one program.
- `rounds.py`: many rounds of a tensor environment, played at once.
- `rows.py`: the rows of metrics, and the members that have failed.
- `learner.py`: `QLearning`, the LightningModule that calls all of the above in order.
- `dataset.py`: `ReplayDataset` yields the batches that Lightning iterates over.
- `evaluation.py`, `tensor_evaluation.py`: greedy evaluation in separate environments.
- `callbacks.py`: the hooks for your own callbacks.
"""
