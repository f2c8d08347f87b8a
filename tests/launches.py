"""Counting what a computation would launch on a device, and where the host would wait, on the CPU."""

from torch.utils._python_dispatch import TorchDispatchMode

# the host waits for a value, or for the size of a result that depends on values
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"}
_VIEWS = {
    "view", "slice", "select", "transpose", "permute", "expand", "unsqueeze", "squeeze", "_unsafe_view",
    "detach", "unbind", "t", "alias", "as_strided", "split",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Within the block, ``waits`` names what a host would wait for and ``launches`` what takes a kernel.

    ``tolist``, with which results are read in the end, is no operation and does not count.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.launches = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in _WAITING:
            self.waits.append(name)
        elif name not in _VIEWS:
            self.launches.append(name)
        return func(*args, **(kwargs or {}))
