"""Every error and warning revstep raises on purpose, but for those of training runs (:mod:`revstep.lm`). Each
message says what was got, what was expected, what to do.
"""

from __future__ import annotations


class RevstepError(Exception):
    """Base class of all revstep errors."""


class ConfigError(RevstepError, ValueError):
    """An option, coefficient or argument that cannot be used. It is raised before anything is computed
    wherever that can be known by then.
    """


class UnsupportedError(RevstepError, RuntimeError):
    """A use of autograd that a reversible stack cannot serve, refused before it gives wrong numbers."""


class ReconstructionError(RevstepError, RuntimeError):
    """A state rebuilt in backward is not the state the forward pass computed.

    Attributes:
        layer: index of the block whose re-evaluation gave other values (0 is the first block).
    """

    def __init__(self, message: str, layer: int = -1):
        super().__init__(message)
        self.layer = layer


class NonDeterministicBlockError(ReconstructionError):
    """A block did different work when it was evaluated a second time on the same input."""


class StateOverflowError(RevstepError, ArithmeticError):
    """A value left the range of the state format, or was NaN or infinite.

    Attributes:
        layer: index of the block after which it happened (-1: the stack's own input); of an integration, the
            step.
        largest: largest absolute value seen (``inf`` for NaN).
        limit: largest absolute value the format holds.
        index: flat index of the first such value in its state; -1 where it is not known.
        fault: the part of the message that says what happened, without the advice.
        advised: the state format that holds the value; None where there is none, or where none is the answer.
        scale: of an integration, what to pass as ``scale=`` instead; None where there is none.
    """

    def __init__(
        self,
        message: str,
        layer: int,
        largest: float,
        limit: float,
        index: int = -1,
        fault: str | None = None,
        advised: object = None,
        scale: object = None,
    ):
        super().__init__(message)
        self.layer = layer
        self.largest = largest
        self.limit = limit
        self.index = index
        self.fault = message if fault is None else fault
        self.advised = advised
        self.scale = scale

    def again(self, message: str) -> StateOverflowError:
        """The same facts under another message, for who knows more about the place."""
        facts = self.layer, self.largest, self.limit, self.index, self.fault, self.advised, self.scale
        return type(self)(message, *facts)

    def __reduce__(self) -> tuple:
        """Errors come back from other processes by pickle, which calls the class with these."""
        facts = self.layer, self.largest, self.limit, self.index, self.fault, self.advised, self.scale
        return type(self), (str(self), *facts)


class ResolutionError(ConfigError):
    """A component of an integration never moved, because every one of its increments rounded to zero.

    Attributes:
        scale: what to pass as ``scale=`` so that they do not.
    """

    def __init__(self, message: str, scale: object = None):
        super().__init__(message)
        self.scale = scale

    def __reduce__(self) -> tuple:
        """As of StateOverflowError: what the class is called with."""
        return type(self), (str(self), self.scale)


class ParasiticModeError(RevstepError, ArithmeticError):
    """The two copies of the solution that a method keeps have come apart, so that neither is the solution.

    Attributes:
        step: the step after which it was seen.
        distance: of the copies, in units of the scale.
        limit: the largest distance that the method allows.
    """

    def __init__(
        self, message: str, step: int = -1, distance: float = float("nan"), limit: float = float("nan")
    ):
        super().__init__(message)
        self.step = step
        self.distance = distance
        self.limit = limit

    def __reduce__(self) -> tuple:
        """As of StateOverflowError: what the class is called with."""
        return type(self), (str(self), self.step, self.distance, self.limit)


class ResolutionWarning(UserWarning):
    """A component of an integration moved by few bits where another unit would give it more.

    Attributes:
        scale: what to pass as ``scale=`` for more.
    """

    def __init__(self, message: str, scale: object = None):
        super().__init__(message)
        self.scale = scale


class CallbackError(RevstepError, RuntimeError):
    """A field given as a C function raised an exception, or returned with part of its output unwritten.

    What it raised is the ``__cause__``.

    Attributes:
        step: the step of the integration; -1 where it is not known.
        t: the time the function was asked at; None where it is not known.
        system: index of the system in the batch, counted over all leading axes; -1 where it is not known.
    """

    def __init__(self, message: str, step: int = -1, t: float | None = None, system: int = -1):
        super().__init__(message)
        self.step = step
        self.t = t
        self.system = system

    def at(self, step: int) -> CallbackError:
        """The same facts with the step, for who knows it."""
        return self if self.step >= 0 else type(self)(f"step {step}, {self}", step, self.t, self.system)

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.step, self.t, self.system)


class AmplificationWarning(UserWarning):
    """A float state together with coefficients whose inverse amplifies rounding errors."""


class ResidualBlockWarning(UserWarning):
    """The blocks of a stack look like x + f(x), where the increment f(x) is expected."""


class ReconstructionWarning(UserWarning):
    """A float state was rebuilt with a large measured error."""


class ReferenceKernelWarning(UserWarning):
    """The pure-torch reference runs because no compiled kernel serves this device."""


class FallbackWarning(UserWarning):
    """A run takes a slower way than the one asked for; both give the same bits. The message says why."""
