// The built-in right-hand sides. A field maps n components to n components; W systems lie side by side, component i of
// system l at [i * W + l], so that loops over l vectorise. Only + - * /, sqrt and math.hpp in the order of the formulas
// in python/revstep/ode/fields, which give the same bits. `Dim` > 0 fixes n when compiling.
// Included by code that is compiled once per instruction set: everything is inlined or has internal linkage.
#pragma once

#include "loop_parts.hpp"
#include "math.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <int Dim>
struct FieldBase {
    static constexpr int dim = Dim;
    static constexpr bool autonomous = true;
    const double* p;
    int components;

    explicit FieldBase(const OdeArgs& a) : p(a.params), components(static_cast<int>(a.dim)) {}
    RS_MEMBER int size() const { return Dim > 0 ? Dim : components; }
};

// out = -w^2 x; p = {w^2}
template <int Dim>
struct Harmonic : FieldBase<Dim> {
    using FieldBase<Dim>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const double k = -this->p[0];
        for (int i = 0; i < this->size() * W; ++i) out[i] = k * x[i];
    }
};

// out = -w^2 sin x; p = {w^2}
template <int Dim>
struct Pendulum : FieldBase<Dim> {
    using FieldBase<Dim>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const double k = -this->p[0];
        for (int i = 0; i < this->size(); ++i) {
            sin_lanes<W, 0>(x + i * W, out + i * W);
            if constexpr (W == 1) out[i] = k * out[i];
            else
                for (int j = i * W; j < (i + 1) * W; j += kPack) put(out + j, k * pack_at(out + j));
        }
    }
};

// out = -mu x / |x|^3; p = {mu}
template <int Dim>
struct Kepler : FieldBase<Dim> {
    using FieldBase<Dim>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const double k = -this->p[0];
        for (int l = 0; l < W; ++l) {
            double r2 = x[l] * x[l];
            for (int i = 1; i < this->size(); ++i) r2 = r2 + x[i * W + l] * x[i * W + l];
            const double w = k * (__builtin_sqrt(r2) / (r2 * r2));
            for (int i = 0; i < this->size(); ++i) out[i * W + l] = w * x[i * W + l];
        }
    }
};

// V = (x^2 + y^2) / 2 + c (x^2 y - y^3 / 3); p = {c}
struct HenonHeiles : FieldBase<2> {
    using FieldBase<2>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const double c = p[0], twice = 2.0 * c;
        for (int l = 0; l < W; ++l) {
            const double u = x[l], v = x[W + l];
            out[l] = -u - twice * u * v;
            out[W + l] = -v - c * (u * u - v * v);
        }
    }
};

// A chain with fixed ends: force s(r[i+1]) - s(r[i]), r[i] = x[i] - x[i-1], s(r) = r (1 + r (a + b r)); p = {a, b}
template <int Dim>
struct Fput : FieldBase<Dim> {
    using FieldBase<Dim>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const double a = this->p[0], b = this->p[1];
        const int n = this->size();
        double tension[W];
        for (int l = 0; l < W; ++l) tension[l] = x[l] * (1.0 + x[l] * (a + b * x[l]));
        for (int i = 0; i < n; ++i)
            for (int l = 0; l < W; ++l) {
                const double r = (i + 1 < n ? x[(i + 1) * W + l] : 0.0) - x[i * W + l];
                const double next = r * (1.0 + r * (a + b * r));
                out[i * W + l] = next - tension[l];
                tension[l] = next;
            }
    }
};

// Gravity, softened: out[i] = sum over j of g[j] (x[j] - x[i]) / (|x[j] - x[i]|^2 + e^2)^(3/2), j ascending.
// A body with g = 0 pulls nothing, not even one at its own place. `Massless`: there are such.
// p = {space dimensions, e^2, g[0], g[1], ...}; component = body * dimensions + axis.
template <int Bodies, int Space, bool Massless = false>
struct NBody : FieldBase<Bodies * Space> {
    using FieldBase<Bodies * Space>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const int space = Space > 0 ? Space : static_cast<int>(this->p[0]);
        const int bodies = Bodies > 0 ? Bodies : this->components / space;
        const double soft = this->p[1];
        const double* g = this->p + 2;
        for (int i = 0; i < bodies * space * W; ++i) out[i] = -0.0;  // x + -0.0 is x for every x
        for (int i = 0; i < bodies; ++i)
            for (int j = i + 1; j < bodies; ++j) {
                const double *xi = x + i * space * W, *xj = x + j * space * W;
                double *oi = out + i * space * W, *oj = out + j * space * W;
                if (Massless && (g[i] == 0.0 || g[j] == 0.0)) {
                    if (g[j] != 0.0) pull<W>(space, soft, g[j], xi, xj, oi);
                    if (g[i] != 0.0) pull<W>(space, soft, g[i], xj, xi, oj);
                    continue;
                }
                for (int l = 0; l < W; ++l) {
                    double r2 = soft;
                    for (int k = 0; k < space; ++k) {
                        const double d = xj[k * W + l] - xi[k * W + l];
                        r2 = r2 + d * d;
                    }
                    const double w = __builtin_sqrt(r2) / (r2 * r2), wi = g[j] * w, wj = g[i] * w;
                    for (int k = 0; k < space; ++k) {
                        const double d = xj[k * W + l] - xi[k * W + l];
                        oi[k * W + l] = oi[k * W + l] + wi * d;
                        oj[k * W + l] = oj[k * W + l] - wj * d;
                    }
                }
            }
    }

    // Of one body alone; the other way round all signs change, and no bit of a sum.
    template <int W>
    static RS_MEMBER void pull(int space, double soft, double g, const double* x, const double* source, double* out) {
        for (int l = 0; l < W; ++l) {
            double r2 = soft;
            for (int k = 0; k < space; ++k) {
                const double d = source[k * W + l] - x[k * W + l];
                r2 = r2 + d * d;
            }
            const double w = g * (__builtin_sqrt(r2) / (r2 * r2));
            for (int k = 0; k < space; ++k) out[k * W + l] = out[k * W + l] + w * (source[k * W + l] - x[k * W + l]);
        }
    }
};

RS_FN bool has_massless(const OdeArgs& a) {
    for (int64_t i = 2; i < a.n_params; ++i)
        if (a.params[i] == 0.0) return true;
    return false;
}

// x' = x (a - b y), y' = y (d x - c); p = {a, b, c, d}
struct LotkaVolterra : FieldBase<2> {
    using FieldBase<2>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const double a = p[0], b = p[1], c = p[2], d = p[3];
        for (int l = 0; l < W; ++l) {
            const double u = x[l], v = x[W + l];
            out[l] = u * (a - b * v);
            out[W + l] = v * (d * u - c);
        }
    }
};

// The same with q = log x and p = log y: q' = a - b e^p (function 0), p' = d e^q - c (function 1)
template <int Dim>
struct LotkaVolterraLog : FieldBase<Dim> {
    using FieldBase<Dim>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int function, double, const double* x, double* out) const {
        const double a = this->p[0], b = this->p[1], c = this->p[2], d = this->p[3];
        const int all = this->size() * W;
        if (function == 0)
            for (int i = 0; i < all; ++i) out[i] = a - b * exp_of(x[i]);
        else
            for (int i = 0; i < all; ++i) out[i] = d * exp_of(x[i]) - c;
    }
};

// x' = y, y' = m (1 - x^2) y - x; p = {m}
struct VanDerPol : FieldBase<2> {
    using FieldBase<2>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const double m = p[0];
        for (int l = 0; l < W; ++l) {
            const double u = x[l], v = x[W + l];
            out[l] = v;
            out[W + l] = m * (1.0 - u * u) * v - u;
        }
    }
};

// out = A x, summed from the first column on; p = A, row by row
template <int Dim>
struct Linear : FieldBase<Dim> {
    using FieldBase<Dim>::FieldBase;
    template <int W>
    RS_MEMBER void eval(int, double, const double* x, double* out) const {
        const int n = this->size();
        for (int i = 0; i < n; ++i)
            for (int l = 0; l < W; ++l) {
                double sum = this->p[i * n] * x[l];
                for (int j = 1; j < n; ++j) sum = sum + this->p[i * n + j] * x[j * W + l];
                out[i * W + l] = sum;
            }
    }
};

// Any field behind a function pointer: the loops exist once for all of these, and a call is little beside 16 systems.
typedef void (*Evaluate)(const OdeArgs&, OdeShare&, int function, double t, const double* x, double* out);

template <class Field, int W>
void evaluate_as(const OdeArgs& a, OdeShare&, int function, double t, const double* x, double* out) {
    Field(a).template eval<W>(function, t, x, out);
}

// A time as the caller's functions see it.
RS_FN double clamped(const OdeArgs& a, double t) { return t < a.lo ? a.lo : t > a.hi ? a.hi : t; }

// The caller's function, for one system. What it leaves unwritten, and that it failed, is in the share afterwards.
void call_user(const OdeArgs& a, OdeShare& share, int function, double time, const double* x, double* out) {
    const double t = clamped(a, time);
    for (int64_t i = 0; i < a.dim; ++i) out[i] = double_of(kUnwritten);
    if (share.fault != OdeFault::none) return;  // a stage before it failed
    a.user[function](t, x, out, static_cast<long>(a.dim), a.user_data[function]);
    int64_t left = -1;
    for (int64_t i = a.dim - 1; i >= 0; --i) left = bits_of(out[i]) == kUnwritten ? i : left;
    const int64_t stopped = a.stop == nullptr ? 0 : __atomic_load_n(a.stop, __ATOMIC_RELAXED);
    if (__builtin_expect(left < 0 && stopped == 0, 1)) return;
    share.fault_component = left, share.fault_t = t;
    share.fault = stopped == 0 ? OdeFault::unwritten : stopped == ode_inside().second ? OdeFault::raised : OdeFault::elsewhere;
}

struct Erased {
    static constexpr int dim = 0;
    const OdeArgs& a;
    OdeShare& share;
    Evaluate function_at;
    bool autonomous;

    RS_MEMBER int size() const { return static_cast<int>(a.dim); }
    template <int W>
    RS_MEMBER void eval(int function, double t, const double* x, double* out) const {
        function_at(a, share, function, t, x, out);
    }
};

template <int W>
Evaluate evaluate_for(const OdeArgs& a) {
    switch (a.field) {
        case OdeField::user: return call_user;
        case OdeField::harmonic: return evaluate_as<Harmonic<0>, W>;
        case OdeField::pendulum: return a.dim == 1 ? evaluate_as<Pendulum<1>, W> : evaluate_as<Pendulum<0>, W>;
        case OdeField::kepler: return a.dim == 2 ? evaluate_as<Kepler<2>, W> : evaluate_as<Kepler<3>, W>;
        case OdeField::henon_heiles: return evaluate_as<HenonHeiles, W>;
        case OdeField::fput: return evaluate_as<Fput<0>, W>;
        case OdeField::n_body:
            if (has_massless(a)) return evaluate_as<NBody<0, 0, true>, W>;
            if (a.params[0] != 3.0) return evaluate_as<NBody<0, 0>, W>;
            return a.dim == 6 ? evaluate_as<NBody<2, 3>, W> : evaluate_as<NBody<0, 3>, W>;
        case OdeField::lotka_volterra: return evaluate_as<LotkaVolterra, W>;
        case OdeField::lotka_volterra_log: return a.dim == 1 ? evaluate_as<LotkaVolterraLog<1>, W> : evaluate_as<LotkaVolterraLog<0>, W>;
        case OdeField::van_der_pol: return evaluate_as<VanDerPol, W>;
        case OdeField::linear: return a.dim == 2 ? evaluate_as<Linear<2>, W> : evaluate_as<Linear<0>, W>;
    }
    return nullptr;
}

template <int W>
Erased erased(const OdeArgs& a, OdeShare& share) {
    return {a, share, evaluate_for<W>(a), a.field != OdeField::user};
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
