"""Denoisers of diffusers that have no place for an image prompt, and why: words that follow "it"."""

_SOUND = "makes sound, not pictures"
_PART = "is a part of a UNet, which is what to attach to"

NOT_ATTACHABLE: dict[str, str] = {
    "AceStepTransformer1DModel": _SOUND,
    "AudioLDM2UNet2DConditionModel": _SOUND,
    "LongCatAudioDiTTransformer": _SOUND,
    "MiniMaxMusic3RVQDepthDecoder": _SOUND,
    "MiniMaxMusic3Transformer1DModel": _SOUND,
    "StableAudio3DiTModel": _SOUND,
    "StableAudioDiTModel": _SOUND,
    "T5FilmDecoder": _SOUND,
    "RFD4ProteinaTransformer": "makes proteins, not pictures",
    "PriorTransformer": "makes the embedding of a picture, whose tokens have no places",
    "DiTTransformer2DModel": "is told a class by number and attends to nothing but itself",
    "Kandinsky6SRTransformer3DModel": "enlarges frames and attends to nothing but them",
    "UNet1DModel": "is told nothing but the timestep",
    "UNet2DModel": "is told nothing but the timestep, or a class by number",
    "DreamLiteTransformer2DModel": _PART,
    "DualTransformer2DModel": _PART,
    "Transformer2DModel": _PART,
    "TransformerTemporalModel": _PART,
    "MotionAdapter": "holds the weights of UNetMotionModel's motion modules, and cannot be called",
    "UniDiffuserModel": "is deprecated in diffusers, which keeps it only to load old files",
}
