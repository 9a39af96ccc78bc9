"""Records of what launchers launch, for the families whose kernels are Triton's."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.machine_code import record
from benchmarks.machine_code.cards import Card
from benchmarks.machine_code.launched import Launched, launches_of
from benchmarks.machine_code.passes import MATRIX, passes_of, work_of
from benchmarks.machine_code.predict import counts, predict
from benchmarks.machine_code.record import Work


@dataclass(frozen=True)
class Call:
    """A call of a launcher.

    `size`: in the words of benchmarks/gpu_*.py; `work`: the least that any method has to do;
    `run`: what launches, forward and backward; `main`: whether its kernels may not spill.
    """

    family: str
    case: str
    size: dict
    work: Work
    run: Callable[[], None]
    test: str
    modules: tuple = ()
    main: bool = False

    def launched(self, card: Card) -> list[Launched]:
        """What it launches on a card."""
        return launches_of(self.run, card, list(self.modules))


def launch_record(call: Call, card: Card, x: Launched) -> dict:
    """The prediction of one of a call's launches."""
    compiled = x.compiled(card.architecture)
    kernel = compiled.kernel
    how, work = passes_of(x, kernel), work_of(x)
    prediction = predict(kernel, card, x.programs, moved=work.moved, **vars(how))
    loop = None if how.straight else how.loop or kernel.main_loop()
    return record.launch(
        call.family, call.case, kernel, card, call.size, work.floor_us(card), prediction,
        counts(kernel, loop, how.fixed), call.test, x.name,
        x["BLOCK_M"] * x["BLOCK_N"] if x.name in MATRIX and "multiply" not in x.name else 0,
    )  # fmt: skip


def records(call: Call, card: Card) -> tuple[list[dict], dict]:
    """Its launches, like ones one record with their number, and the call as a whole."""
    launches, alike = [], {}
    for x in call.launched(card):
        made = launch_record(call, card, x)
        key = made["kernel"], made["predicted_us"], made["registers"], made["waves"]
        if key in alike:
            alike[key]["times"] += 1
        else:
            alike[key] = {**made, "times": 1}
        launches.append(made)
    whole = record.call(call.family, call.case, card, call.size, call.work.floor_us(card), launches)
    return list(alike.values()), whole
