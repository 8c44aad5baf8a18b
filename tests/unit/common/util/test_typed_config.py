from typing import Any, Self

import omegaconf
import pytest
from pydantic import Field, ValidationError, model_validator

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import StrictModel, apply_overrides, dotted_names


class Inner(StrictModel):
    clip_coef: float = Field(default=0.1, gt=0, le=1)
    name: str = "x"
    options: dict[str, Any] = Field(default_factory=dict)


class Outer(StrictModel):
    inner: Inner = Field(default_factory=Inner)
    maybe: Inner | None = None
    size: int = 4
    part: int = 2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % self.part:
            raise ValueError(f"size={self.size} is not a multiple of part={self.part}")
        return self


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_name():
    with pytest.raises(ConfigError) as error:
        Outer.from_mapping({"inner": {"clip_ceof": 0.2}, "sise": 3})

    assert "inner.clip_ceof=0.2: unknown key; did you mean 'clip_coef'?" in str(error.value)
    assert "sise=3: unknown key; did you mean 'size'?" in str(error.value)


def test_the_constructor_names_the_nearest_key_too():
    with pytest.raises(ValidationError, match="did you mean 'clip_coef'"):
        Inner(clip_ceof=0.2)


def test_every_problem_is_one_line_with_field_and_value():
    with pytest.raises(ConfigError) as error:
        Outer.from_mapping({"inner": {"clip_coef": 7}, "size": "many"})

    lines = str(error.value).splitlines()
    assert lines[0] == "inner.clip_coef=7: input should be less than or equal to 1"
    assert lines[1].startswith("size='many': ")


def test_nan_is_not_a_setting():
    with pytest.raises(ConfigError, match=r"inner\.clip_coef=nan"):
        Outer.from_mapping({"inner": {"clip_coef": float("nan")}})


def test_a_refused_assignment_changes_nothing():
    config = Outer()

    with pytest.raises(ValueError, match="size=5 is not a multiple of part=2"):
        config.size = 5
    with pytest.raises(ValueError, match="less than or equal to 1"):
        config.inner.clip_coef = 2.0
    with pytest.raises(ConfigError, match="Outer has no field 'sise'; did you mean 'size'"):
        config.sise = 3

    assert config == Outer()


def test_a_model_comes_from_dict_dictconfig_model_or_nothing():
    plain = {"inner": {"clip_coef": 0.5}}

    assert Outer.from_mapping(plain) == Outer(inner=Inner(clip_coef=0.5))
    assert Outer.from_mapping(omegaconf.DictConfig(plain)) == Outer.from_mapping(plain)
    assert Outer.from_mapping(Outer.from_mapping(plain)) == Outer.from_mapping(plain)
    assert Outer.from_mapping(None) == Outer()
    with pytest.raises(ConfigError, match="must be a mapping or a model, not list"):
        Outer.from_mapping([1])


def test_yaml_round_trip():
    config = Outer(inner=Inner(clip_coef=0.25, options={"a": [1, 2]}), maybe=Inner())
    assert Outer.from_yaml(config.to_yaml()) == config


def test_overrides_take_dashes_underscores_and_yaml_scalars():
    config = apply_overrides(
        Outer(),
        {"inner.clip-coef": "1e-3", "--size": "8", "maybe.name": "on", "inner.options.free_form": "[1, a]"},
    )

    assert config.inner.clip_coef == 0.001
    assert config.size == 8
    assert config.maybe == Inner(name="on")
    assert config.inner.options == {"free_form": [1, "a"]}


def test_a_misspelt_override_suggests_the_nearest_dotted_name():
    with pytest.raises(ConfigError, match=r"unknown setting 'inner.clip-cof'; did you mean 'inner.clip_coef'"):
        apply_overrides(Outer(), {"inner.clip-cof": "0.2"})
    with pytest.raises(ConfigError, match=r"did you mean 'inner.clip_coef'"):
        apply_overrides(Outer(), {"iner.clip-coef": "0.2"})
    with pytest.raises(ConfigError, match=r"did you mean '(inner|maybe).clip_coef'"):
        apply_overrides(Outer(), {"clip-coef": "0.2"})
    with pytest.raises(ConfigError, match=r"did you mean 'a.b'"):
        apply_overrides({"a": {"b": 1}}, {"a.bb": "2"})


def test_overrides_of_a_mapping_are_checked_against_a_schema_and_leave_the_mapping_alone():
    plain: dict[str, Any] = {"size": 8}

    assert apply_overrides(plain, {"inner.name": "7"}, Outer) == {"size": 8, "inner": {"name": "7"}}
    assert plain == {"size": 8}
    with pytest.raises(ConfigError, match="unknown setting"):
        apply_overrides(plain, {"inner.nam": "7"}, Outer)


def test_an_override_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="size=9 is not a multiple of part=2"):
        apply_overrides(Outer(), {"size": "9"})


def test_dotted_names_reach_into_optional_models():
    assert "maybe.clip_coef" in dotted_names(Outer)
