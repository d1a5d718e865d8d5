"""Finding SAM's weights: what folder and name stand for, their hash, and what is refused, in one sentence."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint_folder import CheckpointError
from model.weights import sam
from model.weights.sam import find_sam, is_hub_name, load_sam
from tests.model.weights.small_sam import build_small_sam2, build_small_sam2_video, write_small_sam


@pytest.fixture
def folder(small_sam: Path) -> Path:
    """A small SAM on disk."""
    return small_sam


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_folder_has_a_kind_and_a_hash_of_all_that_counts(folder: Path, copy: Path) -> None:
    found = find_sam(str(folder))
    assert (found.folder, found.revision, found.kind, len(found.sha256)) == (folder, "", "sam", 64)
    (copy / "README.md").write_text("a model card")
    (copy / "pytorch_model.bin").write_bytes(b"the same weights again")
    assert find_sam(str(copy)).sha256 == found.sha256, "neither place nor other files count"
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data + b" ")
        assert find_sam(str(copy)).sha256 != found.sha256, name
        (copy / name).write_bytes(data)


def test_the_network_is_loaded_in_float32_with_the_processor_of_its_size(folder: Path, copy: Path) -> None:
    network, processor = load_sam(find_sam(str(folder)))
    assert not network.training and {each.dtype for each in network.parameters()} == {torch.float32}
    assert processor.pad_size["height"] == 128
    (copy / "preprocessor_config.json").unlink()
    _, processor = load_sam(find_sam(str(copy)))
    assert processor.pad_size["height"] == 128 and processor.size["longest_edge"] == 128


def test_sam_2_is_loaded_also_from_the_form_that_it_is_published_in(tmp_path: Path) -> None:
    sam2 = build_small_sam2()
    plain = write_small_sam(tmp_path / "sam2", sam2)
    published = write_small_sam(tmp_path / "video", build_small_sam2_video(sam2))
    assert json.loads((published / "config.json").read_text())["model_type"] == "sam2_video"
    found = [find_sam(str(folder)) for folder in (plain, published)]
    assert [each.kind for each in found] == ["sam2", "sam2"]
    (network, processor), (other, _) = map(load_sam, found)
    assert type(network).__name__ == type(other).__name__ == "Sam2Model" and processor.size["height"] == 128
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    (plain / "preprocessor_config.json").unlink()
    assert load_sam(find_sam(str(plain)))[1].size["height"] == 128


def test_weights_in_several_files_are_found_by_their_index(folder: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, copy / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    network, _ = load_sam(find_sam(str(copy)))
    expected, _ = load_sam(find_sam(str(folder)))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), expected.parameters(), strict=True))
    index["weight_map"]["more"] = "../other.safetensors"
    for text in (json.dumps(index), "[]", "[" * 100_000, '{"weight_map": {}}'):
        (copy / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match="is no index of weights"):
            find_sam(str(copy))


def drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def another_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "detr"}))


def config_of(text: str) -> Any:
    return lambda folder: (folder / "config.json").write_text(text)


def link_to_nothing(name: str) -> Any:
    return lambda folder: ((folder / name).unlink(), (folder / name).symlink_to(folder / "nothing"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shutil.rmtree, "copy' is not a folder; allowed is a folder of SAM's weights, or the name of a model on the"),
        (drop("config.json"), "copy has no config.json; allowed is a folder as SamModel.save_pretrained writes it"),
        (config_of("{"), "config.json is no configuration of a network: Expecting property name"),
        (config_of("[]"), "config.json is no configuration of a network: it has no model_type"),
        (config_of("[" * 100_000), "config.json is no configuration of a network: maximum recursion depth"),
        (config_of('{"model_type": ["sam"]}'), r"holds a network of the type \['sam'\]; allowed are sam, sam2, sam2_"),
        (link_to_nothing("preprocessor_config.json"), "copy cannot be read: .*preprocessor_config.json"),
        (link_to_nothing("model.safetensors"), "copy cannot be read: .*model.safetensors"),
        (another_type, "holds a network of the type 'detr'; allowed are sam, sam2, sam2_video"),
        (drop("model.safetensors"), "allowed are weights in model.safetensors; it has none"),
        (pickled, "allowed are weights in model.safetensors; it has pytorch_model.bin, which may run code"),
    ],
)
def test_what_is_no_sam_is_refused(change: Any, reason: str, copy: Path) -> None:
    change(copy)
    with pytest.raises(CheckpointError, match=reason):
        find_sam(str(copy))


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"x cannot be read: .*File name too long"):
        find_sam("x" * 300)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert is_hub_name("a/" + "x" * 300), "the hub's client says how long a name may be"


def fewer_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def torn_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def prepared_with(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **changes}))

    return change


def configured_with(part: str, **changes: Any) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, part: {**config[part], **changes}}))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            fewer_tensors,
            "1 tensors of the network are missing or of another shape .*, mask_decoder.iou_token.weight is",
        ),
        (configured_with("vision_config", mlp_dim=32), "3 tensors .* of another shape than config.json says, vision_e"),
        (configured_with("vision_config", num_hidden_layers=0), "has more layers than config.json says, such as visio"),
        (configured_with("prompt_encoder_config", image_embedding_size=9), "cannot be loaded: RuntimeError: .*9"),
        (torn_weights, "copy cannot be loaded: "),
        (prepared_with(pad_size={"height": 1024, "width": 1024}), "prepares images of 1024 x 1024 px for a network of"),
        (prepared_with(pad_size=None), "prepares images of 64 x 128 px for a network of 128 x 128 px"),
        (prepared_with(do_pad=False), "prepares images of 64 x 128 px for a network of 128 x 128 px"),
        (prepared_with(size={"longest_edge": 1024}), "cannot be loaded: ValueError: Padding dimensions are negative"),
        (prepared_with(size={"longest_edge": 64}), "resizes images to 64 px for a network of 128 x 128 px"),
        (prepared_with(image_std=[0, 0, 0]), "prepares images of values that are not finite"),
        (
            prepared_with(do_rescale=False),
            r"prepares images of values up to 1\d{3} for a network that takes some -2 to 3",
        ),
    ],
)
def test_weights_that_are_not_whole_are_refused(change: Any, reason: str, copy: Path) -> None:
    change(copy)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_sam(find_sam(str(copy)))
    assert "\n" not in str(caught.value)


def test_a_name_is_told_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("facebook/sam-vit-base") and is_hub_name("o/sam2.1")
    for place in ("sam", "./sam", "../sam", "/data/sam", "~/sam", "models/sam/base", "s3://bucket/sam", ""):
        assert not is_hub_name(place)
    (tmp_path / "facebook" / "sam-vit-base").mkdir(parents=True)
    assert not is_hub_name("facebook/sam-vit-base"), "a folder of this name is meant"


def test_a_name_is_fetched_at_its_revision_and_pinned_to_the_commit(
    folder: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's client does it, whose cache names a folder by its commit."""
    import huggingface_hub

    commit = "ab" * 20
    snapshot = tmp_path / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(name: str, revision: str | None = None, **more: Any) -> str:
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin", "*")) for pattern in more["allow_patterns"])
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = find_sam("facebook/sam-vit-base", "main")
    assert asked == [("facebook/sam-vit-base", "main")]
    assert (found.revision, found.sha256) == (commit, find_sam(str(folder)).sha256)


def test_weights_in_the_cache_are_taken_without_the_hub_where_they_are_the_run_s(
    folder: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client asks the hub for the files of a cached commit, too, and waits where it is out of reach."""
    import huggingface_hub

    asked: list[bool] = []

    def snapshot_download(name: str, revision: str | None = None, **more: Any) -> str:
        asked.append(more["local_files_only"])
        if more["local_files_only"] and not copy.exists():
            raise FileNotFoundError("not in the cache")
        return str(copy if more["local_files_only"] else folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    sha256 = find_sam(str(folder)).sha256
    assert find_sam("o/sam", "ab" * 20, sha256).folder == copy and asked == [True]
    (copy / "model.safetensors").unlink()  # as where a fetch was interrupted
    assert find_sam("o/sam", "ab" * 20, sha256).folder == folder and asked == [True, True, False]
    (copy / "model.safetensors").write_bytes(b"others")
    assert find_sam("o/sam", "ab" * 20, sha256).folder == folder and asked[-2:] == [True, False]
    shutil.rmtree(copy)
    assert find_sam("o/sam", "ab" * 20, sha256).folder == folder and asked[-2:] == [True, False]


def test_a_name_that_cannot_be_fetched_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(name: str, revision: str | None = None, **more: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError) as caught:
        find_sam("facebook/sam-vit-base", "v1")
    assert str(caught.value) == (
        "facebook/sam-vit-base (revision v1) is no folder here, and cannot be fetched from the Hugging Face hub: "
        "ConnectionError: no route to host"
    )


@pytest.mark.parametrize("name", ["transformers", "huggingface_hub"])
def test_a_missing_extra_is_told(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = find_sam(str(folder))
    real_import = builtins.__import__

    def without(module: str, *args: Any, **more: Any) -> Any:
        if module.split(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(module, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CheckpointError, match=r"not installed here; pip install 'maskfleet\[transformers\]'"):
        load_sam(weights) if name == "transformers" else find_sam("facebook/sam-vit-base")


def test_importing_it_loads_neither_torch_nor_transformers() -> None:
    import subprocess

    code = "import sys, model.weights.sam; assert not {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(sam.__file__).parents[2])
