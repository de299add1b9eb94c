"""Models whose config has no ``use_cache`` of its own, or that read something else than one row of tokens.

Of images and text, where the text's config has it; encoders of images, videos and sounds, where none has; and
MusicGen, of which several rows of tokens are one sound.
"""

import pytest
import torch
import transformers
from models import differing, encoder_of_sounds, tokens
from recurrence import Recurrence

from revstep import UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf._auto import UNMEASURED

IMAGE = 94
TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
SEES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 14,
}


def llava(layers=2, **text):
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**TEXT | text),
            vision_config=transformers.CLIPVisionConfig(**SEES | {"num_hidden_layers": layers}),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
        )
    )


def vit(**options):
    labels = {"num_labels": 3, "problem_type": "single_label_classification"}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SEES | labels | options))


def speech(kind, head="ForCTC", **options):
    """A pre-norm encoder of sounds, as the large ones are, behind two convolutions."""
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    kept = {"layerdrop": 0.0, "apply_spec_augment": False, "do_stable_layer_norm": True}
    dropout = dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout", "feat_proj_dropout"),
        0.0,
    )
    sizes = {n: SEES[n] for n in ("hidden_size", "num_attention_heads", "intermediate_size")}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, **convolutions, **positions, **kept, **dropout, num_hidden_layers=4, vocab_size=32,
        num_feat_extract_layers=2, **options,
    )  # fmt: skip
    return getattr(transformers, f"{kind}{head}")(config)


def heard():
    torch.manual_seed(5)
    labels = torch.randint(1, 32, (2, 6))
    return {"input_values": torch.randn(2, 400), "labels": labels}


def ast():
    sizes = {
        n: SEES[n] for n in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    config = transformers.ASTConfig(
        **sizes, num_mel_bins=32, max_length=48, num_labels=3, problem_type="single_label_classification"
    )
    return transformers.ASTForAudioClassification(config)


def spectrograms():
    torch.manual_seed(5)
    return {"input_values": torch.randn(2, 48, 32), "labels": torch.tensor([0, 2])}


def videomae():
    sizes = SEES | {"num_frames": 4, "num_labels": 3, "problem_type": "single_label_classification"}
    return transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**sizes))


def filmed():
    torch.manual_seed(5)
    return {"pixel_values": torch.randn(2, 4, 3, 28, 28), "labels": torch.tensor([0, 2])}


def musicgen():
    config = transformers.MusicgenDecoderConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=48,
        num_codebooks=3, dropout=0.0, pad_token_id=90, bos_token_id=90,
    )  # fmt: skip
    return transformers.MusicgenForCausalLM(config)


def sung():
    """Two sounds of three codebooks each."""
    ids = torch.randint(0, 88, (6, 12), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "labels": ids.view(2, 3, 12).transpose(1, 2), "use_cache": False}


def whispered():
    torch.manual_seed(5)
    return {"input_features": torch.randn(2, 8, 40), "labels": torch.tensor([0, 2])}


def t5():
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 4, "num_heads": 4}
    config = transformers.T5Config(vocab_size=96, **sizes, dropout_rate=0.0, num_labels=3)
    return transformers.T5ForTokenClassification(config)


def marked():
    return {"input_ids": tokens(), "labels": tokens() % 3}


def images(**options):
    torch.manual_seed(5)
    return {"pixel_values": torch.randn(2, options.get("channels", 3), *options.get("size", (28, 28)))}


def pictured():
    """A picture of four patches after the first token of each row."""
    ids = tokens().clamp(max=IMAGE - 1)
    ids[:, 1:5] = IMAGE
    return images() | {"input_ids": ids, "labels": ids.masked_fill(ids == IMAGE, -100)}


def classified(**options):
    return images(**options) | {"labels": torch.tensor([0, 2])}


#: The model, a batch, its options for a second one.
MODELS = {
    "Llava": (llava, pictured),
    "Llava, as many layers of each": (lambda: llava(layers=4), pictured),
    "Llava without a picture": (
        llava,
        lambda: {"input_ids": tokens().clamp(max=IMAGE - 1), "labels": tokens()},
    ),
    "ViT": (vit, classified),
    "ViT, wide images of one channel": (
        lambda: vit(image_size=(28, 42), num_channels=1),
        lambda: classified(size=(28, 42), channels=1),
    ),
    "Wav2Vec2": (lambda: speech("Wav2Vec2"), heard),
    "HuBERT": (lambda: speech("Hubert"), heard),
    "WavLM, whose first layer gives the others its positions": (lambda: speech("WavLM"), heard),
    "AST": (ast, spectrograms),
    "Whisper's encoder": (encoder_of_sounds, whispered),
    "T5's encoder, whose first layer gives the others its positions": (t5, marked),
    "VideoMAE": (videomae, filmed),
    "MusicGen": (musicgen, sung),
}


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    made = MODELS[name][0]()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return made.to(dtype).eval()


def trained(module, name):
    module.train().zero_grad(set_to_none=True)
    batch = MODELS[name][1]()
    batch |= {n: v.to(module.dtype) for n, v in batch.items() if getattr(v, "dtype", None) == torch.float32}
    loss = module(**batch).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    made = hf.convert(make(name), "blend:c=0.25", say=None)
    rebuilt, layers = trained(made, name), len(hf.conversion(made).layers)
    assert hf.conversion(made).report.exact and hf.conversion(made).report.matched == layers
    assert (
        differing(rebuilt, trained(hf.convert(make(name), "blend:c=0.25", keep=layers, say=None), name)) == []
    )
    plain = make(name, torch.float64)
    Recurrence(decoder_layers(plain)[1], "blend:c=0.25")
    expected = trained(plain, name)
    whole = torch.cat([g.flatten() for n, g in expected.items() if n != "loss"]).norm()
    # The grid is 2^-20; float32 rounds to 2^-24 of each of about a hundred terms.
    for n, g in expected.items():
        assert (rebuilt[n] - g).norm() <= 2e-3 * g.norm() + 1e-6 * whole, n
    unlike = trained(make(name, torch.float64), name)
    apart = max(float((unlike[n] - g).norm() / g.norm().clamp_min(1e-9)) for n, g in expected.items())
    assert apart > 1e-2, "the recurrence is another network"


@pytest.mark.parametrize("name", MODELS)
def test_reverted(name):
    plain = make(name)
    made = hf.revert(hf.convert(make(name), "blend:c=0.25", say=None))
    assert made.config.to_dict() == plain.config.to_dict()
    assert all("forward" not in m.__dict__ for m in made.modules())
    assert differing(trained(made, name), trained(plain, name)) == []


@pytest.mark.parametrize("name", ["Llava", "ViT", "Wav2Vec2", "MusicGen"])
def test_saved_and_loaded(tmp_path, name):
    made = hf.convert(make(name), "blend:c=0.5", say=None)
    made.save_pretrained(tmp_path)
    again = hf.from_pretrained(tmp_path)
    assert type(again) is type(made) and str(hf.conversion(again)) == str(hf.conversion(made))
    assert differing(again.state_dict(), made.state_dict()) == []
    assert differing(trained(again, name), trained(made, name)) == []
    plain = type(made).from_pretrained(tmp_path)
    assert hf.conversion(plain) is None and differing(trained(plain, name), trained(make(name), name)) == []


@pytest.mark.parametrize(
    ("name", "counted"),
    [("Llava", "48 tokens"), ("ViT", "4 images"), ("VideoMAE", "4 videos"), ("Wav2Vec2", "4 sounds")],
)
def test_calibrated(name, counted):
    said = []
    batch = MODELS[name][1]()
    made = hf.convert(make(name), "blend:c=0.25", calibration=[batch, batch], say=said.append)
    assert said[0].startswith(f"calibrated on {counted}: the largest state value is")
    assert hf.conversion(made).state.frac_bits > 20
    trained(made, name)


def test_the_dial_measures_a_model_of_images_and_text():
    batch = pictured()
    made = hf.convert(make("Llava"), "auto", tolerance=1.0, calibration=[batch], say=None)
    trained(made, "Llava")
    said = []
    made = hf.convert(make("ViT"), "auto", calibration=[classified()], say=said.append)
    assert "predicts no next token" in said[0] and hf.conversion(made).scheme == UNMEASURED


def test_generation_goes_on_with_a_cache():
    made = hf.convert(make("Llava"), "blend:c=0.25", say=None)
    batch = {n: v for n, v in pictured().items() if n != "labels"}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = made.generate(**batch, **options)
    assert torch.equal(cached, made.generate(**batch, **options, use_cache=False))
    assert cached.shape[1] == batch["input_ids"].shape[1] + 4


def siglip(depth):
    """The eye of a model of images and text alone; its config has the text's too."""
    text = {"num_hidden_layers": depth, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.SiglipConfig(
        vision_config=SEES | {"num_hidden_layers": 4}, text_config=SEES | text, num_labels=3
    )
    return transformers.SiglipForImageClassification(config)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_classifier_of_images_whose_config_has_a_text_too(depth):
    grads = []
    for keep in (0, 4):
        torch.manual_seed(0)
        made = hf.convert(siglip(depth), "blend:c=0.25", keep=keep, say=None).train()
        made(**images(), labels=torch.tensor([0, 2])).loss.backward()
        grads.append({n: p.grad for n, p in made.named_parameters()})
    assert differing(*grads) == []


ENCODERS = {
    "CLIP's eye": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SEES)),
    "DINOv2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SEES)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_other_encoders_of_images(name):
    grads = []
    for keep in (0, 2):
        torch.manual_seed(0)
        made = hf.convert(ENCODERS[name](), "blend:c=0.25", keep=keep, say=None).train()
        made(**images()).last_hidden_state.square().sum().backward()
        grads.append({n: p.grad for n, p in made.named_parameters()})
    assert differing(*grads) == [] and any(g is not None and g.any() for g in grads[0].values())


def test_what_cannot_be_tried_is_refused_by_name(monkeypatch):
    sizeless = make("ViT")
    vars(sizeless.config)["image_size"] = None  # the config would not take it from the front
    with pytest.raises(
        UnsupportedError, match=r"ViT\w+ reads pixel_values, and its config does not say .*config\.image_size"
    ):
        hf.convert(sizeless, "blend:c=0.25", say=None)
    sounds = make("ViT")
    monkeypatch.setattr(type(sounds), "main_input_name", "input_values")
    with pytest.raises(UnsupportedError, match=r"reads input_values, and its config does not say"):
        hf.convert(sounds, "blend:c=0.25", say=None)
    stages = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
    swin = transformers.SwinConfig(**stages, image_size=32, patch_size=4, window_size=4)
    with pytest.raises(UnsupportedError, match="SwinModel has several lists of layers"):
        hf.convert(transformers.SwinModel(swin), "blend:c=0.25", say=None)
