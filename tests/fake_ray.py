"""A stand-in for Ray in one process: the few calls that imprompt makes, with their promises and their errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """What Ray raises where a machine or process is lost."""


class RayTaskError(RayError):
    """What Ray raises where a task raised; the task's own error is its cause."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"ray::task()\n  Traceback: {cause}")
        self.cause = cause


@dataclass
class Reference:
    """A promise of a result: a task that is run when it is waited for."""

    number: int
    task: Callable[[], Any]


@dataclass
class Cluster:
    """The module `ray`, and what was asked of it.

    Attributes:
        resources: of all machines.
        refusal: what `init` raises.
        before_task: called where a task begins, as another process has another past.
    """

    resources: dict[str, float]
    refusal: Exception | None = None
    before_task: Callable[[], None] = lambda: None
    num_started: int = 0
    puts: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))

    def is_initialized(self) -> bool:
        return self.num_started > 0

    def init(self, **_: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.num_started += 1

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def put(self, value: Any) -> Any:
        self.puts.append(value)
        return value

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        self.options = options

        def bind(function: Callable[..., Any]) -> Any:
            def ask(*arguments: Any) -> Reference:
                self.numbers.append(arguments[-1])
                return Reference(arguments[-1], lambda: function(*arguments))

            return SimpleNamespace(remote=ask)

        return bind

    def wait(self, references: Sequence[Reference]) -> tuple[list[Reference], list[Reference]]:
        return list(references[:1]), list(references[1:])

    def get(self, references: Sequence[Reference]) -> list[Any]:
        return [self._run(reference) for reference in references]

    def cancel(self, reference: Reference) -> None:
        self.cancelled.append(reference.number)

    def _run(self, reference: Reference) -> Any:
        self.before_task()
        try:
            return reference.task()
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from error
