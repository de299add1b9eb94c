"""What a stack of blocks and an integration have in common: two states that walk, up and back down.

    next = alpha prev + beta cur + gamma f(cur)          prev = (next - beta cur - gamma f(cur)) / alpha

:mod:`.walk` takes the steps and undoes them, :mod:`.walk` reads what the kernels report of them,
:mod:`.walk` is one step with its coefficients, :mod:`.ambient` and :mod:`.ambient` are what an
evaluation depends on beside its arguments. Differentiation is not here: a stack lives in autograd's graph, an
integration sweeps back by itself.
"""
