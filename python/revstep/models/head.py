"""The vocabulary head of a transformers model."""

from __future__ import annotations

from torch import nn

from ..errors import ConfigError, UnsupportedError
from ..extras import require
from .layers import unwrapped

#: The config entry of Gemma 2 and others whose logits pass a tanh on their way to the loss.
SOFTCAP = "final_logit_softcapping"


def transformer(model: nn.Module) -> nn.Module:
    """The transformers model itself: a peft model forwards attributes but not assignments."""
    base = unwrapped(model)
    if not isinstance(base, require("transformers", "chunk_loss", "hf").PreTrainedModel):
        raise ConfigError(f"got {type(base).__name__}; expected a transformers model with a language-model head: load one with AutoModelForCausalLM")
    return base


def plain_head(model: nn.Module) -> nn.Linear:
    """The vocabulary head of ``model``, where the loss in chunks can take it; nothing is run.

    Raises:
        UnsupportedError: it is not a plain linear layer.
    """
    base = transformer(model)
    name, head = type(base).__name__, base.get_output_embeddings()
    if head is None:
        raise UnsupportedError(f"{name} has no output embeddings (get_output_embeddings() is None); expected a language-model head: load it as *ForCausalLM")
    if type(head).__name__ == "TrainableTokensWrapper":
        raise UnsupportedError(
            f"the head of {name} is peft's {type(head).__name__}, because trainable_token_indices reach a "
            "head that is tied to the embeddings; expected torch.nn.Linear: train with all logits"
        )
    if type(head).forward is not nn.Linear.forward or not head.weight.is_floating_point():
        raise UnsupportedError(
            f"the head of {name} is {type(head).__module__}.{type(head).__name__}; expected torch.nn.Linear: merge its adapter or leave lm_head out of "
            "target_modules and modules_to_save, and do not quantise it"
        )
    if "forward" in head.__dict__ and not hooked(head):
        raise UnsupportedError(f"the head of {name} has a forward of its own on the instance; expected the class's, or an accelerate hook: remove it first")
    return head


def hooked(head: nn.Module) -> bool:
    """Does accelerate stand before this module's forward?"""
    return "_hf_hook" in head.__dict__ and "_old_forward" in head.__dict__
