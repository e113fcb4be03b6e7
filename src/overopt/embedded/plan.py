"""Which tasks cells take, each after what it needs."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from overopt.embedded.cells import BestOfN, Cell, PolicyGradientCell, Proxies, Proxy, StudyCell
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.names import GOLD, GOLD_PAIRS, pairs_name, reference_name, round_pairs_name, sft_name
from overopt.modules.policy_gradient import PolicyGradientObjective


class Task(NamedTuple):
    """Something to be done once.

    Attributes:
        needs: names of the tasks whose folders it reads, earliest first.
        run: does it, or finds it done; gives what is worth telling of it.
    """

    needs: tuple[str, ...]
    run: Callable[[], Mapping[str, float]]


def plan(experiment: EmbeddedExperiment, cells: Iterable[StudyCell], proxies: Iterable[Proxy] = ()) -> dict[str, Task]:
    """All that cells take, and proxies that are wanted for themselves, by name.

    Raises:
        ValueError: a proxy of more pairs than the recipe has.
    """
    planned = _Plan(experiment)
    for cell in cells:
        if isinstance(cell, Cell):
            planned.add_aligned(cell)
        elif isinstance(cell, PolicyGradientCell):
            planned.add_optimised(cell)
        else:
            planned.add_best_of_n(cell)
    for proxy in proxies:
        planned.add_proxy(proxy)
    return planned.tasks


class _Plan:
    def __init__(self, experiment: EmbeddedExperiment) -> None:
        self.experiment = experiment
        size = experiment.recipe.gold_size
        self.tasks = {
            sft_name(size, 0): Task((), partial(experiment.sft, size, 0)),
            GOLD_PAIRS: Task((sft_name(size, 0),), experiment.gold_pairs),
            GOLD: Task((sft_name(size, 0), GOLD_PAIRS), experiment.gold),
        }

    def add_aligned(self, cell: Cell) -> None:
        """A cell with all its rounds."""
        experiment, needs = self.experiment, self._reference(cell.size, cell.seed)
        for done in cell.all_rounds:
            if done.rounds > 1:
                before, pairs = done.round_before, round_pairs_name(done)
                needs = (*needs, before.name)
                if done.round_labels == "proxy" and (labeller := experiment.labeller(done)).name not in needs:
                    self.add_proxy(labeller)
                    needs = (*needs, labeller.name)
                self.tasks.setdefault(pairs, Task(needs, partial(experiment.pairs_of_round, done)))
                needs = (*needs, pairs)
            self.tasks.setdefault(done.name, Task(needs, partial(experiment.align, done)))

    def add_optimised(self, cell: PolicyGradientCell) -> None:
        """A policy gradient with its proxies."""
        # Refused before anything is trained.
        PolicyGradientObjective(cell.objective, cell.beta, self.experiment.recipe.rl_samples, cell.kl)
        self._add_against(cell, partial(self.experiment.optimise, cell))

    def add_best_of_n(self, choice: BestOfN) -> None:
        """Best-of-n with its proxies."""
        self._add_against(choice, partial(self.experiment.best_of_n, choice))

    def _add_against(self, cell: PolicyGradientCell | BestOfN, run: Callable[[], Mapping[str, float]]) -> None:
        policy, pairs = self._sft(cell.size, cell.seed), self._pairs(cell.size, cell.seed)
        needs = (policy, GOLD, pairs, *self._proxies(cell.proxies))
        self.tasks[cell.name] = Task(tuple(dict.fromkeys(needs)), run)

    def add_proxy(self, proxy: Proxy) -> None:
        """A proxy with its backbone and its pairs."""
        recipe = self.experiment.recipe
        if proxy.pairs > recipe.pairs:
            raise ValueError(f"{proxy.name} wants {proxy.pairs} pairs, the recipe has {recipe.pairs} of a policy")
        needs = self._sft(proxy.size, proxy.seed), GOLD, self._pairs(*proxy.labelled)
        self.tasks.setdefault(proxy.name, Task(needs, partial(self.experiment.proxy, proxy)))

    def _proxies(self, proxies: Proxies) -> tuple[str, ...]:
        """The reward models, and their backbones, whose cost counts."""
        for proxy in proxies.members:
            self.add_proxy(proxy)
        return tuple(name for proxy in proxies.members for name in (sft_name(proxy.size, proxy.seed), proxy.name))

    def _sft(self, size: str, seed: int) -> str:
        name = sft_name(size, seed)
        self.tasks.setdefault(name, Task((), partial(self.experiment.sft, size, seed)))
        return name

    def _pairs(self, size: str, seed: int) -> str:
        needs, name = (self._sft(size, seed), GOLD), pairs_name(size, seed)
        self.tasks.setdefault(name, Task(needs, partial(self.experiment.pairs, size, seed)))
        return name

    def _reference(self, size: str, seed: int) -> tuple[str, ...]:
        """What all policies from one reference need, its own evaluation last."""
        needs: tuple[str, ...] = (self._sft(size, seed), GOLD, self._pairs(size, seed))
        monitored = self.experiment.recipe.monitored_proxy(size, seed)
        if monitored is not None:
            self.add_proxy(monitored)
            needs = (*needs, monitored.name)
        name = reference_name(size, seed)
        self.tasks.setdefault(name, Task(needs, partial(self.experiment.reference, size, seed)))
        return (*needs, name)
