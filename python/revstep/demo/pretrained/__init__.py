"""A pretrained model fine-tuned in every way over several seeds: what ``revstep bench pretrained`` measures."""
