"""The step of the published training scripts, said again: what they compute and in which order, in our own words.

Source of the facts: tencent-ailab/IP-Adapter 62e4af9, `tutorial_train.py` and `tutorial_train_sdxl.py`. At every step
the autoencoder, the image encoder and the text encoders run; the UNet stays in single precision and computes under
autocast; it is registered in the module that accelerate wraps; losses of all processes are gathered and read before
the backward pass; a line is printed. Pictures are decoded and texts are tokenised before, in the data loader.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from step_models import Models
from torch import Tensor, nn
from torch.nn import functional

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-2


@dataclass(frozen=True)
class OfficialBatch:
    """What their data loader gives, on the CPU.

    Attributes:
        images: Pictures in [-1, 1].
        clip_images: The same as the image encoder wants them.
        token_ids: Of each text encoder.
        dropped: Whose image is dropped.
        sizes: Original size, crop and target size, which SDXL reads.
        noise: For a comparison; None draws it.
        timesteps: Likewise.
    """

    images: Tensor
    clip_images: Tensor
    token_ids: tuple[Tensor, ...]
    dropped: Tensor
    sizes: Tensor
    noise: Tensor | None = None
    timesteps: Tensor | None = None

    def drawn_anew(self) -> "OfficialBatch":
        """The same pictures and texts, with noise that the step draws."""
        return replace(self, noise=None, timesteps=None)


class Attention(nn.Module):
    """Attention of one place; across texts with keys and values of its own for the image tokens at their end."""

    def __init__(self, width: int = 0, cross_width: int = 0, num_tokens: int = 4) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        if cross_width:
            self.to_k_ip = nn.Linear(cross_width, width, bias=False)
            self.to_v_ip = nn.Linear(cross_width, width, bias=False)

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """What is attended to."""
        assert attention_mask is None and temb is None
        query = attn.to_q(hidden_states)
        if encoder_hidden_states is None:
            found = _attend(attn, query, attn.to_k(hidden_states), attn.to_v(hidden_states))
        else:
            text, image = encoder_hidden_states.tensor_split((-self.num_tokens,), dim=1)
            found = _attend(attn, query, attn.to_k(text), attn.to_v(text))
            found = found + scale * _attend(attn, query, self.to_k_ip(image), self.to_v_ip(image))
        return attn.to_out[1](attn.to_out[0](found))


def _attend(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2).to(query.dtype)


class Projection(nn.Module):
    """An image embedding to image tokens."""

    def __init__(self, feature_width: int, width: int, num_tokens: int = 4) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = nn.Linear(feature_width, num_tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embeds: Tensor) -> Tensor:
        """Tokens of each embedding."""
        return self.norm(self.proj(embeds).unflatten(-1, (self.num_tokens, -1)))


class OfficialAdapter(nn.Module):
    """Everything in one module, the frozen UNet too."""

    def __init__(self, unet: Any, feature_width: int) -> None:
        super().__init__()
        self.unet = unet
        self.image_proj_model = Projection(feature_width, unet.config.cross_attention_dim)
        places = {name.removesuffix(".processor"): name for name in unet.attn_processors}
        unet.set_attn_processor({name: _attention(unet.get_submodule(place)) for place, name in places.items()})
        self.adapter_modules = nn.ModuleList(unet.attn_processors.values())

    def forward(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, embeds: Tensor, added: dict[str, Tensor] | None
    ) -> Tensor:
        """What the UNet predicts."""
        context = torch.cat([text, self.image_proj_model(embeds)], dim=1)
        return self.unet(noisy, timesteps, context, added_cond_kwargs=added).sample

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters that move."""
        return chain(self.image_proj_model.parameters(), self.adapter_modules.parameters())


def _attention(attn: Any) -> Attention:
    if not attn.is_cross_attention:
        return Attention()
    return Attention(attn.to_q.out_features, attn.to_k.in_features).to(attn.to_k.weight.device)


class OfficialStep:
    """Their training step."""

    def __init__(self, models: Models, device: torch.device, precision: str, log: TextIO) -> None:
        """Take over models in single precision.

        Args:
            models: Their parts are converted in place, all but the UNet.
            device: Where to compute.
            precision: Of accelerate: "no", or "bf16".
            log: Where lines are printed.
        """
        AcceleratorState._reset_state()  # an earlier one may have had another precision
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
        self.format = torch.bfloat16 if precision == "bf16" else torch.float32
        self.models, self.device, self.log = models, device, log
        for part in (models.vision, *models.texts):
            part.to(device, self.format)
        models.vae.to(device, torch.float32 if self.is_xl else self.format)
        adapter = OfficialAdapter(models.unet, models.vision.config.projection_dim).to(device)
        optimizer = torch.optim.AdamW(adapter.trained(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.adapter: Any
        self.adapter, self.optimizer = self.accelerator.prepare(adapter, optimizer)
        self.step = 0

    @property
    def is_xl(self) -> bool:
        """Whether it is the script for SDXL, which keeps the autoencoder in single precision."""
        return len(self.models.texts) == 2

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take an adapter in the published layout, which numbers attentions as the UNet does."""
        adapter = self.accelerator.unwrap_model(self.adapter)
        parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, value in weights.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        adapter.image_proj_model.load_state_dict(parts["image_proj"])
        adapter.adapter_modules.load_state_dict(parts["ip_adapter"])

    @torch.no_grad()
    def encode_images(self, images: Tensor, *, is_drawn: bool = True) -> Tensor:
        """Latents of pictures, drawn from what the autoencoder tells of each, or their mean."""
        vae = self.models.vae
        found = vae.encode(images.to(self.device, vae.dtype)).latent_dist
        return ((found.sample() if is_drawn else found.mode()) * vae.config.scaling_factor).to(self.format)

    @torch.no_grad()
    def look(self, clip_images: Tensor) -> Tensor:
        """Image embeddings."""
        return self.models.vision(clip_images.to(self.device, self.format)).image_embeds

    @torch.no_grad()
    def read(self, token_ids: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Text states, and the pooled text of SDXL."""
        ids = [each.to(self.device) for each in token_ids]
        if not self.is_xl:
            return self.models.texts[0](ids[0])[0], None
        first, second = (
            encoder(each, output_hidden_states=True) for encoder, each in zip(self.models.texts, ids, strict=True)
        )
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second[0]

    def __call__(self, batch: OfficialBatch) -> float:
        """One step; its loss."""
        with self.accelerator.accumulate(self.adapter):
            loss = self.loss(batch)
            losses: Any = self.accelerator.gather(loss.repeat(len(batch.images)))
            mean = losses.mean().item()
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        print(f"Epoch 0, step {self.step}, step_loss: {mean}", file=self.log)
        self.step += 1
        return mean

    def loss(self, batch: OfficialBatch) -> Tensor:
        """The loss of a batch, everything computed anew."""
        latents = self.encode_images(batch.images, is_drawn=batch.noise is None)
        given = batch.noise
        noise = torch.randn_like(latents) if given is None else given.to(latents)
        timesteps = batch.timesteps
        if timesteps is None:
            timesteps = torch.randint(0, 1000, (len(latents),), device=self.device)
        timesteps: Any = timesteps.to(self.device).long()
        noisy = self.models.scheduler.add_noise(latents, noise, timesteps)
        embeds = self.look(batch.clip_images)
        rows = zip(embeds, batch.dropped.tolist(), strict=True)
        embeds = torch.stack([torch.zeros_like(row) if is_dropped else row for row, is_dropped in rows])
        text, pooled = self.read(batch.token_ids)
        added = None
        if pooled is not None:
            added = {"text_embeds": pooled, "time_ids": batch.sizes.to(self.device, self.format)}
        predicted = self.adapter(noisy, timesteps, text, embeds, added)
        return functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
