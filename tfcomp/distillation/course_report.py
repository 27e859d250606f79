"""What a course of lessons has brought."""

from __future__ import annotations

import dataclasses

from tfcomp.distillation.lesson import Lesson


@dataclasses.dataclass(frozen=True, eq=False)
class CourseReport:
    """What a course of lessons has brought.

    Attributes:
        lessons: All lessons in the order in which they were given.
        path: Names of the models that lead to the result, the teacher first.
        evaluations: Metrics on the validation data, by name of model: the teacher, those on the
            path, and the ensemble where there is one. Empty without such data.
    """

    lessons: tuple[Lesson, ...]
    path: tuple[str, ...]
    evaluations: dict[str, dict[str, float]]

    def __str__(self) -> str:
        taught = {lesson.student for lesson in self.lessons}
        rows = [(name, values) for name, values in self.evaluations.items() if name not in taught]
        rows += [(f"{x.student} (taught by {x.teacher})", x.evaluation) for x in self.lessons]
        lines = [
            f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in values.items())}"
            for name, values in rows
        ]
        return "\n".join([f"path: {' → '.join(self.path)}", *lines])
