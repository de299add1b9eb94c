// Multiples of one array: read once, all outputs written by one loop. Included by cpu_body.cpp only, as cpu_tiles.hpp is.
#pragma once

#include "cpu_rows.hpp"
#include "cpu_streams.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <DType V, DType W>
RS_FN typename Value<W>::Raw scaled(typename Value<V>::Wide x, typename Value<V>::Wide factor) {
    const typename Value<V>::Wide product = x * factor;
    if constexpr (V == W) return Value<V>::narrow(product);
    else return Value<W>::narrow(Value<V>::widen(Value<V>::narrow(product)));
}

// N products in V, then one in W.
template <DType V, DType W, int N>
void scale_loop(const void* g, void* const* out, const double* factor, int64_t m) {
    typedef typename Value<V>::Raw Raw;
    typedef typename Value<V>::Wide C;
    const Raw* __restrict x = static_cast<const Raw*>(g);
    Raw* __restrict y0 = static_cast<Raw*>(out[0]);
    Raw* __restrict y1 = static_cast<Raw*>(out[N > 1 ? 1 : 0]);
    typename Value<W>::Raw* __restrict z = static_cast<typename Value<W>::Raw*>(out[N]);
    const C a = static_cast<C>(factor[0]), b = static_cast<C>(factor[N > 1 ? 1 : 0]), c = static_cast<C>(factor[N]);
    for (int64_t j = 0; j < m; ++j) {
        const C v = Value<V>::widen(x[j]);
        if constexpr (N > 0) y0[j] = scaled<V, V>(v, a);
        if constexpr (N > 1) y1[j] = scaled<V, V>(v, b);
        z[j] = scaled<V, W>(v, c);
    }
}

RS_FN DType type_of(const ScaleArgs& s, int k) { return k + 1 < s.count ? s.value_type : s.last_type; }

RS_FN void* moved(void* base, DType type, int64_t at) { return static_cast<unsigned char*>(base) + at * width(type); }

// Elements [at, at + m) with one set of factors, to `to`. What a factor of zero leaves is not looked at by the loop.
template <DType V>
void scale_run(const ScaleArgs& s, const double* factors, int64_t at, int64_t m, void* const* to) {
    typedef typename Value<V>::Raw Raw;
    const void* g = element<Raw>(s.g, at);
    void* out[kMaxScaled];
    double factor[kMaxScaled];
    int count = 0;
    DType last = s.value_type;
    for (int k = 0; k < s.count; ++k) {
        const DType type = type_of(s, k);
        if (factors[k] == 0.0) {
            __builtin_memset(to[k], 0, static_cast<unsigned long>(m * width(type)));
            continue;
        }
        out[count] = to[k];
        factor[count++] = factors[k];
        last = type;
    }
    if (count == 0) return;
    with_value(last, [&](auto w) {
        constexpr DType W = decltype(w)::value;
        if (count == 1) scale_loop<V, W, 0>(g, out, factor, m);
        else if (count == 2) scale_loop<V, W, 1>(g, out, factor, m);
        else scale_loop<V, W, 2>(g, out, factor, m);
    });
}

// Elements [at, at + m), to `to`.
template <DType V>
void scale_part(const ScaleArgs& s, int64_t at, int64_t m, void* const* to) {
    if (s.row_length == 0) return scale_run<V>(s, s.factor, at, m, to);
    for_runs<true>(s, at, static_cast<int>(m), [&](int first, int count, bool second) {
        void* part[kMaxScaled];
        for (int k = 0; k < s.count; ++k) part[k] = moved(to[k], type_of(s, k), first);
        scale_run<V>(s, second ? s.factor1 : s.factor, at + first, count, part);
    });
}

void scale(const ScaleArgs& s, int64_t begin, int64_t end, Partial&) {
    constexpr int64_t piece = 4 * kTile;  // of outputs past the cache
    alignas(64) unsigned char made[kMaxScaled][8 * piece];
    int64_t bytes = 0;
    bool past = kStreams;
    for (int k = 0; k < s.count; ++k) {
        bytes += s.n * width(type_of(s, k));
        past = past && is_line(s.out[k]);
    }
    past = past && bytes >= kStreamBytes;
    const int64_t stretch = past ? piece : s.row_length == 0 ? end - begin : kStretch;
    with_value(s.value_type, [&](auto v) {
        for (int64_t at = begin; at < end; at += stretch) {
            const int64_t m = end - at < stretch ? end - at : stretch;
            const bool stream = past && m == stretch;
            void* to[kMaxScaled];
            for (int k = 0; k < s.count; ++k) to[k] = stream ? made[k] : moved(s.out[k], type_of(s, k), at);
            scale_part<decltype(v)::value>(s, at, m, to);
            for (int k = 0; stream && k < s.count; ++k) stream_bytes(moved(s.out[k], type_of(s, k), at), made[k], m * width(type_of(s, k)));
        }
    });
    if (past) stream_end();
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
