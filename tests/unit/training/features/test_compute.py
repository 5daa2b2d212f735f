"""Features are what encoding them directly gives, however often the computation was killed, split or repeated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from imprompt.encoders.face import FaceEncoder
from imprompt.encoders.vision import VisionEncoder
from imprompt.training.config import DataConfig
from imprompt.training.data.buckets import plan_buckets, view_of
from imprompt.training.data.manifest import Manifest, write_manifest
from imprompt.training.errors import DataError
from imprompt.training.features.autoencoder import encode_latents
from imprompt.training.features.compute import compute_features
from imprompt.training.features.latents import LatentsJob
from imprompt.training.features.pictures import FaceJob, PictureJob
from imprompt.training.features.store import FeatureStore
from imprompt.training.features.texts import TextJob
from imprompt.training.features.work import ComputeOptions
from tests import tiny, tiny_faces

OPTIONS = ComputeOptions(batch_size=4, num_threads=2, device="cpu", shard_size=4)
DATA = DataConfig(resolution=32, bucket_step=8, num_views=2, mirror=True)


def stored(manifest: Manifest, job: Any, root: Path, **options: Any) -> FeatureStore:
    return FeatureStore.open(compute_features(manifest, job, root, options=replace(OPTIONS, **options)).folder)


def view_numbers(count: int, view: int = 0) -> Tensor:
    return torch.full((count,), view)


def test_latents_are_those_of_the_autoencoder_in_every_bucket_and_view(
    manifest: Manifest, base: Path, tmp_path: Path
) -> None:
    store = stored(manifest, LatentsJob(base / "vae", DATA, storage="float32"), tmp_path)
    buckets = plan_buckets(manifest.sizes, DATA)
    vae = tiny.autoencoder()
    assert len(buckets.shapes) == 3
    for number in range(len(manifest)):
        for view in (0, 1):
            pixels, _ = view_of(manifest.image(number), buckets.shape_of(number), view, mirror=True)
            with torch.no_grad():
                latents = vae.encode(pixels[None] / 127.5 - 1).latent_dist.mode() * vae.config["scaling_factor"]
            torch.testing.assert_close(store.rows(torch.tensor([view]), torch.tensor([number])), latents)


def test_float16_costs_a_thousandth(manifest: Manifest, base: Path, tmp_path: Path) -> None:
    exact = stored(manifest, LatentsJob(base / "vae", DATA, storage="float32"), tmp_path)
    half = stored(manifest, LatentsJob(base / "vae", DATA), tmp_path)
    assert half.spec.dtype == "float16" and half.folder != exact.folder
    for number in range(3):
        rows = [store.rows(view_numbers(1), torch.tensor([number])) for store in (half, exact)]
        torch.testing.assert_close(*rows, rtol=2**-11, atol=2**-24)


def test_pooled_features_are_those_of_the_encoder_and_of_mirror_images(
    manifest: Manifest, base: Path, tmp_path: Path
) -> None:
    job = PictureJob("image_embeds", base / "image_encoder", storage="float32", mirror=True)
    store = stored(manifest, job, tmp_path)
    encoder = VisionEncoder.from_folder(base / "image_encoder")
    images = [manifest.image(number) for number in range(len(manifest))]
    every = torch.arange(len(manifest))
    for view, pictures in enumerate((images, [ImageOps.mirror(image) for image in images])):
        expected = encoder.encode(pictures, layer="image_embeds")
        torch.testing.assert_close(store.rows(view_numbers(len(manifest), view), every), expected)
    torch.testing.assert_close(store.null, encoder.encode_null(layer="image_embeds"))


def test_hidden_states_in_eight_bits_are_half_a_step_away(manifest: Manifest, base: Path, tmp_path: Path) -> None:
    job = PictureJob("hidden_states", base / "image_encoder", index=-2, storage="int8")
    store = stored(manifest, job, tmp_path)
    encoder = VisionEncoder.from_folder(base / "image_encoder")
    exact = encoder.encode([manifest.image(number) for number in range(5)], layer="hidden_states", index=-2)
    found = store.rows(view_numbers(5), torch.arange(5))
    bound = exact.abs().amax(dim=-1, keepdim=True) / 127 * 0.502 + 1e-5  # rounding of batches of another size
    assert bool(((found - exact).abs() <= bound).all())
    torch.testing.assert_close(store.null, encoder.encode_null(layer="hidden_states", index=-2))


def test_texts_are_those_of_the_pipeline(manifest: Manifest, base: Path, tmp_path: Path) -> None:
    store = stored(manifest, TextJob(base, template="see {caption}", storage="float32"), tmp_path)
    expected, _ = tiny.pipeline().encode_prompt(["see a picture of 5", "see a picture of 2"], "cpu", 1, False)
    torch.testing.assert_close(store.rows(view_numbers(2), torch.tensor([5, 2])), expected)
    torch.testing.assert_close(store.null, tiny.pipeline().encode_prompt("", "cpu", 1, False)[0])


def test_face_embeddings_come_from_the_files_that_the_data_names(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        tiny.picture(seed=number).save(tmp_path / f"{number}.png")
        torch.save(torch.full((512,), float(number + 1)), tmp_path / f"{number}.bin")
        names.append({"image_file": f"{number}.png", "text": "a face", "id_embed_file": f"{number}.bin"})
    del names[1]["id_embed_file"]
    (tmp_path / "faces.json").write_text(json.dumps(names))
    manifest = write_manifest(tmp_path / "faces.json", tmp_path / "manifest.parquet")
    store = stored(manifest, FaceJob(), tmp_path, bad_samples=0.5)
    assert store.available.tolist() == [True, False, True]
    assert store.rows(view_numbers(2), torch.tensor([2, 0]))[:, 0].tolist() == [3.0, 1.0]
    assert store.null.abs().sum() == 0
    torch.save(torch.full((512,), 9.0), tmp_path / "0.bin")
    assert stored(manifest, FaceJob(), tmp_path, bad_samples=0.5).rows(view_numbers(1), torch.tensor([0]))[0, 0] == 9


@pytest.fixture
def broken(tmp_path: Path) -> Manifest:
    """Nine pictures, the fifth of which is cut short after it was listed."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(9):
        tiny.picture(seed=number).save(folder / f"{number}.png")
    manifest = write_manifest(folder, tmp_path / "broken.parquet")
    content = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(content[: len(content) // 2])
    return manifest


def test_what_cannot_be_read_is_a_hole_that_is_told_and_mended(broken: Manifest, base: Path, tmp_path: Path) -> None:
    job = PictureJob("image_embeds", base / "image_encoder")
    with pytest.raises(DataError, match=r"1 of 9 samples cannot be used, and 1.0% may be lost"):
        stored(broken, job, tmp_path)
    loose = replace(OPTIONS, bad_samples=0.2)
    computed = compute_features(broken, job, tmp_path, options=loose)
    store = FeatureStore.open(computed.folder)
    assert (~store.available).nonzero().flatten().tolist() == [4]
    assert list(computed.holes) == [broken.sample_id(4)]
    tiny.picture(seed=4).save(broken.root / "4.png")
    again = compute_features(broken, job, tmp_path, options=loose)
    assert again.num_computed == 0 and again.holes
    mended = compute_features(broken, job, tmp_path, options=replace(OPTIONS, retry=True))
    assert mended.num_computed == 1 and not mended.holes
    assert bool(FeatureStore.open(mended.folder).available.all())


def test_float16_that_overflows_falls_back_to_float32(manifest: Manifest, base: Path, tmp_path: Path) -> None:
    """SDXL's autoencoder exceeds float16 inside and ends within it; so does one with a layer that is too large."""
    vae = tiny.autoencoder()
    with torch.no_grad():
        vae.encoder.conv_out.weight.mul_(1e5)
        vae.encoder.conv_out.bias.mul_(1e5)
        vae.quant_conv.weight.mul_(1e-4)
    exact = encode_latents(vae, pixels := tiny.rand(2, 3, 32, 32))
    half = nn.Module.half(vae)
    with torch.no_grad():
        assert not half.encode(pixels.half()).latent_dist.mode().isfinite().all()
    torch.testing.assert_close(encode_latents(half, pixels), exact, rtol=0.02, atol=0.02)
    assert half.dtype == torch.float16


def test_pictures_that_are_references_only_have_no_latents(base: Path, tmp_path: Path) -> None:
    for number in range(3):
        tiny.picture(seed=number).save(tmp_path / f"{number}.png")
    rows = [{"image_file": "0.png", "text": "a", "face_image_file": "2.png"}, {"image_file": "1.png", "text": "b"}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    manifest = write_manifest(tmp_path / "data.json", tmp_path / "manifest.parquet")
    computed = compute_features(manifest, LatentsJob(base / "vae", DATA), tmp_path, options=OPTIONS)
    references = manifest.split("reference").tolist()
    assert len(references) == 1 and not computed.holes
    assert (~FeatureStore.open(computed.folder).available).nonzero().flatten().tolist() == references


def test_faces_are_found_embedded_and_cut_out(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_folder(folder: Path, **options: Any) -> FaceEncoder:
        return tiny_faces.faces(**options)

    monkeypatch.setattr(FaceEncoder, "from_folder", from_folder)
    (folder := tmp_path / "people").mkdir()
    for number in range(3):
        tiny_faces.portrait(number + 1).save(folder / f"{number}.png")
    Image.new("RGB", (64, 64), "white").save(folder / "3.png")
    manifest = write_manifest(folder, tmp_path / "people.parquet")
    images, every = [manifest.image(number) for number in range(3)], torch.arange(3)

    store = stored(manifest, FaceJob(faces=tmp_path), tmp_path, bad_samples=0.5)
    assert store.available.tolist() == [True, True, True, False]
    torch.testing.assert_close(store.rows(view_numbers(3), every), tiny_faces.faces().encode(images))
    raw = stored(manifest, FaceJob(faces=tmp_path, normalised=False), tmp_path, bad_samples=0.5)
    torch.testing.assert_close(raw.rows(view_numbers(3), every), tiny_faces.faces(normalised=False).encode(images))

    crops = PictureJob("hidden_states", base / "image_encoder", storage="float32", faces=tmp_path)
    found = stored(manifest, crops, tmp_path, bad_samples=0.5).rows(view_numbers(3), every)
    encoder = VisionEncoder.from_folder(base / "image_encoder")
    expected = encoder.encode(tiny_faces.faces().crops(images, 224), layer="hidden_states")
    torch.testing.assert_close(found, expected)
