"""Small SAMs with random weights, saved to disk as transformers saves the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGE_SIDE = 128  # of the network's input; its masks are a quarter of it
# Of both networks.
PROMPT = {"hidden_size": 16, "image_size": IMAGE_SIDE, "patch_size": 16, "mask_input_channels": 4}
DECODER = {
    "hidden_size": 16,
    "mlp_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
}


def build_small_sam(seed: int = 0) -> Any:
    """A SamModel whose random masks depend on image and box, and have logits of some size."""
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    vision = hf.SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=16,
        window_size=4,
        global_attn_indexes=[0],
        num_pos_feats=8,
        mlp_dim=16,
        initializer_range=0.5,
    )
    prompt = hf.SamPromptEncoderConfig(**PROMPT)
    decoder = hf.SamMaskDecoderConfig(**DECODER)
    network = hf.SamModel(hf.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    return _with_wide_weights(network)


def build_small_sam2(seed: int = 0) -> Any:
    """A Sam2Model likewise."""
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    body = hf.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[IMAGE_SIDE, IMAGE_SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
    )
    sides = [IMAGE_SIDE // 4, IMAGE_SIDE // 8, IMAGE_SIDE // 16]
    vision = hf.Sam2VisionConfig(
        backbone_config=body,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[side, side] for side in sides],
        fpn_hidden_size=16,
    )
    prompt = hf.Sam2PromptEncoderConfig(**PROMPT)
    decoder = hf.Sam2MaskDecoderConfig(**DECODER)
    network = hf.Sam2Model(
        hf.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )
    return _with_wide_weights(network)


def build_small_sam2_video(sam2: Any) -> Any:
    """A Sam2VideoModel, the form that SAM 2 is published in, with the parts of a small Sam2Model and a memory."""
    import transformers as hf

    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    config = hf.Sam2VideoConfig(
        **{part: getattr(sam2.config, part).to_dict() for part in parts},
        image_size=IMAGE_SIDE,
        memory_attention_hidden_size=16,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_encoder_hidden_size=16,
        memory_encoder_output_channels=8,
        mask_downsampler_embed_dim=16,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=16,
        memory_fuser_intermediate_dim=16,
    )
    network = hf.Sam2VideoModel(config)
    network.load_state_dict(sam2.state_dict(), strict=False)
    return network.eval()


def _with_wide_weights(network: Any) -> Any:
    """With weights wide enough that masks have outlines: transformers' own random ones give logits of nearly 0."""
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return network.eval()


def processor_of(network: Any) -> Any:
    """The processor of images for a small network."""
    import transformers as hf

    square = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    if network.config.model_type == "sam":
        return hf.SamImageProcessor(size={"longest_edge": IMAGE_SIDE}, pad_size=square)
    return hf.Sam2ImageProcessor(size=square)


def write_small_sam(folder: Path, network: Any) -> Path:
    """Saves a small network and its processor into a folder, which is made; returns it."""
    network.save_pretrained(folder)
    processor_of(network).save_pretrained(folder)
    return folder
