// The tile loops. Compiled once per instruction set; only `body` is visible outside.
// A tile passes through several simple loops over buffers that stay in the first-level cache, so that dtypes add up
// instead of multiplying. Tiles with an element near a limit are decided again, exactly, by a scalar loop.
#include "cpu_fused.hpp"
#include "cpu_planes.hpp"
#include "cpu_rows.hpp"
#include "cpu_scale.hpp"
#include "cpu_streams.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// ---- fixed-point states ----------------------------------------------------------------------------------------

// The view, and what the tile is looked at for.
template <DType W, bool HasView, class S>
Finished finish_tile(const S* __restrict x, void* view, int64_t at, int m, int frac_bits) {
    typedef typename Value<W>::Raw Raw;
    typedef typename FixedTraits<S>::Bits Bits;
    Raw* __restrict v = static_cast<Raw*>(view);
    const double unit = exp2_of(-frac_bits);
    Bits largest = 0;
    for (int j = 0; j < m; ++j) {
        const Bits u = static_cast<Bits>(x[j]), magnitude = x[j] < 0 ? Bits{0} - u : u;
        largest = magnitude > largest ? magnitude : largest;
        if constexpr (HasView) v[j] = fixed_view<W>(x[j], unit);
    }
    return {checksum_tile(x, at, m), largest};
}

// `view`: of the tile, or null; `at`: where the tile begins, which the checksum weighs.
template <class S>
Finished finish_tile_at(const S* x, void* view, DType type, int64_t at, int m, int frac_bits) {
    if (view == nullptr) return finish_tile<DType::f32, false>(x, view, at, m, frac_bits);
    return with_value(type, [&](auto w) { return finish_tile<decltype(w)::value, true>(x, view, at, m, frac_bits); });
}

template <DType V, class S>
bool quantise_tile(const void* value, S* __restrict d, int64_t at, int m, double gamma, int frac_bits) {
    typedef typename Value<V>::Wide C;
    const typename Value<V>::Raw* __restrict f = element<typename Value<V>::Raw>(value, at);
    const C g = static_cast<C>(gamma), unit = static_cast<C>(exp2_of(frac_bits));
    unsigned near = 0;
    for (int j = 0; j < m; ++j) {
        const C v = scaled_value(Value<V>::widen(f[j]), g, unit);
        d[j] = quantise<S>(v);
        near |= value_near<S>(v) ? 1u : 0u;
    }
    return near != 0;
}

template <AlphaKind KA, BetaKind KB, class S>
bool next_tile(const S* __restrict prev, const S* __restrict cur, const S* __restrict d, S* __restrict out, int m, const FixedCoef& coef) {
    const FixedCoef k = coef;
    unsigned near = 0;
    for (int j = 0; j < m; ++j) {
        const S c = KB == BetaKind::none ? S{0} : cur[j];
        out[j] = fixed_next<KA, KB>(prev[j], c, d[j], k);
        near |= next_near<KA, KB>(prev[j], c, d[j], k) ? 1u : 0u;
    }
    return near != 0;
}

template <AlphaKind KA, BetaKind KB, class S>
bool prev_tile(const S* __restrict next, const S* __restrict cur, const S* __restrict d, const uint8_t* __restrict carry, S* __restrict out, int m, const FixedCoef& coef) {
    const FixedCoef k = coef;
    unsigned near = 0;
    for (int j = 0; j < m; ++j) {
        const S c = KB == BetaKind::none ? S{0} : cur[j];
        out[j] = fixed_prev<KA, KB>(next[j], c, d[j], KA == AlphaKind::unit ? 0u : carry[j], k);
        near |= prev_near<KA, KB>(next[j], c, d[j], k) ? 1u : 0u;
    }
    return near != 0;
}

template <AlphaKind KA, class S>
void carry_tile(const S* __restrict prev, uint8_t* __restrict carry, int m, const FixedCoef& coef) {
    const FixedCoef k = coef;
    if (k.carry_bits == 0)  // beside a set that needs some
        __builtin_memset(carry, 0, static_cast<unsigned>(m));
    else if (k.carry_bits == 1)
        for (int j = 0; j < m; ++j) carry[j] = static_cast<uint8_t>(carry_of<KA, true>(prev[j], k));
    else
        for (int j = 0; j < m; ++j) carry[j] = static_cast<uint8_t>(carry_of<KA, false>(prev[j], k));
}

template <DType V, class S>
void exact_tile(const StepPlan& plan, const StepSet& set, const uint8_t* carry, S* out, int64_t at, int m, Partial& p) {
    typedef typename Value<V>::Wide C;
    const StepArgs& s = plan.args;
    const S* source = element<S>(s.source, at);
    const S* cur = element<S>(s.cur, at);
    const typename Value<V>::Raw* f = element<typename Value<V>::Raw>(s.value, at);
    const C gamma = static_cast<C>(set.gamma), unit = static_cast<C>(exp2_of(s.frac_bits));
    for (int j = 0; j < m; ++j) {
        const C v = scaled_value(Value<V>::widen(f[j]), gamma, unit);
        const Exact e = plan.inverse ? exact_prev<S>(source[j], cur[j], v, carry[j], set.fixed, s.frac_bits)
                                     : exact_next<S>(source[j], cur[j], v, set.fixed, s.frac_bits);
        out[j] = static_cast<S>(static_cast<typename FixedTraits<S>::Bits>(e.wide));
        note(p, at + j, e.magnitude, e.bad);
    }
}

template <class S>
bool combine_tile(const StepPlan& plan, const FixedCoef& coef, const S* d, uint8_t* carry, S* out, int64_t at, int m) {
    const StepArgs& s = plan.args;
    const S* source = element<S>(s.source, at);
    const S* cur = element<S>(s.cur, at);
    return with_alpha(coef.alpha_kind, [&](auto ka) {
        constexpr AlphaKind KA = decltype(ka)::value;
        if (!plan.inverse && s.carry_bits != 0) carry_tile<KA>(source, carry, m, coef);
        return with_beta(coef.beta_kind, [&](auto kb) {
            constexpr BetaKind KB = decltype(kb)::value;
            return plan.inverse ? prev_tile<KA, KB>(source, cur, d, carry, out, m, coef) : next_tile<KA, KB>(source, cur, d, out, m, coef);
        });
    });
}

template <class S>
void carry_any(const StepArgs& s, const FixedCoef& coef, uint8_t* carry, int64_t at, int m) {
    with_alpha(coef.alpha_kind, [&](auto ka) { carry_tile<decltype(ka)::value>(element<S>(s.source, at), carry, m, coef); });
}

template <bool Rows, class S>
void step_fixed(const StepPlan& plan, int64_t begin, int64_t end, Partial& p) {
    const StepArgs& s = plan.args;
    alignas(64) S d[kTile];
    alignas(64) S staged[kTile];
    alignas(64) uint8_t carry[kTile] = {};
    alignas(64) unsigned char seen[8 * kTile];
    // In place, results wait in `staged`: exact_tile reads the tile's inputs a second time, so these must still be there.
    const bool in_place = s.out == s.source || s.out == s.cur;
    const int64_t view_width = s.view == nullptr ? 0 : width(s.view_type);
    const bool fuse = sizeof(S) == 4 && can_fuse(plan);
    const bool past = kStreams && fuse && !in_place && s.n * (4 + view_width) >= kStreamBytes && is_line(s.out) && is_line(s.view);
    const double unit = exp2_of(-s.frac_bits);
    for (int64_t at = begin; at < end; at += kTile) {
        const int m = tile_length(at, end);
        const bool stream = past && m == kTile;
        S* target = static_cast<S*>(s.out) + at;
        S* out = in_place || stream ? staged : target;
        if (past) prefetch_inputs(s, at, end);
        else prefetch_ahead(s, at, end);
        unsigned char* view = s.view == nullptr ? nullptr : stream ? seen : static_cast<unsigned char*>(s.view) + at * view_width;
        bool near = false;
        Finished done{0, 0};
        if (plan.inverse) read_carry(s, carry, at, m);
        if constexpr (sizeof(S) == 4) {
            if (fuse) {
                for_segments<Rows>(plan, at, m, [&](int first, int count, const StepSet& set) {
                    if (!plan.inverse && s.carry_bits != 0) carry_any<S>(s, set.fixed, carry + first, at + first, count);
                    const FusedOut f = fused(plan, set, carry + first, out + first, view == nullptr ? nullptr : view + first * view_width, at + first, count);
                    near |= f.near;
                    done.largest = f.largest > done.largest ? f.largest : done.largest;
                });
                done.checksum = checksum_tile(out, at, m);
            }
        }
        if (!fuse) for_segments<Rows>(plan, at, m, [&](int first, int count, const StepSet& set) {
            near |= with_value(s.value_type, [&](auto v) { return quantise_tile<decltype(v)::value>(s.value, d + first, at + first, count, set.gamma, s.frac_bits); });
            near |= combine_tile(plan, set.fixed, d + first, carry + first, out + first, at + first, count);
        });
        if (!plan.inverse) write_carry(s, carry, at, m);  // carries are of prev alone: deciding again cannot change them
        if (!fuse) done = finish_tile_at(out, view, s.view_type, at, m, s.frac_bits);
        if (near || done.largest > static_cast<uint64_t>(FixedTraits<S>::limit)) {
            for_segments<Rows>(plan, at, m, [&](int first, int count, const StepSet& set) {
                with_value(s.value_type, [&](auto v) { exact_tile<decltype(v)::value>(plan, set, carry + first, out + first, at + first, count, p); });
            });
            done = finish_tile_at(out, view, s.view_type, at, m, s.frac_bits);
        } else {
            note(p, at, to_double(static_cast<int64_t>(done.largest)) * unit, false);
        }
        p.checksum += done.checksum;
        if (in_place) __builtin_memcpy(target, out, sizeof(S) * static_cast<unsigned>(m));
        if (stream) {
            stream_bytes(target, out, sizeof(S) * kTile);
            stream_bytes(static_cast<unsigned char*>(s.view) + at * view_width, seen, view_width * kTile);
        }
    }
    if (past) stream_end();
}

template <class S>
void encode_fixed(const EncodeArgs& s, int64_t begin, int64_t end, Partial& p) {
    alignas(64) S staged[kTile];
    alignas(64) unsigned char seen[8 * kTile];
    const double unit = exp2_of(-s.frac_bits);
    const int64_t view_width = s.view == nullptr ? 0 : width(s.view_type);
    const bool past = kStreams && s.n * (static_cast<int64_t>(sizeof(S)) + view_width) >= kStreamBytes && is_line(s.out) && is_line(s.view);
    const bool fuse = can_fuse(s);
    for (int64_t at = begin; at < end; at += kTile) {
        const int m = tile_length(at, end);
        const bool stream = past && m == kTile;
        S* target = static_cast<S*>(s.out) + at;
        S* out = stream ? staged : target;
        unsigned char* view = s.view == nullptr ? nullptr : stream ? seen : static_cast<unsigned char*>(s.view) + at * view_width;
        const int64_t ahead = at + 2 * kTile;
        prefetch_within(s.x, width(s.value_type), ahead, end);
        if (!past) prefetch_within(s.out, sizeof(S), ahead, end);
        if (!past) prefetch_within(s.view, width(s.view_type), ahead, end);
        bool near = false;
        Finished done{0, 0};
        if constexpr (sizeof(S) == 4) {
            if (fuse) {
                const FusedOut f = fused_encode(s, out, view, at, m);
                near = f.near;
                done = {checksum_tile(out, at, m), f.largest};
            }
        }
        if (!fuse) near = with_value(s.value_type, [&](auto v) { return quantise_tile<decltype(v)::value>(s.x, out, at, m, 1.0, s.frac_bits); });
        if (near) with_value(s.value_type, [&](auto v) {
            constexpr DType V = decltype(v)::value;
            typedef typename Value<V>::Wide C;
            const typename Value<V>::Raw* f = element<typename Value<V>::Raw>(s.x, at);
            for (int j = 0; j < m; ++j) {
                const Exact e = exact_encoded<S>(Value<V>::widen(f[j]) * static_cast<C>(exp2_of(s.frac_bits)), s.frac_bits);
                out[j] = static_cast<S>(e.wide);
                note(p, at + j, e.magnitude, e.bad);
            }
        });
        if (!fuse || near) done = finish_tile_at(out, view, s.view_type, at, m, s.frac_bits);
        if (!near) note(p, at, to_double(static_cast<int64_t>(done.largest)) * unit, false);
        p.checksum += done.checksum;
        if (stream) {
            stream_bytes(target, out, sizeof(S) * kTile);
            stream_bytes(static_cast<unsigned char*>(s.view) + at * view_width, seen, view_width * kTile);
        }
    }
    if (past) stream_end();
}

// ---- float states ----------------------------------------------------------------------------------------------

template <class S>
void note_floats(const S* __restrict x, int64_t at, int m, Partial& p) {
    typedef decltype(bits_of(S{})) Bits;
    const Bits mask = static_cast<Bits>(~Bits{0}) >> 1, infinite = sizeof(S) == 4 ? static_cast<Bits>(0x7f800000u) : static_cast<Bits>(0x7ff0000000000000ull);
    Bits largest = 0;
    for (int j = 0; j < m; ++j) {
        const Bits a = bits_of(x[j]) & mask;
        largest = a > largest ? a : largest;
    }
    S top;
    __builtin_memcpy(&top, &largest, sizeof top);
    if (largest < infinite) return note(p, at, static_cast<double>(top), false);
    for (int j = 0; j < m; ++j)
        if ((bits_of(x[j]) & mask) >= infinite) note(p, at + j, double_of(0x7ff0000000000000ull), true);
}

template <DType V, class C>
void load_tile(const void* value, C* __restrict f, int64_t at, int m) {
    const typename Value<V>::Raw* __restrict raw = element<typename Value<V>::Raw>(value, at);
    for (int j = 0; j < m; ++j) f[j] = static_cast<C>(Value<V>::widen(raw[j]));
}

template <FloatAlpha KA, bool HasBeta, bool Inverse, class S, class C>
void float_tile(const S* __restrict source, const S* __restrict cur, const C* __restrict f, S* __restrict out, int m, const FloatCoef<C>& coef) {
    const FloatCoef<C> k = coef;
    for (int j = 0; j < m; ++j) {
        const C from = static_cast<C>(source[j]), c = HasBeta ? static_cast<C>(cur[j]) : C{0};
        out[j] = static_cast<S>(Inverse ? float_inverse<KA, HasBeta>(from, c, f[j], k) : float_forward<KA, HasBeta>(from, c, f[j], k));
    }
}

template <FloatAlpha KA, class S, class C>
void float_directions(const StepPlan& plan, const C* f, S* out, int64_t at, int m, const FloatCoef<C>& k, bool beta) {
    const S* source = element<S>(plan.args.source, at);
    const S* cur = element<S>(plan.args.cur, at);
    if (plan.inverse) {
        if (beta) float_tile<KA, true, true>(source, cur, f, out, m, k);
        else float_tile<KA, false, true>(source, cur, f, out, m, k);
    } else {
        if (beta) float_tile<KA, true, false>(source, cur, f, out, m, k);
        else float_tile<KA, false, false>(source, cur, f, out, m, k);
    }
}

template <class S, class C>
void combine_floats(const StepPlan& plan, const StepSet& set, const C* f, S* out, int64_t at, int m) {
    const FloatCoef<C> k{static_cast<C>(set.alpha), static_cast<C>(set.beta), static_cast<C>(set.gamma)};
    const bool beta = set.beta != 0.0;
    if (set.alpha == 1.0) float_directions<FloatAlpha::one>(plan, f, out, at, m, k, beta);
    else if (set.alpha == -1.0) float_directions<FloatAlpha::minus_one>(plan, f, out, at, m, k, beta);
    else float_directions<FloatAlpha::general>(plan, f, out, at, m, k, beta);
}

template <bool Rows, class S, class C>
void step_float(const StepPlan& plan, int64_t begin, int64_t end, Partial& p) {
    const StepArgs& s = plan.args;
    alignas(64) C f[kTile];
    alignas(64) S staged[kTile];
    const bool in_place = s.out == s.source || s.out == s.cur;
    for (int64_t at = begin; at < end; at += kTile) {
        const int m = tile_length(at, end);
        S* target = static_cast<S*>(s.out) + at;
        S* out = in_place ? staged : target;
        prefetch_ahead(s, at, end);
        with_value(s.value_type, [&](auto v) { load_tile<decltype(v)::value>(s.value, f, at, m); });
        for_segments<Rows>(plan, at, m, [&](int first, int count, const StepSet& set) { combine_floats(plan, set, f + first, out + first, at + first, count); });
        note_floats(out, at, m, p);
        p.checksum += checksum_tile(out, at, m);
        view_any(out, s.view, s.view_type, at, m, 0);
        if (in_place) __builtin_memcpy(target, out, sizeof(S) * static_cast<unsigned>(m));
    }
}

template <class S>
void encode_float(const EncodeArgs& s, int64_t begin, int64_t end, Partial& p) {
    for (int64_t at = begin; at < end; at += kTile) {
        const int m = tile_length(at, end);
        S* out = static_cast<S*>(s.out) + at;
        const int64_t ahead = at + 8 * kTile;  // a light loop passes a tile sooner
        prefetch_within(s.x, width(s.value_type), ahead, end);
        prefetch_within(s.out, sizeof(S), ahead, end);
        prefetch_within(s.view, width(s.view_type), ahead, end);
        with_value(s.value_type, [&](auto v) { load_tile<decltype(v)::value>(s.x, out, at, m); });
        note_floats(out, at, m, p);
        p.checksum += checksum_tile(out, at, m);
        view_any(out, s.view, s.view_type, at, m, 0);
    }
}

// ---- entries ---------------------------------------------------------------------------------------------------

template <bool Rows>
void step_as(const StepPlan& plan, int64_t begin, int64_t end, Partial& p) {
    switch (plan.args.state) {
        case DType::i32: return step_fixed<Rows, int32_t>(plan, begin, end, p);
        case DType::i64: return step_fixed<Rows, int64_t>(plan, begin, end, p);
        case DType::f64: return step_float<Rows, double, double>(plan, begin, end, p);
        default: return plan.wide ? step_float<Rows, float, double>(plan, begin, end, p) : step_float<Rows, float, float>(plan, begin, end, p);
    }
}

void step(const StepPlan& plan, int64_t begin, int64_t end, Partial& p) {
    if (plan.args.row_length != 0) step_as<true>(plan, begin, end, p);
    else step_as<false>(plan, begin, end, p);
}

void encode(const EncodeArgs& s, int64_t begin, int64_t end, Partial& p) {
    switch (s.state) {
        case DType::i32: return encode_fixed<int32_t>(s, begin, end, p);
        case DType::i64: return encode_fixed<int64_t>(s, begin, end, p);
        case DType::f64: return encode_float<double>(s, begin, end, p);
        default: return encode_float<float>(s, begin, end, p);
    }
}

template <class S>
void decode_as(const DecodeArgs& s, int64_t begin, int64_t end) {
    const int64_t view_width = width(s.view_type);
    if (kStreams && s.n * view_width >= kStreamBytes && is_line(s.view)) {
        alignas(64) unsigned char seen[8 * kTile];
        for (; begin + kTile <= end; begin += kTile) {
            view_any(element<S>(s.state_data, begin), seen, s.view_type, 0, kTile, s.frac_bits);
            stream_bytes(static_cast<unsigned char*>(s.view) + begin * view_width, seen, view_width * kTile);
        }
        stream_end();
    }
    for (int64_t at = begin; at < end; at += kStretch) {
        const int m = static_cast<int>(end - at < kStretch ? end - at : kStretch);
        view_any(element<S>(s.state_data, at), s.view, s.view_type, at, m, s.frac_bits);
    }
}

void decode(const DecodeArgs& s, int64_t begin, int64_t end, Partial&) {
    switch (s.state) {
        case DType::i32: return decode_as<int32_t>(s, begin, end);
        case DType::i64: return decode_as<int64_t>(s, begin, end);
        case DType::f64: return decode_as<double>(s, begin, end);
        default: return decode_as<float>(s, begin, end);
    }
}

template <class S>
void checksum_as(const ChecksumArgs& s, int64_t begin, int64_t end, Partial& p) {
    for_tiles_in_streams(begin, end, [&](int64_t at) { p.checksum += checksum_tile(element<S>(s.data, at), at, tile_length(at, end)); });
}

void checksum(const ChecksumArgs& s, int64_t begin, int64_t end, Partial& p) {
    switch (s.state) {
        case DType::i32: return checksum_as<int32_t>(s, begin, end, p);
        case DType::i64: return checksum_as<int64_t>(s, begin, end, p);
        case DType::f64: return checksum_as<double>(s, begin, end, p);
        default: return checksum_as<float>(s, begin, end, p);
    }
}

}  // namespace

const CpuBody body = {step, encode, decode, checksum, scale};

}  // namespace REVSTEP_ISA
}  // namespace revstep
