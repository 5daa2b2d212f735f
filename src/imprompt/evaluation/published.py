"""Published figures, to stand beside one's own: never to be compared across networks, scales or numbers of pictures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table.

    Attributes:
        method: as the paper names it.
        num_parameters: trained ones, in millions.
        clip_t: on CLIPScore's scale, 2.5 times the cosine.
        clip_i: cosine.
    """

    method: str
    num_parameters: int
    clip_t: float
    clip_i: float


COCO_SOURCE = "arXiv 2308.06721, table 1: CLIP ViT-L/14, 5,000 pictures of COCO 2017 validation, four of each"
COCO = (
    PublishedRow("Open unCLIP", 893, 0.608, 0.858),
    PublishedRow("Kandinsky-2-1", 1229, 0.599, 0.855),
    PublishedRow("Versatile Diffusion", 860, 0.587, 0.830),
    PublishedRow("SD Image Variations", 860, 0.548, 0.760),
    PublishedRow("SD unCLIP", 870, 0.584, 0.810),
    PublishedRow("Uni-ControlNet (Global Control)", 47, 0.506, 0.736),
    PublishedRow("T2I-Adapter (Style)", 39, 0.485, 0.648),
    PublishedRow("ControlNet Shuffle", 361, 0.421, 0.616),
    PublishedRow("IP-Adapter", 22, 0.588, 0.828),
)
