"""Branches of actions: the TD loss where an action has several numbers (Tavakoli et al., 2018).

A network has K branches of action values Q_k, one for each number of an action, on a shared torso:

    action  = (a_1, ..., a_K)                         each branch chooses by itself (`exploration.act_in_branches`)
    π_k     = bootstrap(Q_k)                          the policy of each branch
    y       = r + d 1/K Σ_k Σ_a π_k(a) Q'_k(s', a)    one target for all branches (eq. 6)
    loss    = 1/K Σ_k divergence(Q_k(s, a_k), y)      (eq. 7)

Deviations: 1. The paper has expected returns, Double Q-learning and dueling. Here every head and bootstrap has
branches, and dueling is a switch. 2. With a return distribution, y is the mixture of the distributions of the branches,
each with the weight 1/K. Its mean is the y of the paper. 3. A soft policy is one for each branch: its entropy bonus and
what it adds to the reward are means over branches. 4. All hidden layers are shared by the branches. In the paper each
branch has one of its own. 5. The gradient from the branches to the features is not scaled by 1 / (K + 1), except with
`network.dueling_gradient`. 6. Exploration is that of the run, for each branch. The paper adds Gaussian noise to actions
that stand for continuous ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qohort.agent.policy import Policy
from qohort.agent.td_loss import TDLoss, at_action
from qohort.networks.branches import BranchedActions
from qohort.replay.transition import Batch


@dataclass(frozen=True)
class BranchedTDLoss(TDLoss):
    """The TD loss of one member whose actions have K branches; `action` of a batch is `[B, K]`.

    Attributes:
        branches: The branches.
    """

    branches: BranchedActions = field(kw_only=True)

    def _policy(self, next_online: Tensor | None, next_target: Tensor, batch: Batch) -> list[Policy]:
        """Return the policy of each branch at the next observation."""
        return [
            self.bootstrap(None if next_online is None else next_online[:, part], next_target[:, part])
            for part in self.branches.parts
        ]

    def _backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: list[Policy]) -> Any:
        """Compute the target of all branches: that of a policy which follows each branch with probability 1/K."""
        count = len(policy)
        if all(one.one_hot and one.bonus is None for one in policy):
            best = [
                at_action(next_target[:, part], one.probabilities.argmax(-1))
                for part, one in zip(self.branches.parts, policy, strict=True)
            ]
            each = torch.full_like(policy[0].probabilities[:, :1], 1 / count).expand(-1, count)
            return self.head.backup(reward, discount, torch.stack(best, 1), Policy(each))
        probabilities = torch.cat([one.probabilities for one in policy], -1) / count
        bonuses = [torch.zeros_like(one.probabilities) if one.bonus is None else one.bonus for one in policy]
        with_bonus = any(one.bonus is not None for one in policy)
        joint = Policy(probabilities, torch.cat(bonuses, -1) if with_bonus else None)
        return self.head.backup(reward, discount, next_target, joint)

    def _reward_bonus(self, values: Tensor, action: Tensor) -> Tensor:
        """Return the mean over branches of their bonuses, `[B]`."""
        own = [self.bootstrap.reward_bonus(values[:, part], action[:, k]) for k, part in enumerate(self.branches.parts)]
        return torch.stack(own, -1).mean(-1)

    def _taken(self, distribution: Tensor, action: Tensor) -> Tensor:
        """Select what the branches have at the action taken, `[B, K, ...]`."""
        taken = [at_action(distribution[:, part], action[:, k]) for k, part in enumerate(self.branches.parts)]
        return torch.stack(taken, 1)

    def _divergence(self, taken: Tensor, target: Any, fractions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the mean loss of the branches `[B]`, and the sum of their absolute TD errors `[B]` (eq. 8)."""
        of_branch = torch.vmap(self.head.divergence, in_dims=(1, None, None), out_dims=1)
        loss, td_error = of_branch(taken, target, fractions)
        return loss.mean(1), td_error.abs().sum(1)

    def _value(self, taken: Tensor) -> Tensor:
        """Return the values of the branches at the action taken, `[B, K]`."""
        return self.head.mean(taken)

    def _greedy(self, value: Tensor, values: Tensor) -> Tensor:
        """Return whether the action taken is greedy in all branches, `[B]`."""
        best = torch.stack([values[:, part].amax(1) for part in self.branches.parts], 1)
        return (value >= best).all(1)
