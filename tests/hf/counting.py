"""A model that has learned to count, for the tests of the dial."""

import models
import torch


def learned():
    """A small Llama that has learned a text of repeated counting, so that its layers matter and a wrong step
    costs loss.
    """
    torch.manual_seed(0)
    model = models.model("Llama", scale=1.0).train()
    rows = (torch.arange(24)[None, :] * torch.arange(1, 9)[:, None]) % 96
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        optimiser.step()
    return model.eval(), rows
