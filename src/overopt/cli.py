"""The one command: arguments to a stage or to Lightning, errors to one line.

Nothing heavy is imported here: ``overopt --help`` answers before PyTorch could be loaded.
"""

import argparse
import inspect
import itertools
import json
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from overopt.evaluation.judges.catalogue import JUDGES
from overopt.stages import FIT_OPTIONS, STAGES
from overopt.user_errors import one_line_errors

LIGHTNING_COMMANDS = {
    "fit": "train: SFT, a reward model or direct alignment (Lightning's fit, every Lightning option)",
    "validate": "validate a checkpoint on held-out examples",
    "test": "the same on the test split, which is the held-out one",
    "predict": "write a trained model's predictions for held-out examples",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; user errors end with exit code 2 and one last line that says what is wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        _dispatch(arguments)


def _dispatch(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
    elif name == "--version":
        from importlib.metadata import version

        print(version("overopt"))
    elif name in LIGHTNING_COMMANDS:
        from overopt.trainer_cli import run

        run([name, *with_class_paths(normalise_options(arguments[1:]), "--stop_at_kl.judge")])
    elif name in STAGES:
        _run_stage(name, arguments[1:])
    else:
        raise ValueError(f"no command {name!r}; there are {', '.join([*LIGHTNING_COMMANDS, *STAGES])}")


def _overview() -> str:
    stages = {name: (stage.__doc__ or "").splitlines()[0] for name, stage in STAGES.items()}
    width = max(map(len, [*LIGHTNING_COMMANDS, *stages]))
    rows = [f"  {name:<{width}}  {summary}" for name, summary in {**LIGHTNING_COMMANDS, **stages}.items()]
    return "\n".join(
        [
            "usage: overopt COMMAND [OPTIONS]",
            "",
            "Over-optimization of reward models in direct alignment: train, sweep beta, measure, fit, advise.",
            "",
            *rows,
            "",
            "overopt COMMAND --help shows a command's options and their defaults; each takes --config FILE.yaml.",
        ]
    )


def _run_stage(name: str, arguments: list[str]) -> None:
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        """Shows options as people write them."""

        def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
            shown = super().format_help(formatter)
            return re.sub(r"--[a-z_]+", lambda option: option.group().replace("_", "-"), shown)

    stage = STAGES[name]
    options = inspect.get_annotations(stage)
    lists = [option for option, kind in options.items() if "list[" in str(kind)]
    flags = [option for option, kind in options.items() if kind is bool]
    takes_fit = FIT_OPTIONS in options
    fit_options: list[str] = []
    if takes_fit:
        arguments, fit_options = split_options(arguments, options)
    parser = Parser(
        prog=f"overopt {name}", description=(inspect.getdoc(stage) or "").split("\n\nArgs:")[0], exit_on_error=False
    )
    if not takes_fit:
        parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_function_arguments(
        stage, as_group=False, as_positional=not takes_fit, skip={FIT_OPTIONS}, sub_configs=True
    )
    told = with_class_paths(with_flags(normalise_options(arguments, lists), flags))
    for place in inspect.signature(stage).parameters.values():
        if place.default is inspect.Parameter.empty and place.name in lists and not takes_fit:
            told = with_places_as_list(told)
            for action in parser._actions:
                if action.dest == place.name:  # jsonargparse would show a list as JSON
                    action.metavar = f"{place.name.upper()} ..."
    parsed = parser.parse_args(told)
    values: dict[str, Any] = parser.instantiate(parsed).as_dict()
    values.pop("config", None)
    stage(**values, **({FIT_OPTIONS: normalise_options(fit_options)} if takes_fit else {}))


def split_options(arguments: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """A stage's own options, and those that are not, each with its values.

    >>> split_options(["--gpus", "2", "--model.beta", "1", "--gpu-memory=48"], ["gpus", "gpu_memory"])
    (['--gpus', '2', '--gpu-memory=48'], ['--model.beta', '1'])
    """
    parted: tuple[list[str], list[str]] = ([], [])
    to = parted[0]
    for argument in arguments:
        if argument.startswith("-") and not _is_number(argument):
            option = argument.lstrip("-").partition("=")[0].replace("-", "_")
            to = parted[0] if option in (*own, "h", "help") else parted[1]
        to.append(argument)
    return parted


def with_flags(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """Flags that stand alone, set to true, which is what jsonargparse wants to hear.

    >>> with_flags(["--estimate_only", "--seed", "1"], ["estimate_only"])
    ['--estimate_only', 'true', '--seed', '1']
    """
    told: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        told.append(argument)
        if argument.removeprefix("--") in flags and argument.startswith("--") and following not in ("true", "false"):
            told.append("true")
    return told


def with_places_as_list(arguments: Sequence[str]) -> list[str]:
    """What stands without an option as one list, first of all, as jsonargparse wants a positional list.

    Args:
        arguments: each option with its value.

    >>> with_places_as_list(["one.ckpt", "--seed", "1", "a folder"])
    ['["one.ckpt", "a folder"]', '--seed', '1']
    """
    places, options = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("-"):
            options += [argument, *itertools.islice(rest, 1)]
        else:
            places.append(argument)
    return [*([json.dumps(places)] if places else []), *options]


def with_class_paths(arguments: Sequence[str], judge: str = "--judge") -> list[str]:
    """Names of judges replaced by their classes, and put before their options; files and class paths stay.

    Args:
        arguments: with underscores.
        judge: the option that names a judge.

    Raises:
        ValueError: there is no such judge, or none at all to an option of it.

    >>> with_class_paths(["--judge", "api", "--judge.model", "m"])
    ['--judge', 'overopt.evaluation.judges.api.ApiJudge', '--judge.model', 'm']
    >>> with_class_paths(["--seed", "1", "--judge.unit", "words", "--judge", "longer"])
    ['--seed', '1', '--judge', 'overopt.evaluation.judges.longer.LongerJudge', '--judge.unit', 'words']
    """
    replaced = list(arguments)
    for place, (option, value) in enumerate(itertools.pairwise(arguments), start=1):
        if option not in (judge, f"{judge}.help"):
            continue
        is_file = "/" in value or value.endswith((".yaml", ".yml"))
        if value not in JUDGES and (not Path(value).is_file() if is_file else "." not in value):
            raise ValueError(f"no judge {value!r}; there are {', '.join(JUDGES)}, or name a file or a class path")
        replaced[place] = JUDGES.get(value, value)
    options = [place for place, option in enumerate(replaced) if option.startswith(f"{judge}.")]
    if options and replaced[options[0]] != f"{judge}.help":
        if judge not in replaced and "--config" not in replaced:
            raise ValueError(
                f"{replaced[options[0]]} is an option of a judge: name it with {judge}, {', '.join(JUDGES)}"
            )
        if judge in replaced and (named := replaced.index(judge)) > options[0]:
            naming = replaced[named : named + 2]
            del replaced[named : named + 2]
            replaced[options[0] : options[0]] = naming
    return replaced


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def normalise_options(arguments: Sequence[str], lists: Collection[str] | None = None) -> list[str]:
    """Options as people write them, for jsonargparse: hyphens become underscores, several values a list.

    Args:
        arguments: after the command's name.
        lists: names of the options that take lists; where it is not known (Lightning's commands, which have
            no positional arguments), an option with several values is one.

    >>> normalise_options(["--max-pairs", "8", "FILE", "--betas", "0.1", "0.5", "--seeds", "1"], ["betas", "seeds"])
    ['--max_pairs', '8', 'FILE', '--betas', '[0.1, 0.5]', '--seeds', '[1]']
    """
    normalised: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            normalised.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = name[2:].replace("-", "_")
        values = [value] if equals else []
        if not equals and (lists is None or name in lists):
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
        is_list = len(values) > 1 or (values and name in (lists or ()) and not values[0].startswith("["))
        normalised += ["--" + name, *(["[" + ", ".join(values) + "]"] if is_list else values)]
    return normalised
