// The step of a tile in one loop, for int32 states with values and views in float32 or bfloat16: what training runs on. Everything else passes
// through the loops of cpu_body.cpp, which it equals bit for bit. Included by cpu_body.cpp only.
#pragma once

#include "cpu_tiles.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// What a finished tile is looked at for: its checksum, its largest magnitude.
struct Finished {
    uint64_t checksum, largest;
};

RS_FN bool is_hot(DType t) { return t == DType::f32 || t == DType::bf16; }

template <class F>
RS_FN auto with_hot(DType t, F f) {
    return t == DType::bf16 ? f(Tag<DType::bf16>{}) : f(Tag<DType::f32>{});
}

RS_FN uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
RS_FN uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffu; }  // in the order of |x|, NaN above all

// The largest magnitude in [low, high], low <= 0 <= high.
RS_FN uint32_t span(int32_t low, int32_t high) { return larger(0u - static_cast<uint32_t>(low), static_cast<uint32_t>(high)); }

struct FusedOut {
    uint32_t largest;
    bool near;
};

// Whether an element is near a limit is asked of all together: of the largest magnitudes and of the signs.
template <AlphaKind KA, BetaKind KB, bool Positive, bool Inverse, DType V, DType W, bool HasView>
FusedOut fused_tile(const int32_t* __restrict source, const int32_t* __restrict cur, const typename Value<V>::Raw* __restrict f,
                    const uint8_t* __restrict carry, int32_t* __restrict out, typename Value<W>::Raw* __restrict view, int m, const FixedCoef& coef,
                    double gamma, int frac_bits) {
    const FixedCoef k = coef;
    const float g = static_cast<float>(gamma), unit = static_cast<float>(exp2_of(frac_bits));
    const double back = exp2_of(-frac_bits);
    uint32_t value = 0, rough = 0, wrap = 0;
    int32_t low = 0, high = 0;
    for (int j = 0; j < m; ++j) {
        const float v = scaled_value(Value<V>::widen(f[j]), g, unit);
        value = larger(value, magnitude_bits(v));
        const int32_t d = rint_i32_or_any(v), from = source[j], c = KB == BetaKind::none ? 0 : cur[j];
        const int32_t x = Inverse ? fixed_prev<KA, KB, Positive>(from, c, d, KA == AlphaKind::unit ? 0u : carry[j], k) : fixed_next<KA, KB, Positive>(from, c, d, k);
        if constexpr (KA == AlphaKind::unit && KB == BetaKind::none) wrap |= Inverse ? prev_wraps(from, d) : next_wraps<Positive>(from, d, k);
        else rough = larger(rough, magnitude_bits(Inverse ? prev_roughly<KB>(from, c, v, k) : next_roughly<KB>(from, c, v, k)));
        low = x < low ? x : low;
        high = x > high ? x : high;
        out[j] = x;
        if constexpr (HasView) view[j] = fixed_view<W>(x, back);
    }
    const bool near = value_near<int32_t>(float_of(value)) || !(float_of(rough) < (Inverse ? FixedTraits<int32_t>::near_prev : FixedTraits<int32_t>::near_next));
    return {span(low, high), near || wrap >> 31 != 0};
}

// A general alpha is left to the loops: its inverse divides in doubles.
template <bool Inverse, DType V, DType W, bool HasView>
FusedOut fused_as(const StepArgs& s, const StepSet& set, const uint8_t* carry, int32_t* out, void* view, int64_t at, int m) {
    const int32_t* source = element<int32_t>(s.source, at);
    const int32_t* cur = element<int32_t>(s.cur, at);
    const auto* f = element<typename Value<V>::Raw>(s.value, at);
    auto* w = static_cast<typename Value<W>::Raw*>(view);
    return with_beta(set.fixed.beta_kind, [&](auto kb) {
        constexpr BetaKind KB = decltype(kb)::value;
        const auto run = [&](auto ka, auto positive) {
            return fused_tile<decltype(ka)::value, KB, decltype(positive)::value, Inverse, V, W, HasView>(source, cur, f, carry, out, w, m, set.fixed, set.gamma, s.frac_bits);
        };
        const bool positive = set.fixed.flip == 0 && (KB != BetaKind::shift || set.fixed.beta_shift.flip == 0);
        if (set.fixed.alpha_kind == AlphaKind::unit) return positive ? run(Tag<AlphaKind::unit>{}, Tag<true>{}) : run(Tag<AlphaKind::unit>{}, Tag<false>{});
        return positive ? run(Tag<AlphaKind::shift>{}, Tag<true>{}) : run(Tag<AlphaKind::shift>{}, Tag<false>{});
    });
}

template <DType V, DType W, bool HasView>
FusedOut fused_encode_tile(const typename Value<V>::Raw* __restrict x, int32_t* __restrict out, typename Value<W>::Raw* __restrict view, int m, int frac_bits) {
    const float unit = static_cast<float>(exp2_of(frac_bits));
    const double back = exp2_of(-frac_bits);
    uint32_t value = 0;
    int32_t low = 0, high = 0;
    for (int j = 0; j < m; ++j) {
        const float v = Value<V>::widen(x[j]) * unit;
        value = larger(value, magnitude_bits(v));
        const int32_t d = rint_i32_or_any(v);
        low = d < low ? d : low;
        high = d > high ? d : high;
        out[j] = d;
        if constexpr (HasView) view[j] = fixed_view<W>(d, back);
    }
    return {span(low, high), value_near<int32_t>(float_of(value))};
}

inline bool can_fuse(const EncodeArgs& s) { return s.state == DType::i32 && is_hot(s.value_type) && (s.view == nullptr || is_hot(s.view_type)); }

// `view`: of the tile, or null.
inline FusedOut fused_encode(const EncodeArgs& s, int32_t* out, void* view, int64_t at, int m) {
    return with_hot(s.value_type, [&](auto v) {
        typedef typename Value<decltype(v)::value>::Raw Raw;
        if (view == nullptr) return fused_encode_tile<decltype(v)::value, DType::f32, false>(element<Raw>(s.x, at), out, nullptr, m, s.frac_bits);
        return with_hot(s.view_type, [&](auto w) {
            constexpr DType W = decltype(w)::value;
            return fused_encode_tile<decltype(v)::value, W, true>(element<Raw>(s.x, at), out, static_cast<typename Value<W>::Raw*>(view), m, s.frac_bits);
        });
    });
}

inline bool can_fuse(const StepPlan& plan) {
    const StepArgs& s = plan.args;
    const int sets = s.row_length != 0 ? 2 : 1;
    for (int i = 0; i < sets; ++i)
        if (plan.set[i].fixed.alpha_kind == AlphaKind::general) return false;
    return is_hot(s.value_type) && (s.view == nullptr || is_hot(s.view_type));
}

// `view`: of the tile, or null.
inline FusedOut fused(const StepPlan& plan, const StepSet& set, const uint8_t* carry, int32_t* out, void* view, int64_t at, int m) {
    return with_hot(plan.args.value_type, [&](auto v) {
        constexpr DType V = decltype(v)::value;
        if (view == nullptr) return plan.inverse ? fused_as<true, V, DType::f32, false>(plan.args, set, carry, out, view, at, m)
                                                 : fused_as<false, V, DType::f32, false>(plan.args, set, carry, out, view, at, m);
        return with_hot(plan.args.view_type, [&](auto w) {
            constexpr DType W = decltype(w)::value;
            return plan.inverse ? fused_as<true, V, W, true>(plan.args, set, carry, out, view, at, m)
                                : fused_as<false, V, W, true>(plan.args, set, carry, out, view, at, m);
        });
    });
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
