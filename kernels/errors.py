"""What can go wrong in an op, the same for every implementation of it.

KernelError
├── ShapeError              sizes that do not fit together
├── DTypeError              a dtype this op does not take
├── DeviceError             tensors on different devices
└── KernelUnavailableError  the implementation asked for cannot run here
"""


class KernelError(Exception):
    """Anything this package raises on purpose."""


class ShapeError(KernelError, ValueError):
    """Two tensors disagree about a size, or a size is not allowed."""


class DTypeError(KernelError, TypeError):
    """A tensor has a dtype the op does not take."""


class DeviceError(KernelError, ValueError):
    """Two tensors of a call lie on different devices."""


class KernelUnavailableError(KernelError, RuntimeError):
    """The chosen implementation cannot run on this device."""
