// Steps one element at a time: the definition that the vectors of 8 are held to, and what they fall back on near the
// limits of a state and at the end of an array. Dtypes and kinds of coefficients are switched on at run time.
#pragma once

#include "../core/floating.hpp"
#include "cuda_parts.cuh"
#include "plan.hpp"

namespace revstep {
namespace {

constexpr int kEach = 8;  // consecutive elements of a thread: a byte of each carry plane, 16 bytes of 16-bit values

// Rows is a template parameter so that without rows the set is known and every thread takes the same way.
template <bool Rows>
__device__ __forceinline__ const StepSet& set_of(const StepPlan& plan, int64_t i) {
    if constexpr (Rows) return plan.set[plan.args.choice[i / plan.args.row_length] != 0 ? 1 : 0];
    else return plan.set[0];
}

// ---- fixed point -----------------------------------------------------------------------------------------------

template <class S>
struct Combined {
    S x;
    bool near;
};

template <AlphaKind KA, BetaKind KB, bool Inverse, class S>
__device__ __forceinline__ Combined<S> combine(S source, S cur, S d, uint32_t carry, const FixedCoef& k) {
    if constexpr (Inverse) return {fixed_prev<KA, KB>(source, cur, d, carry, k), prev_near<KA, KB>(source, cur, d, k)};
    else return {fixed_next<KA, KB>(source, cur, d, k), next_near<KA, KB>(source, cur, d, k)};
}

template <AlphaKind KA, bool Inverse, class S>
__device__ __forceinline__ Combined<S> combine_beta(S source, S cur, S d, uint32_t carry, const FixedCoef& k) {
    if (k.beta_kind == BetaKind::none) return combine<KA, BetaKind::none, Inverse>(source, cur, d, carry, k);
    if (k.beta_kind == BetaKind::whole) return combine<KA, BetaKind::whole, Inverse>(source, cur, d, carry, k);
    if (k.beta_kind == BetaKind::shift) return combine<KA, BetaKind::shift, Inverse>(source, cur, d, carry, k);
    return combine<KA, BetaKind::general, Inverse>(source, cur, d, carry, k);
}

template <bool Inverse, class S>
__device__ __forceinline__ Combined<S> combine_any(S source, S cur, S d, uint32_t carry, const FixedCoef& k) {
    if (k.alpha_kind == AlphaKind::unit) return combine_beta<AlphaKind::unit, Inverse>(source, cur, d, carry, k);
    if (k.alpha_kind == AlphaKind::shift) return combine_beta<AlphaKind::shift, Inverse>(source, cur, d, carry, k);
    return combine_beta<AlphaKind::general, Inverse>(source, cur, d, carry, k);
}

template <class S>
__device__ __forceinline__ uint32_t carry_any(S prev, const FixedCoef& k) {
    if (k.carry_bits == 0) return 0;  // beside a set that needs some
    if (k.alpha_kind == AlphaKind::shift) return carry_of<AlphaKind::shift, false>(prev, k);
    return k.carry_bits == 1 ? carry_of<AlphaKind::general, true>(prev, k) : carry_of<AlphaKind::general, false>(prev, k);
}

template <bool Inverse, class S, class C>
__device__ __forceinline__ S fixed_element(const StepArgs& s, const StepSet& set, int64_t i, S source, uint32_t carry, Tally& tally) {
    const FixedCoef& k = set.fixed;
    const S cur = k.beta_kind == BetaKind::none ? S{0} : static_cast<const S*>(s.cur)[i];
    const C v = scaled_value(load_value<C>(s.value, s.value_type, i), static_cast<C>(set.gamma), static_cast<C>(exp2_of(s.frac_bits)));
    const Combined<S> fast = combine_any<Inverse>(source, cur, quantise<S>(v), carry, k);
    const int64_t x = fast.x;
    const uint64_t magnitude = x < 0 ? 0u - static_cast<uint64_t>(x) : static_cast<uint64_t>(x);
    if (!value_near<S>(v) && !fast.near && magnitude <= static_cast<uint64_t>(FixedTraits<S>::limit)) {
        tally.note(to_double(static_cast<int64_t>(magnitude)) * exp2_of(-s.frac_bits), false, i);
        return fast.x;
    }
    const Exact e = Inverse ? exact_prev<S>(source, cur, v, carry, k, s.frac_bits) : exact_next<S>(source, cur, v, k, s.frac_bits);
    tally.note(e.magnitude, e.bad, i);
    return static_cast<S>(static_cast<typename FixedTraits<S>::Bits>(e.wide));
}

// Carries of the 8 elements of group g: their bits of plane p are one byte of it. Packed here with byte v for element v.
__device__ __forceinline__ unsigned char* plane_bytes(const StepArgs& s, int64_t g) {
    return reinterpret_cast<unsigned char*>(s.carry + g / 4 * s.carry_bits) + g % 4;
}

// Bit 8 i + j becomes bit 8 j + i.
__device__ __forceinline__ uint64_t transposed(uint64_t x) {
    uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aaull;
    x ^= t ^ (t << 7);
    t = (x ^ (x >> 14)) & 0x0000cccc0000ccccull;
    x ^= t ^ (t << 14);
    t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0ull;
    return x ^ t ^ (t << 28);
}

__device__ __forceinline__ uint64_t load_carries(const StepArgs& s, int64_t g) {
    if (s.carry_bits == 0) return 0;
    const unsigned char* at = plane_bytes(s, g);
    uint64_t planes = 0;
    for (int p = 0; p < s.carry_bits; ++p) planes |= static_cast<uint64_t>(at[4 * p]) << (8 * p);
    return transposed(planes);
}

__device__ __forceinline__ void store_carries(const StepArgs& s, int64_t g, uint64_t carries) {
    unsigned char* at = plane_bytes(s, g);
    const uint64_t planes = transposed(carries);
    for (int p = 0; p < s.carry_bits; ++p) at[4 * p] = static_cast<unsigned char>(planes >> (8 * p));
}

__device__ __forceinline__ uint32_t carry_in(uint64_t carries, int v) { return static_cast<uint32_t>(carries >> (8 * v)) & 0xffu; }

// What a last word has beyond the last group is zero.
__device__ __forceinline__ void clear_rest(const StepArgs& s, int64_t groups) {
    for (int64_t rest = groups; rest % 4 != 0; ++rest) store_carries(s, rest, 0);
}

// The elements of group g that are there.
template <class S, bool Inverse, bool Rows>
__device__ __forceinline__ void fixed_group(const StepPlan& plan, int64_t g, Tally& tally) {
    const StepArgs& s = plan.args;
    const double unit = exp2_of(-s.frac_bits);
    uint64_t carries = Inverse ? load_carries(s, g) : 0;
    for (int v = 0; v < kEach; ++v) {
        const int64_t i = g * kEach + v;
        if (i >= s.n) break;
        const StepSet& set = set_of<Rows>(plan, i);
        const S source = static_cast<const S*>(s.source)[i];
        uint32_t carry = 0;
        if constexpr (Inverse) carry = carry_in(carries, v);
        else if (s.carry_bits != 0) carries |= static_cast<uint64_t>(carry_any(source, set.fixed)) << (8 * v);
        const S x = s.value_type == DType::f64 ? fixed_element<Inverse, S, double>(s, set, i, source, carry, tally)
                                               : fixed_element<Inverse, S, float>(s, set, i, source, carry, tally);
        static_cast<S*>(s.out)[i] = x;
        tally.checksum += checksum_at(x, i);
        if (s.view != nullptr) store_fixed_view(s.view, s.view_type, i, x, unit);
    }
    if (Inverse || s.carry_bits == 0) return;
    store_carries(s, g, carries);
    if ((g + 1) * kEach >= s.n) clear_rest(s, g + 1);
}

// ---- float states ----------------------------------------------------------------------------------------------

template <bool Inverse, bool HasBeta, class C>
__device__ __forceinline__ C combine_floats(C source, C cur, C f, const FloatCoef<C>& k) {
    if constexpr (Inverse) {
        if (k.alpha == C{1}) return float_inverse<FloatAlpha::one, HasBeta>(source, cur, f, k);
        if (k.alpha == C{-1}) return float_inverse<FloatAlpha::minus_one, HasBeta>(source, cur, f, k);
        return float_inverse<FloatAlpha::general, HasBeta>(source, cur, f, k);
    } else {
        return float_forward<FloatAlpha::general, HasBeta>(source, cur, f, k);  // times 1 is exact
    }
}

template <class S>
__device__ __forceinline__ void finish_float(S x, void* out, void* view, DType view_type, int64_t i, Tally& tally) {
    const double a = abs_of(static_cast<double>(x));
    const double infinite = double_of(0x7ff0000000000000ull);
    const bool good = a < infinite;
    tally.note(good ? a : infinite, !good, i);
    tally.checksum += checksum_at(x, i);
    static_cast<S*>(out)[i] = x;
    if (view != nullptr) store_float_view(view, view_type, i, x);
}

template <class S, class C, bool Inverse, bool Rows>
__device__ __forceinline__ void float_group(const StepPlan& plan, int64_t g, Tally& tally) {
    const StepArgs& s = plan.args;
    for (int v = 0; v < kEach; ++v) {
        const int64_t i = g * kEach + v;
        if (i >= s.n) break;
        const StepSet& set = set_of<Rows>(plan, i);
        const FloatCoef<C> k{static_cast<C>(set.alpha), static_cast<C>(set.beta), static_cast<C>(set.gamma)};
        const C source = static_cast<C>(static_cast<const S*>(s.source)[i]), f = load_value<C>(s.value, s.value_type, i);
        const C t = set.beta != 0.0 ? combine_floats<Inverse, true>(source, static_cast<C>(static_cast<const S*>(s.cur)[i]), f, k)
                                    : combine_floats<Inverse, false>(source, C{0}, f, k);
        finish_float(static_cast<S>(t), s.out, s.view, s.view_type, i, tally);
    }
}

}  // namespace
}  // namespace revstep
