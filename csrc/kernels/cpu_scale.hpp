// Multiples of one array: read once, every output written from the first-level cache. Included by cpu_body.cpp only, as cpu_tiles.hpp is.
#pragma once

#include "cpu_rows.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <DType V, DType W>
void scale_tile(const void* g, void* out, int64_t at, int m, double factor) {
    typedef typename Value<V>::Wide C;
    typedef typename Value<W>::Raw Out;
    const typename Value<V>::Raw* __restrict x = element<typename Value<V>::Raw>(g, at);
    Out* __restrict y = static_cast<Out*>(out) + at;
    if (factor == 0.0) {
        __builtin_memset(y, 0, sizeof(Out) * static_cast<unsigned>(m));
        return;
    }
    const C k = static_cast<C>(factor);
    for (int j = 0; j < m; ++j) {
        const C product = Value<V>::widen(x[j]) * k;
        if constexpr (V == W) y[j] = Value<V>::narrow(product);
        else y[j] = Value<W>::narrow(Value<V>::widen(Value<V>::narrow(product)));
    }
}

RS_FN void scale_into(const ScaleArgs& s, int k, int64_t at, int m, double factor) {
    with_value(s.value_type, [&](auto v) {
        constexpr DType V = decltype(v)::value;
        if (k + 1 < s.count) return scale_tile<V, V>(s.g, s.out[k], at, m, factor);
        with_value(s.last_type, [&](auto w) { scale_tile<V, decltype(w)::value>(s.g, s.out[k], at, m, factor); });
    });
}

template <bool Rows>
void scale_as(const ScaleArgs& s, int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kTile) {
        const int m = tile_length(at, end);
        prefetch_far(s.g, width(s.value_type), at, end);
        for (int k = 0; k < s.count; ++k) prefetch_far(s.out[k], width(k + 1 < s.count ? s.value_type : s.last_type), at, end);
        for_runs<Rows>(s, at, m, [&](int first, int count, bool second) {
            for (int k = 0; k < s.count; ++k) scale_into(s, k, at + first, count, second ? s.factor1[k] : s.factor[k]);
        });
    }
}

void scale(const ScaleArgs& s, int64_t begin, int64_t end, Partial&) {
    if (s.row_length != 0) scale_as<true>(s, begin, end);
    else scale_as<false>(s, begin, end);
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
