"""One tiny random model of every denoiser class that diffusers exports, and the arguments of one call of it.

`DENOISERS` holds them by class name; every other file here is data. A class that a newer diffusers brings is one more
entry in one of those files; `tests/unit/adapter/test_denoisers_table.py` names the classes that are missing.
"""

from tests.denoisers.audio_other import AUDIO_AND_OTHER
from tests.denoisers.cross_attention import CROSS_ATTENTION
from tests.denoisers.joint import JOINT
from tests.denoisers.joint_flux import JOINT_FLUX
from tests.denoisers.joint_single import JOINT_SINGLE
from tests.denoisers.table import Denoiser, Draw, all_denoiser_classes
from tests.denoisers.unets import UNETS
from tests.denoisers.video import VIDEO
from tests.denoisers.video_cross import VIDEO_CROSS

GROUPS: dict[str, tuple[Denoiser, ...]] = {
    "unets": UNETS,
    "cross-attention": CROSS_ATTENTION,
    "joint": JOINT_FLUX + JOINT + JOINT_SINGLE,
    "video": VIDEO_CROSS + VIDEO,
    "audio and other": AUDIO_AND_OTHER,
}
ENTRIES: tuple[Denoiser, ...] = tuple(entry for group in GROUPS.values() for entry in group)
DENOISERS: dict[str, Denoiser] = {entry.name: entry for entry in ENTRIES if entry.reason is None}
NOT_BUILT: dict[str, str] = {entry.name: entry.reason for entry in ENTRIES if entry.reason is not None}

__all__ = ["DENOISERS", "ENTRIES", "GROUPS", "NOT_BUILT", "Denoiser", "Draw", "all_denoiser_classes"]
