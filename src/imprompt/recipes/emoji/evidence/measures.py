"""What is measured of pictures, by plain arithmetic: one value a picture, from which intervals are made.

Features are those of a judge and centred, so that what all pictures share counts for nothing.
"""

from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from imprompt.emoji.conditions import colour_cells, edge_maps

_BLUR = 4
"""Side in pixels of the squares over which edges are averaged before they are compared."""


def edge_correlations(
    pictures: UInt8[Tensor, "pictures 3 height width"], wanted: UInt8[Tensor, "pictures channels height width"]
) -> Float[Tensor, " pictures"]:
    """Correlation of the edges of pictures with the edges they should have, both a little blurred; at most 1.

    Args:
        pictures: What is judged; a picture without any edge gets 0.
        wanted: Edge maps, as the ControlNet takes them; the first channel is read.
    """
    maps = (edge_maps(pictures), wanted[:, :1])
    ours, theirs = (functional.avg_pool2d(part.float(), _BLUR).flatten(1) for part in maps)
    ours, theirs = (part - part.mean(dim=1, keepdim=True) for part in (ours, theirs))
    return functional.cosine_similarity(ours, theirs)


def colour_errors(
    pictures: UInt8[Tensor, "pictures 3 height width"], wanted: UInt8[Tensor, "pictures 3 height width"]
) -> Float[Tensor, " pictures"]:
    """Mean distance of the 4 x 4 cells' colours from those they should have, of a range of 1.

    Args:
        pictures: What is judged.
        wanted: Pictures, or colour grids as the T2I-Adapter takes them, whose cells have the colours to reach.
    """
    return (colour_cells(pictures).float() - colour_cells(wanted).float()).abs().mean(dim=(1, 2, 3)) / 255


def likenesses(
    pictures: Float[Tensor, "pictures width"], references: Float[Tensor, "pictures width"]
) -> Float[Tensor, " pictures"]:
    """How much more alike (in cosine) each picture is to its own reference than to the others on average; 0 is chance.

    Args:
        pictures: Centred features of what is judged.
        references: Centred features of what each should resemble, in the same order; two or more.
    """
    cosines = functional.normalize(pictures, dim=1) @ functional.normalize(references, dim=1).T
    own = cosines.diagonal()
    return own - (cosines.sum(dim=1) - own) / (len(references) - 1)


def diversities(seeds: Float[Tensor, "seeds pictures width"]) -> Float[Tensor, " pictures"]:
    """Mean distance (1 less the cosine) between the pictures that different seeds give of each reference.

    Args:
        seeds: Centred features of the pictures of each seed, of the same references in the same order; two or more.
    """
    normal = functional.normalize(seeds, dim=2).transpose(0, 1)
    cosines = normal @ normal.transpose(1, 2)
    num_seeds = len(seeds)
    others = cosines.sum(dim=(1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(dim=1)
    return 1 - others / (num_seeds * (num_seeds - 1))
