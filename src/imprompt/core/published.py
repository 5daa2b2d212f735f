"""The adapters that people have published, as data: which file, of which size and hash, beside which encoder.

None stands for unknown, never for a guess. Sizes and hashes are those on the hub's own pages of these files, or in the
catalogues of two tools that download them; revisions were seen there to hold the files.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """One file in a repository.

    Attributes:
        path: Where it is.
        num_bytes: Its size.
        sha256: How its hash begins, 16 hexadecimal digits.
        revision: The revision that holds it, where that is not its repository's.
    """

    path: str
    num_bytes: int | None = None
    sha256: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedAdapter:
    """An adapter, in one file or in the same weights twice.

    Attributes:
        name: What its authors call it.
        repository: Where it is on the hub.
        files: Its files, the best first: safetensors before pickles.
        family: The base it was made for: "sd1", "sdxl", "kolors", "flux", "sd3".
        encoder: The image encoder that it reads, as `owner/name:folder`; None if it reads faces alone.
        face_encoder: The pack of face networks that it reads, by InsightFace's name; None if it reads none.
        preset: What ComfyUI's loader calls it.
        lora: The LoRA that belongs to it, for tools that read it from a file of its own.
        licence: What its authors say; "non-commercial" where they say that in words.
    """

    name: str
    repository: str
    files: tuple[PublishedFile, ...]
    family: str
    encoder: str | None = None
    face_encoder: str | None = None
    preset: str | None = None
    lora: PublishedFile | None = None
    licence: str | None = None

    @property
    def address(self) -> str:
        """Repository and file in one."""
        return f"{self.repository}:{self.files[0].path}"


H94, FACEID = "h94/IP-Adapter", "h94/IP-Adapter-FaceID"
COMPOSITION, PULID = "ostris/ip-composition-adapter", "guozinan/PuLID"
KOLORS, KOLORS_FACEID = "Kwai-Kolors/Kolors-IP-Adapter-Plus", "Kwai-Kolors/Kolors-IP-Adapter-FaceID-Plus"
XLABS, XLABS_V2 = "XLabs-AI/flux-ip-adapter", "XLabs-AI/flux-ip-adapter-v2"
INSTANTX_FLUX, INSTANTX_SD3 = "InstantX/FLUX.1-dev-IP-Adapter", "InstantX/SD3.5-Large-IP-Adapter"
INSTANTID, CSGO = "InstantX/InstantID", "InstantX/CSGO"

VIT_H, BIG_G = f"{H94}:models/image_encoder", f"{H94}:sdxl_models/image_encoder"
# Kolors' own copy: its pull request 4 is where this one lies in safetensors, as diffusers' documentation loads it.
CLIP_L, CLIP_L_336 = "openai/clip-vit-large-patch14", f"{KOLORS}@refs/pr/4:image_encoder"
SIGLIP = "google/siglip-so400m-patch14-384"

# The revision of a repository that holds the files below, so that what is loaded next year is what was loaded today.
REVISIONS = {
    H94: "018e402774aeeddd60609b4ecdb7e298259dc729",
    FACEID: "43907e6f44d079bf1a9102d9a6e56aef7a219bae",
    COMPOSITION: "0d2ed55c441a20c20e09da4dc086097703f26b61",
    KOLORS: "4bfeac623f33f572ea22b903d4c7944dc0788f5c",
    KOLORS_FACEID: "edfe17bd1c52098ac825465493d7ba1c1e8ba4f6",
    XLABS: "18f6940238ab5dc3744df7a8e30315892279d5f9",
    XLABS_V2: "f4a9a8b1214635a7a43bb1b076f487a220ab701d",
    INSTANTX_FLUX: "483c2094f90ce5ca1bcaea308f66d0a969704f1a",
    INSTANTX_SD3: "8eea91a7b4021585370590c3d9c6c9eadd469f8c",
    INSTANTID: "57b32dfee076092ad2930c71fd6d439c2c3b1820",
    CLIP_L: "32bd64288804d66eefd0ccbe215aa642df71cc41",
    SIGLIP: "9fdffc58afc957d1a03a25b10dba0329ab15c2a3",
}

APACHE, NON_COMMERCIAL = "apache-2.0", "non-commercial"
FLUX_NON_COMMERCIAL = "flux-1-dev-non-commercial-license"

_Known = tuple[int | None, str | None]  # size and hash


def _h94(
    stem: str, family: str, encoder: str, preset: str | None, safetensors: _Known | None, pickle: _Known
) -> PublishedAdapter:
    """One of the adapters of the first repository, most of which are there in both formats."""
    path = f"{'models' if family == 'sd1' else 'sdxl_models'}/{stem}"
    files = [PublishedFile(f"{path}.safetensors", *safetensors)] if safetensors else []
    return PublishedAdapter(
        name=stem,
        repository=H94,
        files=(*files, PublishedFile(f"{path}.bin", *pickle)),
        family=family,
        encoder=encoder,
        preset=preset,
        licence=APACHE,
    )


def _faceid(
    stem: str, family: str, preset: str | None, pickle: _Known, *, crop: bool = False, lora: _Known | None = None
) -> PublishedAdapter:
    """One of the face adapters of the second, all of which are pickles."""
    return PublishedAdapter(
        name=stem,
        repository=FACEID,
        files=(PublishedFile(f"{stem}.bin", *pickle),),
        family=family,
        encoder=VIT_H if crop else None,
        face_encoder="buffalo_l",
        preset=preset,
        lora=PublishedFile(f"{stem}_lora.safetensors", *lora) if lora else None,
        licence=NON_COMMERCIAL,
    )


def _one(
    name: str,
    repository: str,
    file: PublishedFile,
    family: str,
    *,
    encoder: str | None = None,
    face_encoder: str | None = None,
    preset: str | None = None,
    licence: str | None = None,
) -> PublishedAdapter:
    return PublishedAdapter(
        name=name,
        repository=repository,
        files=(file,),
        family=family,
        encoder=encoder,
        face_encoder=face_encoder,
        preset=preset,
        licence=licence,
    )


_UNKNOWN: _Known = (None, None)

_GENERAL = (
    _h94(
        "ip-adapter_sd15",
        "sd1",
        VIT_H,
        "STANDARD",
        (44_642_768, "289b45f16d043d0b"),
        (44_642_825, "68e1df30d760f280"),
    ),
    _h94("ip-adapter_sd15_light", "sd1", VIT_H, None, (44_642_768, "0747d08db670535b"), (None, "f71bfbdd937f2eda")),
    _h94("ip-adapter_sd15_light_v11", "sd1", VIT_H, "LIGHT", None, (44_642_977, "350b63a57847c163")),
    _h94("ip-adapter_sd15_vit-G", "sd1", BIG_G, "VIT-G", (46_215_640, "a26f736af07bb341"), (None, "1398e9ae37cb6555")),
    _h94(
        "ip-adapter-plus_sd15",
        "sd1",
        VIT_H,
        "PLUS",
        (98_183_288, "a1c250be40455cc6"),
        (158_033_179, "1cb77fc0613369b6"),  # the projector in single precision
    ),
    _h94(
        "ip-adapter-plus-face_sd15",
        "sd1",
        VIT_H,
        "PLUS FACE",
        (98_183_288, "1c9edc21af6f737d"),
        (98_183_381, "aa09c22b49ef6347"),
    ),
    _h94(
        "ip-adapter-full-face_sd15",
        "sd1",
        VIT_H,
        "FULL FACE",
        (43_592_352, "f4a17fb643bf8762"),
        (43_592_551, "47ec4644114f3bfe"),
    ),
    _h94("ip-adapter_sdxl", "sdxl", BIG_G, "VIT-G", (702_585_376, "ba1002529e783604"), (None, "7525f2731e9e86d1")),
    _h94("ip-adapter_sdxl_vit-h", "sdxl", VIT_H, "STANDARD", (698_391_064, "ebf05d918348aec7"), _UNKNOWN),
    _h94("ip-adapter-plus_sdxl_vit-h", "sdxl", VIT_H, "PLUS", (847_517_512, "3f5062b8400c94b7"), _UNKNOWN),
    _h94("ip-adapter-plus-face_sdxl_vit-h", "sdxl", VIT_H, "PLUS FACE", (847_517_512, "677ad8860204f7d0"), _UNKNOWN),
    _one(
        "ip-composition-adapter_sd15",
        COMPOSITION,
        PublishedFile("ip_plus_composition_sd15.safetensors", 98_183_728, "4a02c9f4d2ade7c0"),
        "sd1",
        encoder=VIT_H,
        preset="COMPOSITION",
        licence=APACHE,
    ),
    _one(
        "ip-composition-adapter_sdxl",
        COMPOSITION,
        PublishedFile("ip_plus_composition_sdxl.safetensors", 847_517_960, "e92dc36cc273bac3"),
        "sdxl",
        encoder=VIT_H,
        preset="COMPOSITION",
        licence=APACHE,
    ),
    PublishedAdapter(
        name="kolors-ip-adapter-plus",
        repository=KOLORS,
        files=(
            PublishedFile("ip_adapter_plus_general.safetensors", revision="refs/pr/4"),  # as diffusers' manual has it
            PublishedFile("ip_adapter_plus_general.bin", 1_013_163_359, "1983c3f927acb2a2"),
        ),
        family="kolors",
        encoder=CLIP_L_336,
        preset="KOLORS",
        licence=APACHE,
    ),
    _one("csgo", CSGO, PublishedFile("csgo.bin"), "sdxl", encoder=BIG_G),
    _one("csgo_4_32", CSGO, PublishedFile("csgo_4_32.bin"), "sdxl", encoder=BIG_G),
    _one(
        "flux-ip-adapter",
        XLABS,
        PublishedFile("ip_adapter.safetensors", 981_760_648, "750f912149b84bbb"),
        "flux",
        encoder=CLIP_L,
        licence=FLUX_NON_COMMERCIAL,
    ),
    _one(
        "flux-ip-adapter-v2",
        XLABS_V2,
        PublishedFile("ip_adapter.safetensors", 1_057_356_424, "8f2bfddaffc4fe2a"),
        "flux",
        encoder=CLIP_L,
        licence=APACHE,  # so the card's header; the base is non-commercial
    ),
    _one(
        "flux.1-dev-ip-adapter",
        INSTANTX_FLUX,
        PublishedFile("ip-adapter.bin", sha256="01aaeb0dace9ea4f"),
        "flux",
        encoder=SIGLIP,
        licence=FLUX_NON_COMMERCIAL,
    ),
    _one(
        "sd3.5-large-ip-adapter",
        INSTANTX_SD3,
        PublishedFile("ip-adapter.bin", sha256="9fe54774aa528e71"),
        "sd3",
        encoder=SIGLIP,
        licence="stabilityai-ai-community",
    ),
)

_LORA_SD1, _LORA_SDXL = 51_059_544, 371_842_896

_FACES = (
    _faceid(
        "ip-adapter-faceid_sd15",
        "sd1",
        "FACEID",
        (96_740_574, "201344e22e6f5584"),
        lora=(_LORA_SD1, "70699f0dbfadd47d"),
    ),
    _faceid(
        "ip-adapter-faceid-plus_sd15",
        "sd1",
        "FACEID PLUS",
        (156_558_503, "252fb53e0d018489"),
        crop=True,
        lora=(_LORA_SD1, "3f00341d11e5e7b5"),
    ),
    _faceid(
        "ip-adapter-faceid-plusv2_sd15",
        "sd1",
        "FACEID PLUS V2",
        (156_558_509, "26d0d86a1d60d6cc"),
        crop=True,
        lora=(_LORA_SD1, "8abff87a15a049f3"),
    ),
    _faceid("ip-adapter-faceid-portrait_sd15", "sd1", None, (64_586_611, "68570f3c14fe125b")),
    _faceid("ip-adapter-faceid-portrait-v11_sd15", "sd1", "FACEID PORTRAIT", (64_586_623, "a48cb4f89ed18e02")),
    _faceid(
        "ip-adapter-faceid_sdxl",
        "sdxl",
        "FACEID",
        (1_071_149_741, "f455fed24e207c87"),
        lora=(_LORA_SDXL, "4fcf93d6e8dc8dd1"),
    ),
    _faceid(
        "ip-adapter-faceid-plusv2_sdxl",
        "sdxl",
        "FACEID PLUS V2",
        (1_487_555_181, "c6945d82b543700c"),
        crop=True,
        lora=(_LORA_SDXL, "f24b4bb2dad6638a"),
    ),
    _faceid("ip-adapter-faceid-portrait_sdxl", "sdxl", "FACEID PORTRAIT", (749_822_515, "5631ce7824cdafd2")),
    _faceid(
        "ip-adapter-faceid-portrait_sdxl_unnorm",
        "sdxl",
        "FACEID PORTRAIT UNNORM",
        (1_009_523_411, "220bb86e205393a3"),
    ),
    _one(
        "instantid-ip-adapter",
        INSTANTID,
        PublishedFile("ip-adapter.bin", 1_691_134_141, "02b3618e36d80378"),
        "sdxl",
        face_encoder="antelopev2",
        licence=APACHE,
    ),
    _one(
        "kolors-ip-adapter-faceid-plus",
        KOLORS_FACEID,
        PublishedFile("ipa-faceid-plus.bin", 2_385_842_603, "8af246ef794e1752"),
        "kolors",
        encoder=CLIP_L_336,
        face_encoder="antelopev2",
        preset="FACEID PLUS KOLORS",
        licence=APACHE,
    ),
    _one("pulid_v1", PULID, PublishedFile("pulid_v1.bin"), "sdxl", face_encoder="antelopev2", licence=APACHE),
    _one(
        "pulid_v1.1",
        PULID,
        PublishedFile("pulid_v1.1.safetensors", 984_405_232, "4cb8ceec1078e016"),
        "sdxl",
        face_encoder="antelopev2",
        licence=APACHE,
    ),
    _one(
        "pulid_flux_v0.9.0",
        PULID,
        PublishedFile("pulid_flux_v0.9.0.safetensors", 1_142_099_520, "14e3c257ae886434"),
        "flux",
        face_encoder="antelopev2",
        licence=APACHE,
    ),
    _one(
        "pulid_flux_v0.9.1",
        PULID,
        PublishedFile("pulid_flux_v0.9.1.safetensors", 1_142_099_520, "92c41c3af322b02e"),
        "flux",
        face_encoder="antelopev2",
        licence=APACHE,
    ),
)

PUBLISHED_ADAPTERS = (*_GENERAL, *_FACES)
