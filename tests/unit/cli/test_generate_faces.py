"""`imprompt generate` with adapters of faces, parts, variants and LoRA files: by options and by request files."""

import pytest

from imprompt.adapter.checkpoint import save_adapter
from imprompt.cli.words import as_options
from imprompt.encoders.face import FaceEncoder
from imprompt.generation.result import read_provenance
from tests import tiny, tiny_faces

QUICK = ("--steps", "2", "--seed", "3", "-o", "out.png")


@pytest.fixture
def base(tmp_path):
    tiny_faces.pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def person(tmp_path):
    tiny_faces.portrait(1, 2).save(tmp_path / "person.png")
    return tmp_path / "person.png"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of face networks, which a stand-in reads."""
    asked = []
    monkeypatch.setattr(FaceEncoder, "from_folder", lambda path: asked.append(path) or tiny_faces.faces())
    yield tmp_path / "networks"
    assert set(asked) <= {str(tmp_path / "networks")}


def saved(tmp_path, kind="faceid"):
    return save_adapter(tiny_faces.adapter(tiny_faces.host(), kind), tmp_path / f"{kind}.safetensors")


def test_a_face_is_chosen(embedded, run, tmp_path, base, person, folder):
    named = ("--base", base, "--adapter", saved(tmp_path), "--faces", folder)
    told = {}
    for face in ("largest", "0", "1"):
        code, _, err = run("generate", "a cat", "-i", person, *named, "--face", face, *QUICK)
        assert code == 0, err
        told[face] = ((tmp_path / "out.png").read_bytes(), read_provenance(tmp_path / "out.png"))
    assert told["0"][0] != told["1"][0]
    assert told["0"][1]["adapters"][0]["name"] == "tiny-faceid"
    code, _, err = run("generate", "a cat", "-i", person, *named, "--face", "7", *QUICK)
    assert code == 1 and "there is no 7" in err
    code, _, err = run("generate", "a cat", "-i", person, *named, "--face", "left", *QUICK)
    assert code == 1 and "--face must be 'largest'" in err


def test_structure_and_an_encoder_beside_faces(embedded, run, tmp_path, base, person, folder):
    tiny.vision_tower().save_pretrained(tmp_path / "encoder")
    adapter = saved(tmp_path, "faceid-plusv2")
    named = ("--base", base, "--adapter", adapter, "--faces", folder, "--encoder", tmp_path / "encoder")
    made = []
    for structure in ("0", "1"):
        code, _, err = run("generate", "-i", person, *named, "--structure", structure, *QUICK)
        assert code == 0, err
        made.append((tmp_path / "out.png").read_bytes())
    assert made[0] != made[1]


def test_a_request_file_names_the_same(embedded, run, tmp_path, base, person, folder):
    (tmp_path / "shot.toml").write_text(
        f'prompt = "a cat"\nbase = "{base}"\nadapter = "{saved(tmp_path)}"\nfaces = "{folder}"\nguidance = "cfg"\n'
        '[[image_prompts]]\nimage = "person.png"\nface = 1\nstructure = 1\n'
    )
    code, _, err = run("generate", "--request", "shot.toml", *QUICK)
    assert code == 0, err


def test_without_faces_the_option_is_named(embedded, run, tmp_path, base, person):
    code, _, err = run("generate", "-i", person, "--base", base, "--adapter", saved(tmp_path), *QUICK)
    assert code == 1 and "pass --faces FOLDER" in err and "face_encoder" not in err and "features=" not in err


def test_faces_for_an_adapter_that_reads_none(embedded, run, cat, folder):
    code, _, err = run("generate", "-i", cat, "--faces", folder, *QUICK)
    assert code == 1 and "--faces was given" in err


def test_what_is_said_of_an_adapter_wants_one(embedded, run, cat):
    for option in ("--part", "--variant", "--lora"):
        code, _, err = run("generate", "-i", cat, option, "x", *QUICK)
        assert code == 1 and f"{option} says something of an --adapter" in err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--lora", "none.safetensors", "none.safetensors"),
        ("--part", "style", "holds one adapter, and so no --part style; leave it out"),
        ("--variant", "nothing", "no published adapter is called 'nothing'"),
        ("--variant", "ip-adapter_sd15", "says 'tiny-faceid'; leave --variant out"),
    ],
)
def test_what_is_said_of_an_adapter_has_to_be_true(embedded, run, tmp_path, base, person, option, value, words):
    named = ("--base", base, "--adapter", saved(tmp_path))
    code, _, err = run("generate", "-i", person, *named, option, value, *QUICK)
    assert code == 1 and words in err and "Traceback" not in err and err.count("Error: ") < 2
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Pass image_encoder='a/b:c'.", "Pass --encoder a/b:c."),
        ("it holds two; pass part='content' or another", "it holds two; pass --part content or another"),
        ("pass guidance='cfg' to attach where it does", "pass --guidance cfg where it does"),
        ("pass variant= to say which", "pass --variant to say which"),
        ("pass image_encoder= to attach", "pass --encoder"),
        ("Pass face_encoder= with ArcFace.", "Pass --faces with ArcFace."),
    ],
)
def test_arguments_become_options(message, words):
    assert as_options(message) == words
