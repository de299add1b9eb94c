// The integration loops. Compiled once per instruction set; only `ode_body` is visible outside.
#include "watch.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// A single system of a shape fixed when compiling: the whole loop in registers.
template <class Field>
void run_single(const Job& on) {
    const OdeArgs& a = *on.plan.args;
    if (a.fixed) run_tile<true, Field, 1>(Field(a), on);
    else run_tile<false, Field, 1>(Field(a), on);
}

bool run_hot(const Job& on) {
    const OdeArgs& a = *on.plan.args;
    if (a.field == OdeField::n_body && a.dim == 6 && a.params[0] == 3.0 && !has_massless(a)) return run_single<NBody<2, 3>>(on), true;
    if (a.field == OdeField::kepler && a.dim == 2) return run_single<Kepler<2>>(on), true;
    if (a.field == OdeField::kepler) return run_single<Kepler<3>>(on), true;
    if (a.field == OdeField::pendulum && a.dim == 1) return run_single<Pendulum<1>>(on), true;
    if (a.field == OdeField::henon_heiles) return run_single<HenonHeiles>(on), true;
    return false;
}

template <int W>
void run_any(const Job& on) {
    const OdeArgs& a = *on.plan.args;
    const Erased field = erased<W>(a, on.share);
    if (W > 1 && a.each) run_tile<true, Erased, W, (W > 1)>(field, on);
    else if (a.fixed) run_tile<true, Erased, W>(field, on);
    else run_tile<false, Erased, W>(field, on);
}

void run(const OdePlan& plan, int64_t begin, int64_t end, int lanes, double* scratch, OdeShare& share) {
    const Job on{plan, begin, end, scratch, share};
    if (lanes != 1) return run_any<kLanes>(on);
    if (!run_hot(on)) run_any<1>(on);
}

template <int M>
void math_lanes(OdeMath function, const double* x, double* out) {
    if (function == OdeMath::sin) sin_lanes<M, 0>(x, out);
    else if (function == OdeMath::cos) sin_lanes<M, 1>(x, out);
    else
        for (int l = 0; l < M; ++l) out[l] = exp_of(x[l]);
}

void math(OdeMath function, const double* x, double* out, int64_t n) {
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes) math_lanes<kLanes>(function, x + k, out + k);
    for (; k < n; ++k) math_lanes<1>(function, x + k, out + k);
}

}  // namespace

const OdeBody ode_body = {run, math};

}  // namespace REVSTEP_ISA
}  // namespace revstep
