"""What every part that works on language models needs: where the decoder layers are, LoRA, the vocabulary
head and its loss in chunks, and the sum of what backward passes reported. For :mod:`revstep.hf`,
:mod:`revstep.lm` and :mod:`revstep.plan`, which do not know each other.
"""
