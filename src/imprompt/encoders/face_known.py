"""Published face networks by the hash of their file, so that a licence can be stated where one is loaded.

A network for faces is as free as its weights, not as the code around it: the InsightFace packs that FaceID adapters
were trained with are for non-commercial research only, and so are these adapters' published weights.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

NON_COMMERCIAL = "InsightFace's model licence: non-commercial research only"
UNKNOWN = "not known here: see where the file came from (InsightFace's own are for non-commercial research only)"


@dataclass(frozen=True)
class KnownFaceModel:
    """A published detector or embedder.

    Attributes:
        name: What people call it.
        licence: Under which terms its weights may be used.
        sha256: Hash of its file.
    """

    name: str
    licence: str
    sha256: str


KNOWN_FACE_MODELS = (
    KnownFaceModel(
        "SCRFD-10G (buffalo_l, antelopev2)",
        NON_COMMERCIAL,
        "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    ),
    KnownFaceModel(
        "SCRFD-500M (buffalo_s, buffalo_sc)",
        NON_COMMERCIAL,
        "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a",
    ),
    KnownFaceModel(
        "ArcFace R50 WebFace600K (buffalo_l)",
        NON_COMMERCIAL,
        "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    ),
    KnownFaceModel(
        "ArcFace MobileFaceNet WebFace600K (buffalo_s, buffalo_sc)",
        NON_COMMERCIAL,
        "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
    ),
    KnownFaceModel(
        "ArcFace R100 Glint360K (antelopev2)",
        NON_COMMERCIAL,
        "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
    ),
    KnownFaceModel("YuNet 2023mar", "MIT", "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"),
    KnownFaceModel("SFace 2021dec", "Apache-2.0", "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79"),
)


def known_face_model(sha256: str) -> KnownFaceModel | None:
    """Find a published network by the hash of its file; None if it is not one of them."""
    return next((model for model in KNOWN_FACE_MODELS if model.sha256 == sha256), None)


def state_licence(path: Path, sha256: str, role: str, *, otherwise: str = UNKNOWN) -> tuple[str, str]:
    """Name a network that is being loaded, and write the licence of its weights to the log.

    Args:
        path: Its file.
        sha256: Hash of that.
        role: "detector" or "embedder".
        otherwise: What is known of the licence where the file is not a published one.

    Returns:
        Name and licence.
    """
    known = known_face_model(sha256)
    name, licence = (known.name, known.licence) if known else (path.stem, otherwise)
    level = logging.WARNING if licence in (NON_COMMERCIAL, UNKNOWN) else logging.INFO
    logger.log(level, "face %s %s from '%s'; licence of its weights: %s", role, name, path, licence)
    return name, licence
