"""What an endpoint's tokens cost: a table in YAML, input and output apart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DEFAULT_PRICES = Path("conf/judge/prices.yaml")


@dataclass(frozen=True)
class Usage:
    """Tokens that an endpoint counted for one answer.

    Attributes:
        input_tokens: of the question, those read from the endpoint's own cache among them.
        output_tokens: of the answer, with any reasoning.
        cached_tokens: of the question, read from the endpoint's cache.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


class ModelPrice(BaseModel):
    """Price of a million tokens of one model.

    Attributes:
        input: of a million input tokens.
        output: of a million output tokens.
        cached_input: of a million input tokens from the endpoint's cache; the input price by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    input: Price
    output: Price
    cached_input: Price | None = None

    def cost(self, usage: Usage, factor: float = 1.0) -> float:
        """Of one answer.

        >>> ModelPrice(input=10, output=30).cost(Usage(input_tokens=1000, output_tokens=100))
        0.013
        """
        cached = self.input if self.cached_input is None else self.cached_input
        of_input = (usage.input_tokens - usage.cached_tokens) * self.input + usage.cached_tokens * cached
        return factor * (of_input + usage.output_tokens * self.output) / 1e6


class PriceTable(BaseModel):
    """Prices of models by name.

    Attributes:
        currency: of all prices.
        batch_factor: what the Batch API takes of these prices.
        models: price of each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    currency: str
    batch_factor: Price
    models: dict[str, ModelPrice]


def price_of(model: str, path: Path) -> ModelPrice:
    """A model's price in a table.

    Raises:
        ValueError: the table is none, or has no such model.
    """
    table = read_prices(path)
    if model not in table.models:
        raise ValueError(f"no price of {model!r} in {path}; there are {', '.join(table.models)}")
    return table.models[model]


def read_prices(path: Path) -> PriceTable:
    """A price table.

    Raises:
        ValueError: no such file, or it is no price table.
    """
    if not path.is_file():
        raise ValueError(f"no price table at {path}: name one with --judge.prices, or null for none")
    try:
        return PriceTable.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(
            f"{path} is no price table ({where}: {first['msg']}): expected currency, batch_factor and models, each "
            "with input and output"
        ) from error
