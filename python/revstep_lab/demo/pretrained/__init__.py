"""A pretrained model fine-tuned in every way over seeds: what ``revstep bench pretrained`` measures."""
