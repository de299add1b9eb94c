// What a tile is made of: arrays that are local or in scratch, a Runge-Kutta increment, conversions. Included by tile.hpp only.
#pragma once

#include "fields.hpp"
#include "micro.hpp"
#include "tile_lanes.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <class T, int N>
struct Store {
    T data[N];
    RS_MEMBER void place(double*) {}
};

template <class T>
struct Store<T, 0> {
    T* data;
    RS_MEMBER void place(double* scratch) { data = reinterpret_cast<T*>(scratch); }
};

struct None {
    static constexpr double* data = nullptr;
    RS_MEMBER void place(double*) {}
};

template <bool Condition, class A, class B>
struct Choose {
    typedef A type;
};
template <class A, class B>
struct Choose<false, A, B> {
    typedef B type;
};

// Out of line where a call costs nothing beside the work.
template <class Field, int W>
RS_SLOW void evaluate_apart(const Field& field, int function, double t, const double* x, double* out) {
    field.template eval<W>(function, t, x, out);
}

// out <- sum of w[s] k_s in order, zero weights left out; false where nothing is left.
RS_SLOW bool weighted(const double* w, int stages, const double* k, int64_t padded, int all, double* __restrict out) {
    bool any = false;
    for (int s = 0; s < stages; ++s) {
        const double c = w[s];
        const double* __restrict from = k + s * padded;
        if (c == 0.0) continue;
        if (any)
            for (int j = 0; j < all; ++j) out[j] = out[j] + c * from[j];
        else
            for (int j = 0; j < all; ++j) out[j] = c * from[j];
        any = true;
    }
    return any;
}

// psi <- the increment of an explicit Runge-Kutta step of size `size` from z at t:
// k_s = f(t + c_s size, z + size sum_r a_sr k_r), psi = size sum_s b_s k_s.
template <class Field, int W>
RS_SLOW void rk_increment(const Field& field, const OdeTableau& rk, int function, double t, double size, const double* z, double* psi, double* argument, double* stages, int64_t padded) {
    const int all = field.size() * W;
    for (int s = 0; s < rk.stages; ++s) {
        const bool moved = weighted(rk.a + s * rk.stages, s, stages, padded, all, argument);
        for (int j = 0; j < all; ++j) argument[j] = moved ? z[j] + size * argument[j] : z[j];
        evaluate_apart<Field, W>(field, function, t + rk.c[s] * size, argument, stages + s * padded);
    }
    if (!weighted(rk.b, rk.stages, stages, padded, all, psi))
        for (int j = 0; j < all; ++j) psi[j] = 0.0;
    for (int j = 0; j < all; ++j) psi[j] = size * psi[j];
}

template <int W>
RS_FN int64_t rint_fast(double v) {
#if defined(__x86_64__) && !defined(__clang__)
    if constexpr (W == 1) return __builtin_llrint(v);  // one instruction, and defined beyond the range
#endif
    return rint_i64(v);
}

template <int W>
RS_FN double widen_fast(int64_t x) {
    if constexpr (W == 1) return static_cast<double>(x);
    return to_double(x);
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
