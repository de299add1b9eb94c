// The micro-step for every alpha and beta, on flat arrays of n components times w systems: the general path, and the
// one that decides near the limits. Included by loop_body.cpp only.
#pragma once

#include "../core/floating.hpp"
#include "loop_parts.hpp"
#include "math.hpp"

#if !defined(REVSTEP_ISA)
#define REVSTEP_ISA isa_generic
#endif

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <auto V>
struct Tag {
    static constexpr auto value = V;
};

struct Flat {  // one micro-step of one tile
    const OdePlan& plan;
    const PlannedMicro& m;
    int n, w;            // components, lanes
    int64_t begin;       // first system
    int count;           // real systems; further lanes repeat the last one
    int64_t carry_at;    // bit of the micro-step's first carry
    int64_t *d, *out;    // scratch
    uint8_t* carry;      // scratch
    const double *up, *down;  // units of the slot that changes: one a component, or one an element where Each
};

struct Verdict {
    bool bad = false;
    int lane = 0;
    double magnitude = 0.0;  // in units of the slot, that is of X
};

// Component i of a system has its carry in bits carry_at + i * carry_bits and so on of the system's row.
void move_carries(const Flat& t, bool write) {
    const OdeArgs& a = *t.plan.args;
    const int bits = t.m.carry_bits;
    const unsigned mask = (1u << bits) - 1u;
    for (int l = 0; l < t.count; ++l) {
        uint8_t* row = a.carry + (t.begin + l) * a.carry_stride;
        int64_t at = t.carry_at;
        for (int i = 0; i < t.n; ++i, at += bits) {
            uint8_t* byte = row + (at >> 3);
            const int shift = static_cast<int>(at & 7);
            const bool two = shift + bits > 8;
            unsigned both = byte[0];
            if (two) both |= static_cast<unsigned>(byte[1]) << 8;
            if (!write) {
                t.carry[i * t.w + l] = static_cast<uint8_t>((both >> shift) & mask);
                continue;
            }
            both = (both & ~(mask << shift)) | (static_cast<unsigned>(t.carry[i * t.w + l]) << shift);
            byte[0] = static_cast<uint8_t>(both);
            if (two) byte[1] = static_cast<uint8_t>(both >> 8);
        }
    }
    if (!write)
        for (int i = 0; i < t.n; ++i)
            for (int l = t.count; l < t.w; ++l) t.carry[i * t.w + l] = t.carry[i * t.w + t.count - 1];
}

template <AlphaKind KA>
void find_carries(const Flat& t, const int64_t* __restrict prev) {
    const FixedCoef k = t.m.coef;
    for (int j = 0; j < t.n * t.w; ++j) t.carry[j] = static_cast<uint8_t>(carry_of<KA, false>(prev[j], k));
}

template <AlphaKind KA, BetaKind KB>
bool combine(const Flat& t, const int64_t* __restrict own, const int64_t* __restrict other, bool undo) {
    const FixedCoef k = t.m.coef;
    const int64_t* __restrict d = t.d;
    int64_t* __restrict out = t.out;
    const int all = t.n * t.w;
    unsigned near = 0;
    if (undo)
        for (int j = 0; j < all; ++j) {
            out[j] = fixed_prev<KA, KB>(own[j], other[j], d[j], KA == AlphaKind::unit ? 0u : t.carry[j], k);
            near |= prev_near<KA, KB>(own[j], other[j], d[j], k) ? 1u : 0u;
        }
    else
        for (int j = 0; j < all; ++j) {
            out[j] = fixed_next<KA, KB>(own[j], other[j], d[j], k);
            near |= next_near<KA, KB>(own[j], other[j], d[j], k) ? 1u : 0u;
        }
    for (int j = 0; j < all; ++j) {
        const int64_t limit = FixedTraits<int64_t>::limit;
        near |= (out[j] > limit) || (out[j] < -limit) ? 1u : 0u;
    }
    return near != 0;
}

template <class F>
RS_FN auto with_kinds(const FixedCoef& k, F f) {
    const auto beta = [&](auto ka) {
        switch (k.beta_kind) {
            case BetaKind::none: return f(ka, Tag<BetaKind::none>{});
            case BetaKind::whole: return f(ka, Tag<BetaKind::whole>{});
            case BetaKind::shift: return f(ka, Tag<BetaKind::shift>{});
            default: return f(ka, Tag<BetaKind::general>{});
        }
    };
    switch (k.alpha_kind) {
        case AlphaKind::unit: return beta(Tag<AlphaKind::unit>{});
        case AlphaKind::shift: return beta(Tag<AlphaKind::shift>{});
        default: return beta(Tag<AlphaKind::general>{});
    }
}

int32_t frac_bits_of(const Flat& t, int i, int l) {
    const OdeArgs& a = *t.plan.args;
    const int64_t row = a.each ? (t.begin + (l < t.count ? l : t.count - 1)) * a.dim : 0;
    return a.frac_bits[t.m.slot][row + i];
}

// By the definition. Nothing is written to t.out where it says bad.
template <bool Each>
Verdict decide(const Flat& t, const int64_t* own, const int64_t* other, const double* phi, bool undo) {
    Verdict verdict;
    for (int i = 0; i < t.n; ++i)
        for (int l = 0; l < t.w; ++l) {
            const int j = i * t.w + l, frac_bits = frac_bits_of(t, i, l);
            const double up = t.up[Each ? j : i], v = scaled_value(phi[j], t.m.gamma, up);
            const Exact e = undo ? exact_prev<int64_t>(own[j], other[j], v, t.m.carry_bits == 0 ? 0u : t.carry[j], t.m.coef, frac_bits)
                                 : exact_next<int64_t>(own[j], other[j], v, t.m.coef, frac_bits);
            if (!e.bad) t.out[j] = static_cast<int64_t>(e.wide);
            else if (!verdict.bad || l < verdict.lane) verdict = {true, l, e.magnitude * up};
        }
    return verdict;
}

// t.d <- the increments; whether any is near the limits.
template <bool Each>
bool quantise_all(const Flat& t, const double* __restrict phi) {
    unsigned near = 0;
    for (int i = 0; i < t.n; ++i)
        for (int l = 0; l < t.w; ++l) {
            const double v = scaled_value(phi[i * t.w + l], t.m.gamma, t.up[Each ? i * t.w + l : i]);
            t.d[i * t.w + l] = quantise<int64_t>(v);
            near |= value_near<int64_t>(v) ? 1u : 0u;
        }
    return near != 0;
}

template <bool Each>
void take_over(const Flat& t, int64_t* __restrict own, double* __restrict view) {
    for (int i = 0; i < t.n; ++i)
        for (int l = 0; l < t.w; ++l) {
            own[i * t.w + l] = t.out[i * t.w + l];
            view[i * t.w + l] = to_double(t.out[i * t.w + l]) * t.down[Each ? i * t.w + l : i];
        }
}

// own <- the micro-step or its inverse, view <- its value. On a bad verdict `own` is left as it was.
template <bool Each>
RS_SLOW Verdict general_fixed(const Flat& t, int64_t* __restrict own, double* __restrict view, const int64_t* __restrict other, const double* __restrict phi, bool undo) {
    bool near = quantise_all<Each>(t, phi);
    const bool carries = t.m.carry_bits != 0;
    if (carries && undo) move_carries(t, false);
    if (!carries && undo)  // the scratch still has those of an earlier micro-step
        for (int j = 0; j < t.n * t.w; ++j) t.carry[j] = 0;
    near |= with_kinds(t.m.coef, [&](auto ka, auto kb) { return combine<decltype(ka)::value, decltype(kb)::value>(t, own, other, undo); });
    if (near) {
        const Verdict verdict = decide<Each>(t, own, other, phi, undo);
        if (verdict.bad) return verdict;
    }
    // Only now, and before take_over: carries are of the state that is replaced, and a step that failed leaves none.
    if (carries && !undo && t.plan.args->carry != nullptr) {
        with_kinds(t.m.coef, [&](auto ka, auto) { find_carries<decltype(ka)::value>(t, own); });
        move_carries(t, true);
    }
    take_over<Each>(t, own, view);
    return {};
}

template <FloatAlpha KA>
void general_float(const PlannedMicro& m, int all, double* __restrict own, const double* __restrict other, const double* __restrict phi, bool undo) {
    const FloatCoef<double> k{m.alpha, m.beta, m.gamma};
    const bool beta = m.beta != 0.0;
    if (undo && beta)
        for (int j = 0; j < all; ++j) own[j] = float_inverse<KA, true>(own[j], other[j], phi[j], k);
    else if (undo)
        for (int j = 0; j < all; ++j) own[j] = float_inverse<KA, false>(own[j], other[j], phi[j], k);
    else if (beta)
        for (int j = 0; j < all; ++j) own[j] = float_forward<KA, true>(own[j], other[j], phi[j], k);
    else
        for (int j = 0; j < all; ++j) own[j] = float_forward<KA, false>(own[j], other[j], phi[j], k);
}

RS_SLOW void general_float(const PlannedMicro& m, int all, double* own, const double* other, const double* phi, bool undo) {
    if (m.alpha == 1.0) general_float<FloatAlpha::one>(m, all, own, other, phi, undo);
    else if (m.alpha == -1.0) general_float<FloatAlpha::minus_one>(m, all, own, other, phi, undo);
    else general_float<FloatAlpha::general>(m, all, own, other, phi, undo);
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
