"""The one error that a user can mend. Everything else is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix; the command line prints it without a traceback.

    what: the fault in one sentence. why: the cause or the consequence. fix: what to do, if possible
    a line to paste. where: the place, such as `recipe.yaml:12 stages.base.objective`.
    """

    def __init__(self, what: str, why: str = "", fix: str = "", where: str = "") -> None:
        self.what, self.why, self.fix, self.where = what, why, fix, where
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  {label}: {text}" for label, text in (("why", self.why), ("fix", self.fix)) if text]
        return "\n".join(lines)


class UserErrors(UserError):
    """Several faults of one recipe, all shown at once."""

    def __init__(self, errors: list[UserError]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(e) for e in errors))


class Impossible(UserError):
    """A stage that the recipe alone shows to be impossible: refused before any work, not when its turn comes."""


class StageFailed(UserError):
    """A stage could not be made; those before it are kept. The command exits with 1."""


def missing_extra(package: str, extra: str, what: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{what} needs the package {package!r}, which is not installed", fix=f"pip install 'modelwright[{extra}]'")
