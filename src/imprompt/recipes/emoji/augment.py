"""Small changes of a picture that keep its subject, style and colours: shifts and mirror images."""

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from imprompt.recipes.emoji.dataset import EmojiPictures

DIRECTED = ("clock", "watch", "calendar", "keyboard", "abacus", "book", "newspaper", "scroll", "input", "sign", "ATM")
"""Subjects with a word of these in their label carry writing or a reading direction and are never mirrored."""


def to_tensor(pictures: EmojiPictures) -> UInt8[Tensor, "pictures 3 height width"]:
    """All pictures, channels first."""
    return torch.from_numpy(pictures.images).permute(0, 3, 1, 2).contiguous()


def may_mirror(pictures: EmojiPictures) -> Bool[Tensor, " pictures"]:
    """Which pictures stay sensible in the mirror."""
    labels = (pictures.subject_of(index).label for index in range(len(pictures.images)))
    return torch.tensor([not any(word in label for word in DIRECTED) for label in labels])


def normalise(images: UInt8[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """Bytes to [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def mirror(images: Tensor, chosen: Bool[Tensor, " batch"]) -> Tensor:
    """Chosen pictures turned left to right."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def shift(images: UInt8[Tensor, "batch 3 height width"], offsets: Int[Tensor, "batch 2"]) -> Tensor:
    """Pictures moved by (down, right) pixels; white comes in at the border."""
    reach = int(offsets.abs().max())
    if reach == 0:
        return images
    height, width = images.shape[-2:]
    padded = functional.pad(images, (reach,) * 4, value=255)
    starts = (reach - offsets).tolist()
    pairs = zip(padded, starts, strict=True)
    return torch.stack([picture[:, top : top + height, left : left + width] for picture, (top, left) in pairs])


def draw_mirrored(mirrorable: Bool[Tensor, " batch"], chance: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Half of the pictures that may be mirrored, as uniform numbers decide."""
    return (chance < 0.5) & mirrorable


def draw_offsets(num_pictures: int, reach: int, generator: torch.Generator) -> Int[Tensor, "batch 2"]:
    """Random (down, right) shifts of up to `reach` pixels."""
    return torch.randint(-reach, reach + 1, (num_pictures, 2), generator=generator)


def draw_colour_orders(num_pictures: int, probability: float, generator: torch.Generator) -> Int[Tensor, "batch 3"]:
    """Order of the colour channels of each picture: as it is, or with the given probability a random one."""
    orders = torch.rand(num_pictures, 3, generator=generator).argsort(dim=1)
    is_kept = torch.rand(num_pictures, 1, generator=generator) >= probability
    return torch.where(is_kept, torch.arange(3), orders)


def reorder_colours(images: Tensor, orders: Int[Tensor, "batch 3"]) -> Tensor:
    """Pictures with their colour channels exchanged, which makes rare hues as common as others."""
    return images[torch.arange(len(images))[:, None], orders]
