// Loops over one tile that every state shares, and the dispatch on dtypes.
// Included by the *_body.cpp of this folder only, which are
// compiled once per instruction set, REVSTEP_ISA naming it; everything here has internal linkage.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../core/checksum.hpp"
#include "../core/floating.hpp"
#include "../core/half.hpp"
#include "cpu_parts.hpp"

#if !defined(REVSTEP_ISA)
#define REVSTEP_ISA isa_generic
#endif

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <DType V>
struct Value;

template <>
struct Value<DType::f32> {
    typedef float Raw;
    typedef float Wide;
    RS_FN float widen(float x) { return x; }
    template <class C>
    RS_FN float narrow(C x) { return static_cast<float>(x); }
};

template <>
struct Value<DType::f64> {
    typedef double Raw;
    typedef double Wide;
    RS_FN double widen(double x) { return x; }
    template <class C>
    RS_FN double narrow(C x) { return static_cast<double>(x); }
};

template <>
struct Value<DType::bf16> {
    typedef uint16_t Raw;
    typedef float Wide;
    RS_FN float widen(uint16_t x) { return bf16_to_float(x); }
    template <class C>
    RS_FN uint16_t narrow(C x) { return float_to_bf16(static_cast<float>(x)); }
};

template <>
struct Value<DType::f16> {
    typedef uint16_t Raw;
    typedef float Wide;
    RS_FN float widen(uint16_t x) { return half_to_float(x); }
    template <class C>
    RS_FN uint16_t narrow(C x) { return float_to_half(static_cast<float>(x)); }
};

template <class S>
constexpr bool is_integer = static_cast<S>(0.5) == S{0};

template <auto V>
struct Tag {
    static constexpr auto value = V;
};

template <class F>
RS_FN auto with_value(DType t, F f) {
    switch (t) {
        case DType::f64: return f(Tag<DType::f64>{});
        case DType::bf16: return f(Tag<DType::bf16>{});
        case DType::f16: return f(Tag<DType::f16>{});
        default: return f(Tag<DType::f32>{});
    }
}

template <class F>
RS_FN auto with_alpha(AlphaKind k, F f) {
    switch (k) {
        case AlphaKind::unit: return f(Tag<AlphaKind::unit>{});
        case AlphaKind::shift: return f(Tag<AlphaKind::shift>{});
        default: return f(Tag<AlphaKind::general>{});
    }
}

template <class F>
RS_FN auto with_beta(BetaKind k, F f) {
    switch (k) {
        case BetaKind::none: return f(Tag<BetaKind::none>{});
        case BetaKind::whole: return f(Tag<BetaKind::whole>{});
        case BetaKind::shift: return f(Tag<BetaKind::shift>{});
        default: return f(Tag<BetaKind::general>{});
    }
}

// ---- loops shared by every state -------------------------------------------------------------------------------

struct ChecksumTable {
    alignas(64) uint32_t inner[kChecksumPeriod + 1];  // the last is read and not used
};

constexpr ChecksumTable checksum_table() {
    ChecksumTable t{};
    for (int j = 0; j < kChecksumPeriod; ++j) t.inner[j] = checksum_inner(static_cast<uint32_t>(j));
    return t;
}

constexpr ChecksumTable kChecksumTable = checksum_table();

#if defined(__AVX512F__)
// Left to itself the compiler multiplies in 64 bits, in three operations each. Masks of ones, because GCC 12 takes what the forms without
// a mask leave undefined for a use of uninitialised values.
RS_FN uint64_t checksum_whole(const void* x) {
    constexpr __mmask8 all = 0xFF;
    __m512i even = _mm512_setzero_si512(), odd = even;
    for (int j = 0; j < kChecksumPeriod; j += 16) {
        const __m512i words = _mm512_loadu_si512(static_cast<const uint32_t*>(x) + j);
        even = _mm512_add_epi64(even, _mm512_maskz_mul_epu32(all, words, _mm512_load_si512(kChecksumTable.inner + j)));
        odd = _mm512_add_epi64(odd, _mm512_maskz_mul_epu32(all, _mm512_maskz_srli_epi64(all, words, 32), _mm512_loadu_si512(kChecksumTable.inner + j + 1)));
    }
    alignas(64) uint64_t parts[8];
    _mm512_store_si512(parts, _mm512_add_epi64(even, odd));
    uint64_t sum = 0;
    for (const uint64_t part : parts) sum += part;
    return sum;
}
#endif

// Of one tile, or its beginning.
template <class S>
uint64_t checksum_tile(const S* __restrict x, int64_t at, int m) {
    static_assert(kTile == kChecksumPeriod, "a tile has one outer weight");
#if defined(__AVX512F__)
    if (sizeof(S) == 4 && m == kTile) return checksum_whole(x) * checksum_outer(at);
#endif
    uint64_t sum = 0;
    for (int j = 0; j < m; ++j) sum += checksum_term(bits_of(x[j]), kChecksumTable.inner[j]);
    return sum * checksum_outer(at);
}

RS_FN int tile_length(int64_t at, int64_t end) { return static_cast<int>(end - at < kTile ? end - at : kTile); }

template <class Raw>
const Raw* element(const void* base, int64_t at) {
    return static_cast<const Raw*>(base) + at;
}

// X 2^-F; exact in double below 2^53, otherwise rounded once (and once more on the way to 16 bits).
template <DType W, class S>
RS_FN typename Value<W>::Raw fixed_view(S x, double unit) {
    if constexpr (W == DType::f64) return to_double(x) * unit;
    else if constexpr (W == DType::bf16) return finite_to_bf16(to_float(x) * static_cast<float>(unit));
    else return Value<W>::narrow(to_float(x) * static_cast<float>(unit));
}

template <DType W, class S>
void view_tile(const S* __restrict x, void* view, int64_t at, int m, int frac_bits) {
    typedef typename Value<W>::Raw Raw;
    Raw* __restrict v = static_cast<Raw*>(view) + at;
    const double unit = exp2_of(-frac_bits);
    for (int j = 0; j < m; ++j) v[j] = fixed_view<W>(x[j], unit);
}

template <DType W, class S>
void float_view_tile(const S* __restrict x, void* view, int64_t at, int m) {
    typedef typename Value<W>::Raw Raw;
    Raw* __restrict v = static_cast<Raw*>(view) + at;
    for (int j = 0; j < m; ++j) v[j] = Value<W>::narrow(x[j]);
}

RS_FN int64_t width(DType t) {
    if (t == DType::f64 || t == DType::i64) return 8;
    return t == DType::bf16 || t == DType::f16 ? 2 : 4;
}

RS_FN void prefetch(const void* base, int64_t width, int64_t at) {
    if (base == nullptr) return;
    const char* p = static_cast<const char*>(base) + at * width;
    for (int64_t line = 0; line < kTile * width; line += 64) __builtin_prefetch(p + line);
}

// What the tile after next will touch: a stream rests between the loops of a tile, and the hardware prefetchers lose it.
RS_FN void prefetch_inputs(const StepArgs& s, int64_t at, int64_t end) {
    const int64_t ahead = at + 2 * kTile;
    if (ahead + kTile > end) return;
    prefetch(s.source, width(s.state), ahead);
    if (s.cur != s.source) prefetch(s.cur, width(s.state), ahead);
    prefetch(s.value, width(s.value_type), ahead);
}

RS_FN void prefetch_ahead(const StepArgs& s, int64_t at, int64_t end) {
    const int64_t ahead = at + 2 * kTile;
    prefetch_inputs(s, at, end);
    if (ahead + kTile > end) return;
    prefetch(s.out, width(s.state), ahead);
    prefetch(s.view, width(s.view_type), ahead);
}

RS_FN void prefetch_within(const void* base, int64_t width, int64_t at, int64_t end) {
    if (at + kTile <= end) prefetch(base, width, at);
}

template <class S>
void view_any(const S* x, void* view, DType type, int64_t at, int m, int frac_bits) {
    if (view == nullptr) return;
    with_value(type, [&](auto w) {
        if constexpr (is_integer<S>) view_tile<decltype(w)::value>(x, view, at, m, frac_bits);
        else float_view_tile<decltype(w)::value>(x, view, at, m);
    });
}

[[maybe_unused]] void note(Partial& p, int64_t index, double magnitude, bool bad) {
    if (magnitude > p.largest) p.largest = magnitude;
    if (!bad) return;
    if (p.bad++ == 0) p.first_bad = index;
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
