"""A stage that makes records out of nothing."""

import time
from typing import Annotated, ClassVar, Literal

from modelwright.core.estimate import Estimate, Facts, Given, estimate
from modelwright.core.record import Record, write_records
from modelwright.core.spec import Runtime
from modelwright.core.stage import Run, Stage, Stats


class Words(Stage):
    kind: Literal["words"] = "words"
    count: int = 3
    """Rows."""
    split: bool = False
    """Two parts."""
    sleep_s: Annotated[float, Runtime] = 0.0
    """Wait before the end."""
    fail: Literal["", "bug", "disk", "gate"] = ""
    """Break on purpose."""
    threads: Annotated[int, Runtime] = 1
    """Changes nothing."""

    produces: ClassVar[str] = "records"
    random: ClassVar[bool] = False

    def parts(self) -> tuple[str, ...]:
        return ("train", "test") if self.split else ()

    def unused(self, context) -> dict[str, str]:
        return {"sleep_s": "there is nothing to wait for"} if self.count == 0 else {}

    def estimate(self, given: Given) -> Estimate:
        facts = Facts(type="records", rows=self.count)
        return estimate(
            0.1 * self.count,
            "0.1 s a row",
            1e6,
            "fixed",
            10.0 * self.count,
            "10 B a row",
            {part: facts for part in self.parts() or ("",)},
        )

    def checks(self, run: Run):
        from modelwright.core.stage import Check

        yield Check("sound", self.fail != "gate", "looked at it", "mend it")

    def run(self, run: Run) -> Stats:
        if self.fail == "bug":
            raise ZeroDivisionError
        if self.fail == "disk":
            raise OSError(28, "No space left on device")
        for part in self.parts() or ("all",):
            write_records(
                run.out / f"{part}.jsonl", (Record(str(i), text=f"row {i}") for i in run.log.track(range(self.count), "rows"))
            )
        time.sleep(self.sleep_s)
        return {
            "rows_in": self.count,
            "rows_out": self.count,
            "facts": {part: {"type": "records", "rows": self.count} for part in self.parts() or ("",)},
        }
