"""Where torch computes: the accelerator, and of several the one whose turn it is."""

from collections.abc import Mapping

import torch

from imprompt.core.ranks import local_rank


def chosen_device(
    name: str = "auto", *, place: int | None = None, environment: Mapping[str, str] | None = None
) -> torch.device:
    """The device that a name means.

    Args:
        name: What torch calls a device, or "auto": the accelerator if there is one. Processes of one machine take turns
            at several; a process without a number takes torch's current one.
        place: Number of this process on its machine; by default what a launcher tells, and it may have told none.
        environment: Where launchers tell it; the process's own by default.
    """
    if name != "auto":
        return torch.device(name)
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return torch.device("cpu")
    number = local_rank(environment) if place is None else place
    return kind if number is None else torch.device(kind.type, number % torch.accelerator.device_count())
