"""Settings of kickstarting: distilling one or more teacher policies while learning by reinforcement."""

from __future__ import annotations

from pydantic import Field

from metta_ray.common.util.typed_config import StrictModel


class KickstartTeacherConfig(StrictModel):
    """One teacher."""

    teacher_uri: str = Field(min_length=1, description="policy to learn from, as the policy store names it")
    action_loss_coef: float = Field(default=1.0, ge=0, description="weight of the action cross-entropy")
    value_loss_coef: float = Field(default=1.0, ge=0, description="weight of the squared value difference")


class KickstartConfig(StrictModel):
    """No teacher, no kickstart. The weights fall linearly to 0 at the end and stay there."""

    teacher_uri: str | None = Field(default=None, description="short form for a single teacher")
    action_loss_coef: float = Field(default=1.0, ge=0, description="for teacher_uri")
    value_loss_coef: float = Field(default=1.0, ge=0, description="for teacher_uri")
    anneal_ratio: float = Field(
        default=0.65, ge=0, le=1, description="last share of kickstart_steps during which the weights fall"
    )
    kickstart_steps: int = Field(default=1_000_000_000, gt=0, description="agent steps until teachers go")
    additional_teachers: list[KickstartTeacherConfig] | None = None

    @property
    def teachers(self) -> list[KickstartTeacherConfig]:
        """All teachers, ``teacher_uri`` last."""
        teachers = list(self.additional_teachers or [])
        if self.teacher_uri:
            teachers.append(
                KickstartTeacherConfig(
                    teacher_uri=self.teacher_uri,
                    action_loss_coef=self.action_loss_coef,
                    value_loss_coef=self.value_loss_coef,
                )
            )
        return teachers
