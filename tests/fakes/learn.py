"""A stage that learns from records and can resume."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Estimate, Facts, Given, estimate
from modelwright.core.spec import Runtime
from modelwright.core.stage import Ref, Refs, Run, Stage, Stats


class Learn(Stage):
    kind: Literal["learn"] = "learn"
    data: Refs
    """Rows to learn from."""
    start: Ref("model") | None = None
    """Where to start."""
    rate: float = Field(0.1, gt=0)
    """Step size."""
    stop_at: Annotated[int, Runtime] = 0
    """Raise at this step."""

    produces: ClassVar[str] = "model"
    resumes: ClassVar[bool] = True

    def estimate(self, given: Given) -> Estimate:
        rows = sum(given.parents[m.ref].rows or 0 for m in self.data)
        return estimate(rows, "1 s a row", 5e6, "fixed", 100, "weights", {"": Facts(type="model")})

    def run(self, run: Run) -> Stats:
        state = run.out / "state.txt"
        begin = int(state.read_text()) if state.exists() else 0
        for step in range(begin, 5):
            state.write_text(str(step))
            if self.stop_at == step and begin == 0 and step:
                raise KeyboardInterrupt
            run.log.event("step", step=step, loss=1.0 / (step + 1))
        state.unlink()
        (run.out / "weights.bin").write_bytes(bytes([run.seed % 256]))
        return {"began": begin, "facts": {"": {"type": "model"}}}
