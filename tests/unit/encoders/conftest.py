"""A CLIP vision tower of a few thousand weights."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


@pytest.fixture
def tower() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=12,
    )
    torch.manual_seed(0)
    return CLIPVisionModelWithProjection(config)
