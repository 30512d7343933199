"""The arithmetic of the DQN family, written slowly and plainly from the papers, for tests to compare with.

Loops and NumPy in float64, one function a thing, nothing imported from `qohort`. Shapes: `B` samples, `A` actions, `N`
atoms or quantiles, `T` time steps, `E` environments. Where a paper and its authors' code differ, or leave something
open, the docstring says which was taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# ---------------------------------------------------------------------------------------------------------------------
# Bootstrap policies: action probabilities [B, A] at the next state
# ---------------------------------------------------------------------------------------------------------------------


def first_argmax(values: Array) -> int:
    """The index of the greatest value, the first one of equals."""
    best = 0
    for index in range(len(values)):
        if values[index] > values[best]:
            best = index
    return best


def greedy(q_target: Array) -> Array:
    """All probability on the target network's best action, the first of equals (Mnih et al. 2015, algorithm 1)."""
    policy = np.zeros(q_target.shape)
    for b in range(len(q_target)):
        policy[b, first_argmax(q_target[b])] = 1.0
    return policy


def double(q_online: Array, q_target: Array) -> Array:
    """All probability on the online network's best action, which the target network values.

    Van Hasselt et al. 2016, "Double DQN". `q_target` plays no part in the choice.
    """
    assert q_online.shape == q_target.shape
    return greedy(q_online)


def log_softmax(q: Array, temperature: float) -> Array:
    """Log π(a|s) of π = softmax(q / temperature), for [A] or [B, A]."""
    if q.ndim == 2:
        return np.stack([log_softmax(row, temperature) for row in q])
    scaled = q / temperature
    greatest = float(max(scaled))
    log_probabilities: Array = scaled - greatest - math.log(sum(math.exp(x - greatest) for x in scaled))
    return log_probabilities


def soft(q: Array, temperature: float) -> Array:
    """Softmax of q / temperature (Vieillard et al. 2020, section 2: π = sm(q / τ))."""
    return np.exp(log_softmax(q, temperature))


def expected_sarsa(q: Array, epsilon: float) -> Array:
    """The ε-greedy policy, ε / A for each action and 1 - ε more for the first best one (van Seijen et al. 2009)."""
    batch, actions = q.shape
    policy = np.full((batch, actions), epsilon / actions)
    for b in range(batch):
        policy[b, first_argmax(q[b])] += 1.0 - epsilon
    return policy


def munchausen_bonus(q_target_at_s: Array, action: Ints, alpha: float, tau: float, clip: float) -> Array:
    """α · [τ log π(a|s)] clipped to [clip, 0], where π = softmax(q_target(s, ·) / τ), shape [B].

    Vieillard et al. 2020, section 2 (the target of M-DQN) with the clipping of section 4, where `clip` is l0 = -1: the
    clipping is of τ log π, before it is multiplied by α.
    """
    bonus = np.zeros(len(action))
    for b in range(len(action)):
        scaled_log_policy = tau * log_softmax(q_target_at_s[b], tau)[action[b]]
        bonus[b] = alpha * min(max(scaled_log_policy, clip), 0.0)
    return bonus


def entropy_shift(q: Array, tau: float) -> Array:
    """-τ log π(a'|s') of π = softmax(q / τ), [B, A]: what Munchausen adds to each next action's value or atoms."""
    return -tau * log_softmax(q, tau)


def munchausen_target(
    q_target_at_s: Array,
    action: Ints,
    reward: Array,
    discount: Array,
    next_q_target: Array,
    alpha: float,
    tau: float,
    clip: float,
) -> Array:
    """The target of M-DQN, r + α[τ log π(a|s)] + γ Σ_a' π(a'|s') (q(s',a') - τ log π(a'|s')), shape [B].

    Vieillard et al. 2020, section 2. Every q is the target network's. `discount` is γ, and 0 where s' is terminal.
    """
    policy, log_policy = soft(next_q_target, tau), log_softmax(next_q_target, tau)
    target = reward + munchausen_bonus(q_target_at_s, action, alpha, tau, clip)
    for b in range(len(action)):
        for a in range(next_q_target.shape[1]):
            target[b] += discount[b] * policy[b, a] * (next_q_target[b, a] - tau * log_policy[b, a])
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Expected head
# ---------------------------------------------------------------------------------------------------------------------


def expected_target(reward: Array, discount: Array, next_q: Array, policy: Array) -> Array:
    """R + discount · Σ_a' π(a'|s') q(s', a'), shape [B] (DQN where π is greedy, Double DQN where it is double's)."""
    target = np.zeros(len(reward))
    for b in range(len(reward)):
        target[b] = reward[b] + discount[b] * sum(policy[b, a] * next_q[b, a] for a in range(next_q.shape[1]))
    return target


def huber(error: float, kappa: float) -> float:
    """½ error² up to |error| = κ, and κ (|error| - ½ κ) beyond (Huber 1964; Dabney et al. 2018a, eq. 9)."""
    if abs(error) <= kappa:
        return 0.5 * error**2
    return kappa * (abs(error) - 0.5 * kappa)


# ---------------------------------------------------------------------------------------------------------------------
# Categorical head (C51)
# ---------------------------------------------------------------------------------------------------------------------


def project(support: Array, atoms: Sequence[float], weights: Sequence[float]) -> Array:
    """Projects weighted atoms on the support [N]: each atom's weight goes to its two neighbours, by nearness.

    Bellemare et al. 2017, the loop of algorithm 1: an atom beyond an end counts as that end, and one that lies on a
    support point gives it everything (algorithm 1 as printed loses the weight where l = u).
    """
    projected = np.zeros(len(support))
    for atom, weight in zip(atoms, weights, strict=True):
        atom = min(max(atom, support[0]), support[-1])
        lower = max(i for i in range(len(support)) if support[i] <= atom)
        if support[lower] == atom:
            projected[lower] += weight
        else:
            gap = support[lower + 1] - support[lower]
            projected[lower] += weight * (support[lower + 1] - atom) / gap
            projected[lower + 1] += weight * (atom - support[lower]) / gap
    return projected


def categorical_projection(
    support: Array,
    reward: Array,
    discount: Array,
    next_probabilities: Array,
    policy: Array,
    shift: Array | None = None,
) -> Array:
    """Probabilities [B, N] of the projected target r + discount · (z + shift), where a' is drawn from the policy.

    Bellemare et al. 2017, algorithm 1, with the mixture over actions Σ_a' π(a'|s') p(s', a') in place of the best
    action's distribution: the distribution of the target when a' is drawn from π.

    Args:
        support: The atoms z, ascending, [N].
        reward: [B].
        discount: γ^n, 0 where terminated, [B].
        next_probabilities: Of the atoms at the next state, [B, A, N].
        policy: Action probabilities, [B, A].
        shift: Added to each action's atoms before they are discounted, [B, A]; for Munchausen `entropy_shift`.
    """
    batch, actions, _ = next_probabilities.shape
    projected = np.zeros((batch, len(support)))
    for b in range(batch):
        for a in range(actions):
            added = 0.0 if shift is None else shift[b, a]
            atoms = [reward[b] + discount[b] * (z + added) for z in support]
            projected[b] += policy[b, a] * project(support, atoms, list(next_probabilities[b, a]))
    return projected


def categorical_loss(logits: Array, target: Array) -> Array:
    """Cross-entropy -Σ_i m_i log p_i of p = softmax(logits), [B, N] each, shape [B].

    Bellemare et al. 2017, algorithm 1: the KL divergence but for the target's entropy, which has no gradient.
    """
    loss = np.zeros(len(logits))
    for b in range(len(logits)):
        log_probabilities = log_softmax(logits[b], 1.0)
        loss[b] = -sum(m * log_p for m, log_p in zip(target[b], log_probabilities, strict=True))
    return loss


# ---------------------------------------------------------------------------------------------------------------------
# Quantile heads (QR-DQN, IQN)
# ---------------------------------------------------------------------------------------------------------------------


def quantile_midpoints(n: int) -> Array:
    """(2i - 1) / 2N for i = 1..N, where QR-DQN's quantiles stand (Dabney et al. 2018a, lemma 2)."""
    return np.array([(2 * i - 1) / (2 * n) for i in range(1, n + 1)])


def quantile_targets(
    reward: Array, discount: Array, next_quantiles: Array, policy: Array, shift: Array | None = None
) -> tuple[Array, Array]:
    """The target distribution as weighted atoms, (atoms [B, A·N], weights [B, A·N]), action by action.

    Dabney et al. 2018a, algorithm 1, where a' is drawn from the policy: a mixture, each atom of action a' with weight
    π(a'|s') / N. Where π is one-hot the atoms with weight are those of that action, 1 / N each.

    Args:
        reward: [B].
        discount: γ^n, 0 where terminated, [B].
        next_quantiles: [B, A, N].
        policy: Action probabilities, [B, A].
        shift: Added to each action's atoms before they are discounted, [B, A]; for Munchausen `entropy_shift`.
    """
    batch, actions, n = next_quantiles.shape
    atoms, weights = np.zeros((batch, actions * n)), np.zeros((batch, actions * n))
    for b in range(batch):
        for a in range(actions):
            for j in range(n):
                added = 0.0 if shift is None else shift[b, a]
                atoms[b, a * n + j] = reward[b] + discount[b] * (next_quantiles[b, a, j] + added)
                weights[b, a * n + j] = policy[b, a] / n
    return atoms, weights


def averaged_quantile_targets(
    reward: Array, discount: Array, next_quantiles: Array, policy: Array, shift: Array | None = None
) -> Array:
    """Atoms r + discount · Σ_a' π(a'|s') (z_j(s', a') + shift(a')), [B, N], each with weight 1 / N.

    What M-IQN does (Vieillard et al. 2020, section 2, the target of M-IQN): the j-th quantiles of all actions are
    averaged. The mean is that of `quantile_targets`, the distribution is not, unless π is one-hot.
    """
    batch, actions, n = next_quantiles.shape
    atoms = np.zeros((batch, n))
    for b in range(batch):
        for j in range(n):
            average = 0.0
            for a in range(actions):
                added = 0.0 if shift is None else shift[b, a]
                average += policy[b, a] * (next_quantiles[b, a, j] + added)
            atoms[b, j] = reward[b] + discount[b] * average
    return atoms


def quantile_huber(error: float, tau: float, kappa: float) -> float:
    """|τ - 1{error < 0}| · huber_κ(error) / κ; for κ = 0 its limit |τ - 1{error < 0}| · |error|.

    Dabney et al. 2018b, eq. 3. Dabney et al. 2018a, eq. 10 has no division by κ: the same for κ = 1, but without it
    the limit for κ = 0, which that paper names, would be 0.
    """
    weight = abs(tau - (1.0 if error < 0 else 0.0))
    return weight * (abs(error) if kappa == 0 else huber(error, kappa) / kappa)


def quantile_huber_loss(quantiles: Array, taus: Array, targets: Array, weights: Array, kappa: float) -> float:
    """Σ_i Σ_j weights_j · ρ_τi(targets_j - quantiles_i) of one sample: a sum over i, a mean over j.

    Dabney et al. 2018a, eq. 10 and algorithm 1 (`taus` are the midpoints); Dabney et al. 2018b, eq. 3 (`taus` are
    sampled, one a quantile). `quantiles` and `taus` are [N]; `targets` and `weights` [K], the weights adding up to 1.
    """
    loss = 0.0
    for i in range(len(quantiles)):
        for j in range(len(targets)):
            loss += weights[j] * quantile_huber(targets[j] - quantiles[i], taus[i], kappa)
    return loss


def iqn_loss(quantiles: Array, taus: Array, targets: Array, kappa: float) -> float:
    """Σ_i 1/N' Σ_j ρ_τi(targets_j - quantiles_i) of one sample (Dabney et al. 2018b, eq. 3), N = [N], N' = [K]."""
    return quantile_huber_loss(quantiles, taus, targets, np.full(len(targets), 1.0 / len(targets)), kappa)


def quantile_minimiser(atoms: Array, weights: Array, tau: float, kappa: float) -> float:
    """The θ that minimises Σ_j weights_j · ρ_τ(atoms_j - θ): what a converged quantile is.

    For κ = 0 the τ-quantile; for κ > 0 it is not, where atoms lie nearer than κ. Where the loss is flat, the middle of
    the flat piece. Found by bisection of the derivative, which falls as θ grows.
    """

    def slope(theta: float) -> float:
        """Minus the loss's derivative, the atom at θ itself left out."""
        total = 0.0
        for atom, weight in zip(atoms.tolist(), weights.tolist(), strict=True):
            error = atom - theta
            bounded = min(max(error / kappa, -1.0), 1.0) if kappa > 0 else float(error > 0) - float(error < 0)
            total += weight * abs(tau - (1.0 if error < 0 else 0.0)) * bounded
        return total

    def bisect(limit: float) -> float:
        low, high = float(min(atoms)) - 1.0, float(max(atoms)) + 1.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) > limit else (low, middle)
        return (low + high) / 2

    return (bisect(1e-12) + bisect(-1e-12)) / 2


# ---------------------------------------------------------------------------------------------------------------------
# λ-returns
# ---------------------------------------------------------------------------------------------------------------------


def lambda_returns(rewards: Array, discounts: Array, values: Array, lambdas: Array) -> Array:
    """λ-returns [T] of one environment's steps, from the last to the first.

    G_t = r_t + discount_t · [(1 - λ_t) · values_t + λ_t · G_{t+1}], and λ of the last step counts as 0 (Peng & Williams
    1994, eq. 5; Daley & Amato 2019, algorithm 1).

    Args:
        rewards: [T].
        discounts: γ, 0 where terminated, [T].
        values: max_a Q(s_{t+1}, a), where s_{t+1} is what step t led to, also where it was truncated there, [T].
        lambdas: `peng_lambdas` or `watkins_lambdas`, [T].
    """
    returns = np.zeros(len(rewards))
    for t in reversed(range(len(rewards))):
        if t == len(rewards) - 1:
            returns[t] = rewards[t] + discounts[t] * values[t]
        else:
            mixed = (1.0 - lambdas[t]) * values[t] + lambdas[t] * returns[t + 1]
            returns[t] = rewards[t] + discounts[t] * mixed
    return returns


def peng_lambdas(lambda_: float, ended: Bools) -> Array:
    """λ, and 0 where the episode ended, by termination or by truncation, after the step; [T]."""
    return np.array([0.0 if end else lambda_ for end in ended])


def watkins_lambdas(lambda_: float, ended: Bools, q: Array, actions: Ints) -> Array:
    """`peng_lambdas`, and 0 also where the next action is not greedy (Watkins 1989; Sutton & Barto 1998, figure 7.14).

    `q` are Q(s_t, ·), [T, A], `actions` those taken at s_t, [T]. Of several best actions each one is greedy.
    """
    lambdas = peng_lambdas(lambda_, ended)
    for t in range(len(actions) - 1):
        if q[t + 1, actions[t + 1]] < max(q[t + 1]):
            lambdas[t] = 0.0
    return lambdas


def n_step_return(rewards: Array, discounts: Array, values: Array, start: int, n: int) -> float:
    """r_t + d_t r_{t+1} + ... + d_t ··· d_{t+n-1} · values_{t+n-1}, for t = start: n rewards, then the bootstrap."""
    total, discount = 0.0, 1.0
    for t in range(start, start + n):
        total += discount * float(rewards[t])
        discount *= float(discounts[t])
    return total + discount * float(values[start + n - 1])


def lambda_returns_by_mixture(rewards: Array, discounts: Array, values: Array, lambda_: float, cut: Bools) -> Array:
    """The same λ-returns as weighted sums of n-step returns, by the definition (Sutton & Barto 1998, eq. 7.3).

    (1 - λ) Σ_{n=1}^{H-1} λ^{n-1} G^(n) + λ^{H-1} G^(H), where H counts the steps from t up to and with the first where
    `cut` is true, or to the block's end. `cut` [T]: λ is 0 after this step (the episode's end; Watkins: the next action
    is not greedy).
    """
    returns = np.zeros(len(rewards))
    for start in range(len(rewards)):
        last = start
        while last < len(rewards) - 1 and not cut[last]:
            last += 1
        horizon = last - start + 1
        for n in range(1, horizon):
            weight = (1.0 - lambda_) * lambda_ ** (n - 1)
            returns[start] += weight * n_step_return(rewards, discounts, values, start, n)
        returns[start] += lambda_ ** (horizon - 1) * n_step_return(rewards, discounts, values, start, horizon)
    return returns


def pqn_targets(rewards: Array, done: Bools, next_q: Array, gamma: float, lambda_: float) -> Array:
    """PQN's targets [T, E] of a rollout: Peng's λ-returns, which start at the rollout's end from max_a Q.

    Gallici et al. 2024, section 4: R_t = r_t + γ [λ R_{t+1} + (1 - λ) max_a Q(s_{t+1}, a)], and r_t where done.

    Args:
        rewards: [T, E].
        done: Where the target does not bootstrap, [T, E]. The authors pass terminated or truncated; passing terminated
            alone would carry the return over a truncation, so truncations need `lambda_returns`.
        next_q: Q(s_{t+1}, ·), [T, E, A]; not read where done.
        gamma: Discount of one step.
        lambda_: Weight of the longer return.
    """
    steps, environments = rewards.shape
    targets = np.zeros((steps, environments))
    for e in range(environments):
        for t in reversed(range(steps)):
            if done[t, e]:
                targets[t, e] = rewards[t, e]
            elif t == steps - 1:
                targets[t, e] = rewards[t, e] + gamma * max(next_q[t, e])
            else:
                mixed = lambda_ * targets[t + 1, e] + (1.0 - lambda_) * max(next_q[t, e])
                targets[t, e] = rewards[t, e] + gamma * mixed
    return targets


# ---------------------------------------------------------------------------------------------------------------------
# n-step transitions
# ---------------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One environment step: at `observation` the `action` gave `reward` and led to `next_observation`."""

    observation: object
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_observation: object


class NStepTransition(NamedTuple):
    """What the update sees of `steps` steps from time `start` of environment `environment`."""

    start: int
    environment: int
    observation: object
    action: int
    reward: float
    discount: float
    next_observation: object
    steps: int


@dataclass
class NStepOracle:
    """All n-step transitions of every environment's steps, worked out afresh from the whole history.

    Sutton & Barto 2018, section 7.1, with Rainbow's truncated windows (Hessel et al. 2018, "Multi-step learning"):
    (s_t, a_t, Σ_k γ^k r_{t+k}, γ^m, s_{t+m}), m = min(n, steps to the episode's end), discount 0 where the window's
    last step terminated. A window never crosses the episode's end, by termination or truncation. Every step starts one,
    and a start is there as soon as its window is complete or its episode is over.

    Attributes:
        n: Steps in a whole window.
        gamma: Discount of one step.
        history: The steps of each environment, in order.
    """

    n: int
    gamma: float
    environments: int = 1
    history: list[list[Step]] = field(init=False)

    def __post_init__(self) -> None:
        self.history = [[] for _ in range(self.environments)]

    def add(self, steps: Sequence[Step]) -> None:
        """Adds one step of each environment, in the environments' order."""
        for environment, step in enumerate(steps):
            self.history[environment].append(step)

    def transition(self, environment: int, start: int) -> NStepTransition | None:
        """The transition from a start, or None while its window is unfinished."""
        steps, reward = self.history[environment], 0.0
        for m in range(1, self.n + 1):
            if start + m > len(steps):
                return None
            last = steps[start + m - 1]
            reward += self.gamma ** (m - 1) * last.reward
            if last.terminated or last.truncated or m == self.n:
                discount = 0.0 if last.terminated else self.gamma**m
                first = steps[start]
                return NStepTransition(
                    start, environment, first.observation, first.action, reward, discount, last.next_observation, m
                )
        raise AssertionError("n is at least 1")

    def transitions(self) -> list[NStepTransition]:
        """Every transition there is, by time of its start, then by environment."""
        longest = max(len(steps) for steps in self.history)
        found = []
        for start in range(longest):
            for environment in range(self.environments):
                transition = self.transition(environment, start)
                if transition is not None:
                    found.append(transition)
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Prioritised replay
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class PriorityList:
    """Proportional prioritisation over a list (Schaul et al. 2016, section 3.3 and algorithm 1), one member's.

    `priorities` holds p^α. A new item gets the greatest of those held when it comes, that of the item which it
    replaces included, and 1 if there are none (algorithm 1, line 6: p_t = max_{i<t} p_i; here over the items held, not
    over all that ever were).

    Attributes:
        capacity: Items held; the oldest is replaced.
        alpha: Exponent of the priorities.
        epsilon: Added to |δ| (section 3.3: a small positive constant).
        priorities: p^α by slot.
    """

    capacity: int
    alpha: float
    epsilon: float
    priorities: list[float] = field(default_factory=list)
    next_slot: int = 0

    def add(self) -> int:
        """Adds an item and returns its slot."""
        priority = max(self.priorities, default=1.0)
        slot = self.next_slot
        if len(self.priorities) < self.capacity:
            self.priorities.append(priority)
        else:
            self.priorities[slot] = priority
        self.next_slot = (slot + 1) % self.capacity
        return slot

    def update(self, slots: Sequence[int], td_errors: Sequence[float]) -> None:
        """Sets priorities to (|δ| + ε)^α; of a slot named twice the last error counts."""
        for slot, error in zip(slots, td_errors, strict=True):
            self.priorities[slot] = (abs(error) + self.epsilon) ** self.alpha

    def sample(self, uniforms: Sequence[float]) -> list[int]:
        """The slots at masses (k + uniforms_k) / B · total, for uniforms in [0, 1) (appendix B.2.1: stratified).

        A slot owns the masses from the sum of the priorities before it, included, to the sum with its own, excluded.
        """
        total, slots = sum(self.priorities), []
        for k, uniform in enumerate(uniforms):
            mass, cumulative = (k + uniform) / len(uniforms) * total, 0.0
            chosen = max(slot for slot, priority in enumerate(self.priorities) if priority > 0)
            for slot, priority in enumerate(self.priorities):
                cumulative += priority
                if mass < cumulative:
                    chosen = slot
                    break
            slots.append(chosen)
        return slots

    def probabilities(self) -> list[float]:
        """P(i) = p_i^α / Σ_k p_k^α (eq. 1)."""
        total = sum(self.priorities)
        return [priority / total for priority in self.priorities]

    def weights(self, slots: Sequence[int], beta: float) -> list[float]:
        """(N · P(i))^-β of the slots, over the greatest of these (section 3.4; the maximum is the batch's)."""
        probabilities = self.probabilities()
        weights = [(len(self.priorities) * probabilities[slot]) ** -beta for slot in slots]
        return [weight / max(weights) for weight in weights]


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def dueling(value: Array, advantage: Array) -> Array:
    """V + A - mean_a A (Wang et al. 2016, eq. 9), atom by atom for a distributional head (Hessel et al. 2018).

    `value` is [B, 1] and `advantage` [B, A], or [B, N] and [B, A, N]; the result has the advantage's shape. For a
    categorical head these are logits, and the softmax over atoms comes after.
    """
    if advantage.ndim == 2:
        return dueling(value, advantage[:, :, None])[:, :, 0]
    batch, actions, n = advantage.shape
    q = np.zeros((batch, actions, n))
    for b in range(batch):
        for j in range(n):
            mean = sum(advantage[b, a, j] for a in range(actions)) / actions
            for a in range(actions):
                q[b, a, j] = value[b, j] + advantage[b, a, j] - mean
    return q


def noise_scale(x: Array) -> Array:
    """F(x) = sgn(x) √|x| (Fortunato et al. 2018, below eq. 11)."""
    return np.array([math.copysign(math.sqrt(abs(e)), e) for e in x])


def noisy_linear(
    x: Array, mu_w: Array, sigma_w: Array, mu_b: Array, sigma_b: Array, eps_in: Array, eps_out: Array
) -> Array:
    """(μ_w + σ_w ⊙ ε_w) x + μ_b + σ_b ⊙ ε_b, ε_w = f(ε_out) f(ε_in)ᵀ, ε_b = f(ε_out) (Fortunato et al. 2018, eq. 9-11).

    `x` [B, p]; `mu_w`, `sigma_w` [q, p]; `mu_b`, `sigma_b` [q]; the standard normal `eps_in` [p] and `eps_out` [q] are
    one draw for the whole batch.
    """
    f_in, f_out = noise_scale(eps_in), noise_scale(eps_out)
    y = np.zeros((len(x), len(mu_b)))
    for b in range(len(x)):
        for j in range(len(mu_b)):
            y[b, j] = mu_b[j] + sigma_b[j] * f_out[j]
            for i in range(len(f_in)):
                y[b, j] += (mu_w[j, i] + sigma_w[j, i] * f_out[j] * f_in[i]) * x[b, i]
    return y


def noisy_init(inputs: int, sigma_0: float) -> tuple[float, float]:
    """(bound of μ ~ U(-bound, bound), σ): 1 / √p and σ_0 / √p, for weights and biases.

    Fortunato et al. 2018, section 3.2, factorised noise. p is the layer's number of inputs; the paper's σ_0 is 0.5.
    """
    return 1.0 / math.sqrt(inputs), sigma_0 / math.sqrt(inputs)


def layer_norm(x: Array, epsilon: float = 1e-5) -> Array:
    """(x - mean) / √(variance + ε) over the last axis, without scale and offset; the variance is over n, not n - 1.

    Ba et al. 2016. Elsayed et al. 2024, section 3, apply it to the pre-activations.
    """
    if x.ndim > 1:
        return np.stack([layer_norm(row, epsilon) for row in x])
    mean = sum(x) / len(x)
    variance = sum((e - mean) ** 2 for e in x) / len(x)
    return (x - mean) / math.sqrt(variance + epsilon)


def apex_epsilons(environments: int, epsilon: float, alpha: float) -> list[float]:
    """ε^(1 + α i / (E - 1)) of environment i (Horgan et al. 2018, section 4.1: ε = 0.4, α = 7); ε where E = 1."""
    if environments == 1:
        return [epsilon]
    return [epsilon ** (1 + alpha * i / (environments - 1)) for i in range(environments)]


# ---------------------------------------------------------------------------------------------------------------------
# Stream Q(λ): Elsayed, Vasan & Mahmood 2024, "Streaming Deep Reinforcement Learning Finally Works"
# ---------------------------------------------------------------------------------------------------------------------


def sparse_init(fan_out: int, fan_in: int, sparsity: float, generator: np.random.Generator) -> Array:
    """Weights [fan_out, fan_in] from U(-1/√fan_in, 1/√fan_in), ⌈sparsity · fan_in⌉ random ones of each row zero.

    SparseInit (sparsity 0.9 in the paper; LeCun's bounds as in the authors' code). For a convolution fan_in is channels
    × height × width, and a row is one output channel's kernel. Biases are 0.
    """
    bound = math.sqrt(1.0 / fan_in)
    weights = generator.uniform(-bound, bound, size=(fan_out, fan_in))
    for row in weights:
        for column in generator.permutation(fan_in)[: math.ceil(sparsity * fan_in)]:
            row[column] = 0.0
    return weights


@dataclass
class ObGD:
    """Overshooting-bounded gradient descent with accumulating eligibility traces, over all parameters of a network.

    z ← γλ z + ∇q(s, a); δ̄ = max(|δ|, 1); M = α κ δ̄ ‖z‖₁; α' = min(α / M, α); w ← w + α' δ z. ‖z‖₁ is over all
    parameters, so that the whole network has one step size.

    Attributes:
        parameters: Changed in place.
        lr: α, 1 in the paper.
        gamma: Discount of one step.
        lambda_: Decay of the traces, 0.8 in the paper.
        kappa: κ, 2 in the paper.
        traces: z, one array a parameter.
    """

    parameters: list[Array]
    lr: float
    gamma: float
    lambda_: float
    kappa: float
    traces: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Sets the traces to 0."""
        self.traces = [np.zeros(parameter.shape) for parameter in self.parameters]

    def step(self, delta: float, gradients: Sequence[Array], reset: bool = False) -> float:
        """One update, and the step size it took.

        Args:
            delta: TD error r + γ max_a' q(s', a') - q(s, a).
            gradients: Of q(s, a), not of a loss, one a parameter.
            reset: Empties the traces after the update: the episode ended, or `action` was not greedy. The authors' code
                does both after the update, so a non-greedy action's own error still reaches the actions before it;
                Watkins's Q(λ) would empty them before the non-greedy action's gradient is added, by `reset()`.
        """
        norm = 0.0
        for trace, gradient in zip(self.traces, gradients, strict=True):
            trace *= self.gamma * self.lambda_
            trace += gradient
            norm += float(np.sum(np.abs(trace)))
        bound = self.lr * self.kappa * max(abs(delta), 1.0) * norm
        step_size = self.lr / bound if bound > 1.0 else self.lr
        for parameter, trace in zip(self.parameters, self.traces, strict=True):
            parameter += step_size * delta * trace
        if reset:
            self.reset()
        return step_size


def stream_q_error(reward: float, gamma: float, terminated: bool, next_q: Array, q_of_action: float) -> float:
    """δ = r + γ max_a' q(s', a') - q(s, a), without the bootstrap where terminated (Stream Q(λ)).

    The authors' code also drops the bootstrap at truncation.
    """
    return reward + (0.0 if terminated else gamma * max(next_q)) - q_of_action


@dataclass
class SampleMeanVariance:
    """Welford's running mean and sample variance (algorithm 4; Welford 1962): p / (n - 1), and 1 before two samples."""

    mean: Array
    p: Array = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.p = np.zeros_like(self.mean)

    def update(self, x: Array) -> None:
        """Takes one sample in."""
        self.count += 1
        mean = self.mean + (x - self.mean) / self.count
        self.p = self.p + (x - self.mean) * (x - mean)
        self.mean = mean

    def variance(self) -> Array:
        """The sample variance."""
        return self.p / (self.count - 1) if self.count >= 2 else np.ones_like(self.p)


@dataclass
class ObservationNormalizer:
    """(s - mean) / √(variance + ε), by statistics that already hold s (NormalizeObservation, algorithm 6)."""

    size: int
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        self.statistics = SampleMeanVariance(np.zeros(self.size))

    def __call__(self, observation: Array) -> Array:
        """Takes the observation in and normalises it; called for every one, a reset's and an episode's last too."""
        self.statistics.update(observation)
        return (observation - self.statistics.mean) / np.sqrt(self.statistics.variance() + self.epsilon)


@dataclass
class RewardScaler:
    """Reward / √(variance of the running return + ε) (ScaleReward, algorithm 5).

    u ← γ (1 - T) u + r, where T says that this very step ended the episode: at an episode's last step u is its reward
    alone, and that reward is carried, discounted, into the next episode.

    Attributes:
        gamma: Discount of one step.
        centred: True: the variance is about the running mean, as in the authors' code. False: the mean is taken as 0 at
            each step, SampleMeanVar(u, 0, p, n), as the paper prints it.
        epsilon: Under the root.
    """

    gamma: float
    centred: bool
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        self.running_return = 0.0
        self.statistics = SampleMeanVariance(np.zeros(()))

    def __call__(self, reward: float, ended: bool) -> float:
        """Takes the reward in and scales it; `ended` is termination or truncation by this step."""
        self.running_return = self.gamma * (0.0 if ended else 1.0) * self.running_return + reward
        if not self.centred:
            self.statistics.mean = np.zeros(())
        self.statistics.update(np.array(self.running_return))
        return reward / math.sqrt(float(self.statistics.variance()) + self.epsilon)


# ---------------------------------------------------------------------------------------------------------------------
# Problems with known answers
# ---------------------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """One thing that may come of an action; `next_state` is None where the episode terminates."""

    probability: float
    reward: float
    next_state: int | None


@dataclass
class TabularMDP:
    """A finite problem: `outcomes[state][action]` lists what may happen, with probabilities that add up to 1."""

    gamma: float
    outcomes: list[list[list[Outcome]]]

    @property
    def shape(self) -> tuple[int, int]:
        """(states, actions)."""
        return len(self.outcomes), len(self.outcomes[0])


Lottery = Sequence[tuple[float, float]]
"""(probability, reward) pairs."""


def chain(length: int, gamma: float, goal: Lottery = ((1.0, 1.0),), step: Lottery = ((1.0, 0.0),)) -> TabularMDP:
    """A corridor of `length` states: action 0 goes left (and stays at state 0), action 1 right.

    Right from the last state terminates with a reward drawn from `goal`; every other step's is drawn from `step`.
    """
    outcomes: list[list[list[Outcome]]] = []
    for state in range(length):
        left = [Outcome(p, r, max(state - 1, 0)) for p, r in step]
        right = [Outcome(p, r, state + 1) for p, r in step]
        if state == length - 1:
            right = [Outcome(p, r, None) for p, r in goal]
        outcomes.append([left, right])
    return TabularMDP(gamma, outcomes)


def chain_q(length: int, gamma: float, goal: Lottery = ((1.0, 1.0),), step: Lottery = ((1.0, 0.0),)) -> Array:
    """Q* of the chain in closed form, [length, 2], where walking right is best: E[step] < (1 - γ) E[goal].

    V(s) = E[step] (1 + γ + ... + γ^(k-1)) + γ^k E[goal] with k = length - 1 - s; Q(s, right) = V(s),
    Q(s, left) = E[step] + γ V(max(s - 1, 0)).
    """
    goal_mean, step_mean = sum(p * r for p, r in goal), sum(p * r for p, r in step)
    assert step_mean < (1.0 - gamma) * goal_mean
    q = np.zeros((length, 2))
    for state in range(length):
        k = length - 1 - state
        q[state, 1] = step_mean * sum(gamma**i for i in range(k)) + gamma**k * goal_mean
    for state in range(length):
        q[state, 0] = step_mean + gamma * q[max(state - 1, 0), 1]
    return q


def value_iteration(mdp: TabularMDP, sweeps: int = 1000) -> Array:
    """Q* [S, A]: Q(s, a) ← E[r + γ max_a' Q(s', a')], over and over (Bellman 1957)."""
    q = np.zeros(mdp.shape)
    for _ in range(sweeps):
        backed_up = np.zeros(mdp.shape)
        for state, actions in enumerate(mdp.outcomes):
            for action, outcomes in enumerate(actions):
                for probability, reward, next_state in outcomes:
                    value = 0.0 if next_state is None else max(q[next_state])
                    backed_up[state, action] += probability * (reward + mdp.gamma * value)
        q = backed_up
    return q


def return_distribution(mdp: TabularMDP, state: int, action: int) -> tuple[Array, Array]:
    """All returns after (state, action) under the optimal policy, ascending, and their probabilities.

    For problems whose optimal policy visits no state twice.
    """
    optimal = greedy(value_iteration(mdp))

    def returns(state: int, action: int) -> dict[float, float]:
        found: dict[float, float] = {}
        for probability, reward, next_state in mdp.outcomes[state][action]:
            later = {0.0: 1.0} if next_state is None else returns(next_state, first_argmax(optimal[next_state]))
            for value, chance in later.items():
                total = round(reward + mdp.gamma * value, 12)  # equal sums in another order are one atom
                found[total] = found.get(total, 0.0) + probability * chance
        return found

    found = returns(state, action)
    atoms = sorted(found)
    return np.array(atoms), np.array([found[atom] for atom in atoms])


def quantiles(atoms: Array, probabilities: Array, taus: Array) -> Array:
    """The least atom whose cumulative probability is at least τ, for each τ; the atoms ascend."""
    found = np.zeros(len(taus))
    for i, tau in enumerate(taus):
        cumulative = 0.0
        for atom, probability in zip(atoms, probabilities, strict=True):
            cumulative += probability
            if cumulative >= tau - 1e-12:
                found[i] = atom
                break
    return found


def categorical_fixed_point(mdp: TabularMDP, support: Array, sweeps: int = 300) -> Array:
    """Probabilities [S, A, N] to which C51 with a table converges: p ← E[projection of r + γ z], greedy by the means.

    It is the return distribution itself where all returns lie on the support, and that with the projection's spread
    added at each step otherwise (Bellemare et al. 2017; Rowland et al. 2018).
    """
    states, actions = mdp.shape
    probabilities = np.full((states, actions, len(support)), 1.0 / len(support))
    for _ in range(sweeps):
        backed_up = np.zeros_like(probabilities)
        for s in range(states):
            for a in range(actions):
                for probability, reward, next_state in mdp.outcomes[s][a]:
                    if next_state is None:
                        backed_up[s, a] += probability * project(support, [reward], [1.0])
                    else:
                        best = first_argmax(probabilities[next_state] @ support)
                        atoms = [reward + mdp.gamma * z for z in support]
                        backed_up[s, a] += probability * project(support, atoms, list(probabilities[next_state, best]))
        probabilities = backed_up
    return probabilities


def quantile_fixed_point(mdp: TabularMDP, n: int, kappa: float, sweeps: int = 30) -> Array:
    """Quantiles [S, A, n] to which QR-DQN with a table converges: θ_i ← minimiser of the quantile Huber loss at τ_i.

    With κ = 0 the quantiles of E[r + γ θ(s')]; with κ > 0 `quantile_minimiser`'s, so neither is the exact return
    distribution's unless that has few atoms (Dabney et al. 2018a, proposition 2 for the contraction with κ = 0).
    """
    states, actions = mdp.shape
    taus, theta = quantile_midpoints(n), np.zeros((states, actions, n))
    for _ in range(sweeps):
        backed_up = np.zeros_like(theta)
        for s in range(states):
            for a in range(actions):
                atoms: list[float] = []
                weights: list[float] = []
                for probability, reward, next_state in mdp.outcomes[s][a]:
                    later = np.zeros(n) if next_state is None else theta[next_state, best_by_mean(theta[next_state])]
                    atoms += [reward + mdp.gamma * z for z in later]
                    weights += [probability / n] * n
                for i in range(n):
                    backed_up[s, a, i] = quantile_minimiser(np.array(atoms), np.array(weights), taus[i], kappa)
        theta = backed_up
    return theta


def best_by_mean(atoms: Array) -> int:
    """The action whose atoms [A, N] have the greatest mean, the first of equals."""
    return first_argmax(np.array([sum(row) / len(row) for row in atoms]))
