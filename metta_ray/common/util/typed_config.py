"""Configuration as typed values: unknown keys are refused with the nearest known one, never ignored.

    class PPOConfig(StrictModel):
        clip_coef: float = 0.1

    PPOConfig(clip_ceof=0.2)  # ValidationError: unknown key; did you mean 'clip_coef'?
    PPOConfig.from_mapping({"clip_coef": 0.2})  # dict, omegaconf DictConfig or model; ConfigError if bad
    apply_overrides(config, {"ppo.clip-coef": "0.2"})  # what the command line does

Both pydantic's ValidationError and ConfigError are ValueErrors.
"""

from __future__ import annotations

import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from metta_ray.common.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)

LONG_LIST = 30


class StrictModel(BaseModel):
    """A pydantic model without surprises: unknown keys and bad assignments are errors, NaN is no number."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, populate_by_name=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest_key(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            # pydantic puts the path of the enclosing models in front of the locations given here.
            details = [_with_nearest_key(cls, line) for line in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from None

    def __setattr__(self, name: str, value: Any) -> None:
        known = type(self).model_fields
        if name not in known and not name.startswith("_") and not hasattr(type(self), name):
            raise ConfigError(f"{type(self).__name__} has no field {name!r}{did_you_mean(name, known)}")
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValueError:
            # A cross-field check runs after pydantic has stored the value: put the old one back.
            self.__dict__.update(before)
            raise

    @classmethod
    def from_mapping(cls, mapping: Any) -> Self:
        """A validated model from a dict, an omegaconf DictConfig, a model or None (all defaults).

        Raises ConfigError with one readable line per problem.
        """
        if isinstance(mapping, cls):
            return mapping
        try:
            return cls.model_validate(to_plain(mapping))
        except ValidationError as error:
            raise ConfigError(format_validation_error(error)) from None

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """The inverse of ``to_yaml``. ConfigError for text that is no YAML mapping of known fields."""
        try:
            return cls.from_mapping(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"{cls.__name__} is not valid YAML: {error}") from None

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def to_plain(value: Any) -> Any:
    """Plain dicts, lists and scalars from a mapping, a model or an omegaconf container."""
    if value is None:
        return {}
    if isinstance(value, BaseModel):
        return value.model_dump()
    omegaconf = sys.modules.get("omegaconf")  # whoever passes a DictConfig has imported it
    if omegaconf is not None and isinstance(value, omegaconf.DictConfig):
        try:
            return omegaconf.OmegaConf.to_container(value, resolve=True)
        except omegaconf.errors.OmegaConfBaseException as error:
            raise ConfigError(f"omegaconf cannot resolve the configuration: {error}") from None
    if isinstance(value, Mapping):
        return {key: to_plain(item) if isinstance(item, Mapping) else item for key, item in value.items()}
    raise ConfigError(f"a configuration must be a mapping or a model, not {type(value).__name__} ({value!r})")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or, when nothing is near, what is known: all of it, or of a long list the nearest."""
    known = sorted(known)
    if nearest := _nearest(name, known):
        return f"; did you mean {nearest!r}?"
    if len(known) > LONG_LIST:
        some = difflib.get_close_matches(name, known, n=5, cutoff=0.0)
        return f"; the nearest of {len(known)} known names: {', '.join(some)}"
    return f"; known: {', '.join(known)}" if known else ""


def nearest_and_all(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where something is near, and in any case all that is known, in its order."""
    known = list(known)
    nearest = _nearest(name, known)
    return (f"; did you mean {nearest!r}?" if nearest else "") + f"; known: {', '.join(known)}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)


def format_validation_error(error: ValidationError) -> str:
    """One line per problem: dotted field, the value given, what would be right."""
    return "\n".join(_format_line(line) for line in error.errors(include_url=False))


def apply_overrides(config: Any, overrides: Mapping[str, Any], schema: type[BaseModel] | None = None) -> Any:
    """A copy of ``config`` with dotted names replaced, e.g. ``{"ppo.clip-coef": "0.2"}``.

    config: a model (a validated model of the same type comes back), or a mapping (a plain dict comes back,
        whose names are checked against ``schema`` where one is given, else against the mapping itself).
    overrides: dotted names with ``-`` or ``_``; text is read as a YAML scalar, anything else is used as is.

    Raises ConfigError for an unknown name (with the nearest one) or, for a model, for values that do not fit.
    """
    model_type = type(config) if isinstance(config, BaseModel) else schema
    plain = to_plain(config)
    for name, value in overrides.items():
        path = name.strip().lstrip("-").replace("-", "_").split(".")
        _check_name(path, name, model_type, plain)
        _set_at(plain, path, _read_scalar(value, _annotation_at(model_type, path)))
    if isinstance(config, BaseModel):
        return validated(type(config), plain)
    return plain


def validated(model_type: type[ModelT], mapping: Any) -> ModelT:
    """``model_validate`` whose failure is a readable ConfigError."""
    try:
        return model_type.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError(format_validation_error(error)) from None


def dotted_names(model_type: type[BaseModel], prefix: str = "") -> list[str]:
    """Every field of a model and of the models inside it, e.g. ``ppo``, ``ppo.clip_coef``."""
    names = []
    for name, field in model_type.model_fields.items():
        names.append(prefix + name)
        inner = _model_inside(field.annotation)
        if inner is not None:
            names += dotted_names(inner, f"{prefix}{name}.")
    return names


def _with_nearest_key(model_type: type[BaseModel], line: Any) -> InitErrorDetails:
    """An error line as it can be raised again; an unknown key of this very model gets its nearest name."""
    location, kind, context = line["loc"], line["type"], line.get("ctx", {})
    if kind == "extra_forbidden" and len(location) == 1:
        message = "unknown key" + did_you_mean(str(location[0]), model_type.model_fields)
        reraised: Any = PydanticCustomError("unknown_key", cast(Any, "{message}"), {"message": message})
    elif kind == "value_error":
        # The message already begins with pydantic's "Value error, "; ctx carries the exception itself.
        reraised = PydanticCustomError("value_error", cast(Any, "{message}"), {"message": line["msg"]})
    else:
        reraised = _same_error(kind, line["msg"], context)
    return InitErrorDetails(type=reraised, loc=location, input=line["input"])


def _same_error(kind: str, message: str, context: dict[str, Any]) -> Any:
    return PydanticCustomError(cast(Any, kind), cast(Any, "{message}"), {**context, "message": message})


def _format_line(line: Any) -> str:
    path = ".".join(str(part) for part in line["loc"])
    message = str(line["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if message.startswith("Input ") else message
    if not path or line["type"] == "value_error" or line["type"] == "missing":
        return f"{path}: {message}" if path else message
    return f"{path}={line['input']!r}: {message}"


def _check_name(path: list[str], written: str, model_type: type[BaseModel] | None, plain: Any) -> None:
    known_names = dotted_names(model_type) if model_type is not None else _dotted_keys(plain)
    if _exists(path, model_type, plain):
        return
    name = ".".join(path)
    nearest = [known for known in known_names if known.split(".")[-1] == path[-1]]  # elsewhere
    nearest = difflib.get_close_matches(name, nearest or known_names, n=1, cutoff=0.5) or nearest
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(sorted(known_names))}"
    raise ConfigError(f"unknown setting {written!r}{hint}")


def _exists(path: list[str], model_type: type[BaseModel] | None, plain: Any) -> bool:
    if model_type is None:
        return ".".join(path) in _dotted_keys(plain)
    for depth, part in enumerate(path):
        field = model_type.model_fields.get(part)
        if field is None:
            return False
        if depth == len(path) - 1:
            return True
        inner = _model_inside(field.annotation)
        if inner is None:
            return _is_dict(field.annotation)  # free-form settings: any key may be set
        model_type = inner
    return True


def _annotation_at(model_type: type[BaseModel] | None, path: list[str]) -> Any:
    annotation: Any = model_type
    for part in path:
        inner = _model_inside(annotation)
        field = inner.model_fields.get(part) if inner is not None else None
        if field is None:
            return None
        annotation = field.annotation
    return annotation


def _read_scalar(value: Any, annotation: Any) -> Any:
    if not isinstance(value, str) or annotation is str:
        return value
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    if parsed is not None and set(_alternatives(annotation)) == {str, type(None)}:
        return value  # a run may be named 2024
    # YAML 1.1 reads 1e-3 as text.
    if isinstance(parsed, str):
        try:
            return float(parsed) if parsed[:1] in "+-.0123456789" else parsed
        except ValueError:
            return parsed
    return parsed


def _set_at(plain: dict[str, Any], path: list[str], value: Any) -> None:
    for depth, part in enumerate(path[:-1], start=1):
        inner = plain.get(part)
        if inner is None:
            inner = plain[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{'.'.join(path[:depth])}={inner!r} has no settings inside, so {'.'.join(path)} has no place"
            )
        plain = inner
    plain[path[-1]] = value


def _dotted_keys(plain: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in plain.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _dotted_keys(value, f"{prefix}{key}.")
    return names


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """The model in ``Model`` or ``Model | None``."""
    for candidate in _alternatives(annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _is_dict(annotation: Any) -> bool:
    return any((typing.get_origin(item) or item) in (dict, Any) for item in _alternatives(annotation))


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
