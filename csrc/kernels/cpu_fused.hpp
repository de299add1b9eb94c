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

struct FusedOut {
    uint32_t largest;
    bool near;
};

template <AlphaKind KA, BetaKind KB, bool Inverse, DType V, DType W, bool HasView>
FusedOut fused_tile(const int32_t* __restrict other, const int32_t* __restrict cur, const typename Value<V>::Raw* __restrict f,
                    const uint8_t* __restrict carry, int32_t* __restrict out, typename Value<W>::Raw* __restrict view, int m, const FixedCoef& coef,
                    double gamma, int frac_bits) {
    const FixedCoef k = coef;
    const float g = static_cast<float>(gamma), unit = static_cast<float>(exp2_of(frac_bits));
    const double back = exp2_of(-frac_bits);
    unsigned near = 0;
    uint32_t largest = 0;
    for (int j = 0; j < m; ++j) {
        const float v = scaled_value(Value<V>::widen(f[j]), g, unit);
        const int32_t d = quantise<int32_t>(v), o = other[j], c = KB == BetaKind::none ? 0 : cur[j];
        const int32_t x = Inverse ? fixed_prev<KA, KB>(o, c, d, KA == AlphaKind::unit ? 0u : carry[j], k) : fixed_next<KA, KB>(o, c, d, k);
        near |= value_near<int32_t>(v) ? 1u : 0u;
        near |= (Inverse ? prev_near<KA, KB>(o, c, d, k) : next_near<KA, KB>(o, c, d, k)) ? 1u : 0u;
        const uint32_t u = static_cast<uint32_t>(x), magnitude = x < 0 ? 0u - u : u;
        largest = magnitude > largest ? magnitude : largest;
        out[j] = x;
        if constexpr (HasView) view[j] = fixed_view<W>(x, back);
    }
    return {largest, near != 0};
}

// A general alpha is left to the loops: its inverse divides in doubles.
template <bool Inverse, DType V, DType W, bool HasView>
FusedOut fused_as(const StepArgs& s, const StepSet& set, const uint8_t* carry, int32_t* out, void* view, int64_t at, int m) {
    const int32_t* other = element<int32_t>(s.other, at);
    const int32_t* cur = element<int32_t>(s.cur, at);
    const auto* f = element<typename Value<V>::Raw>(s.value, at);
    auto* w = static_cast<typename Value<W>::Raw*>(view);
    return with_beta(set.fixed.beta_kind, [&](auto kb) {
        constexpr BetaKind KB = decltype(kb)::value;
        if (set.fixed.alpha_kind == AlphaKind::unit)
            return fused_tile<AlphaKind::unit, KB, Inverse, V, W, HasView>(other, cur, f, carry, out, w, m, set.fixed, set.gamma, s.frac_bits);
        return fused_tile<AlphaKind::shift, KB, Inverse, V, W, HasView>(other, cur, f, carry, out, w, m, set.fixed, set.gamma, s.frac_bits);
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

// ---- large outputs past the cache --------------------------------------------------------------------------------

// An output line that is not in a cache is first read, to be overwritten: a third of a large step's traffic. From so many bytes of outputs on they
// would not stay in a last-level cache anyhow, and are written past it.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

#if defined(__AVX512F__)
constexpr bool kStreams = true;

RS_FN void stream_bytes(void* to, const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + i), _mm512_load_si512(static_cast<const char*>(from) + i));
}

RS_FN void stream_end() { _mm_sfence(); }
#else
constexpr bool kStreams = false;

RS_FN void stream_bytes(void* to, const void* from, int64_t bytes) { __builtin_memcpy(to, from, static_cast<unsigned long>(bytes)); }
RS_FN void stream_end() {}
#endif

RS_FN bool is_line(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
