// Steps of fixed-point states on the device: a thread has 8 consecutive elements a turn, in words of 16 bytes.
//
// What a step needs of each element is loaded before anything is computed with it. A group of 8 that has an element near
// the limits is done again, one element at a time, by fixed_group, which also has the last group and every step whose
// dtypes, alignment or rows fit no vector. A magnitude is compared as an integer and converted once a thread.
#include "cuda_eight.cuh"
#include "cuda_steps.hpp"

namespace revstep {
namespace {

// Kinds of coefficients that are worth a kernel of their own; `any` is right for all.
enum class Kinds : int { unit, unit_whole, shift, any };

RS_FN constexpr AlphaKind alpha_of(Kinds k) { return k == Kinds::shift ? AlphaKind::shift : k == Kinds::any ? AlphaKind::general : AlphaKind::unit; }
RS_FN constexpr BetaKind beta_of(Kinds k) {
    return k == Kinds::unit ? BetaKind::none : k == Kinds::unit_whole ? BetaKind::whole : k == Kinds::shift ? BetaKind::shift : BetaKind::general;
}

Kinds kinds_of(const FixedCoef& k) {
    if (k.alpha_kind == AlphaKind::unit && k.beta_kind == BetaKind::none) return Kinds::unit;
    if (k.alpha_kind == AlphaKind::unit && k.beta_kind == BetaKind::whole) return Kinds::unit_whole;
    return k.alpha_kind == AlphaKind::shift && k.beta_kind == BetaKind::shift ? Kinds::shift : Kinds::any;
}

// ---- 8 elements ------------------------------------------------------------------------------------------------

template <class C, class S>
__device__ __forceinline__ C number(S x) {
    if constexpr (sizeof(C) == 8) return to_double(x);
    else return to_float(x);
}

// D, and anything where value_near.
__device__ __forceinline__ int32_t quantise_or_any(float v, int32_t) { return rint_i32_or_any(v); }
__device__ __forceinline__ int64_t quantise_or_any(float v, int64_t) { return rint_i64(static_cast<double>(v)); }
__device__ __forceinline__ int64_t quantise_or_any(double v, int64_t) { return rint_i64(v); }

template <class S>
__device__ __forceinline__ typename FixedTraits<S>::Bits size_of(S x) {
    typedef typename FixedTraits<S>::Bits Bits;
    return x < 0 ? Bits{0} - static_cast<Bits>(x) : static_cast<Bits>(x);
}

template <class S, bool Inverse, bool Rows>
RS_COLD Tally tally_of(const StepPlan& plan, int64_t g) {
    Tally tally;
    fixed_group<S, Inverse, Rows>(plan, g, tally);
    return tally;
}

template <class S, bool Inverse, bool Rows>
RS_COLD void group_apart(const StepPlan& plan, int64_t g) {
    add(tally_of<S, Inverse, Rows>(plan, g), plan.args.stats, 0u);
}

template <class W, class S>
__device__ __forceinline__ void store_view(void* view, int64_t g, const Pack<S>& x, int frac_bits) {
    typedef decltype(real(W{})) R;
    const R unit = static_cast<R>(exp2_of(-frac_bits));
    Pack<W> out;
#pragma unroll
    for (int v = 0; v < kEach; ++v) narrow<true>(out.at[v], number<R>(x.at[v]) * unit);
    static_cast<Pack<W>*>(view)[g] = out;
}

// V: of the increments, and of the float view where that is not float32.
template <class S, class V, Kinds K, bool Inverse, bool Rows>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 4 ? 3 : 2) step_eight(const __grid_constant__ EightPlan plan) {
    typedef decltype(real(V{})) C;
    constexpr AlphaKind KA = alpha_of(K);
    constexpr BetaKind KB = beta_of(K);
    const StepArgs& s = plan.args;
    const C unit = static_cast<C>(exp2_of(s.frac_bits));
    const Pack<uint32_t> weight = weights();
    typename FixedTraits<S>::Bits largest = 0;
    unsigned long long checksum = 0;
    const int64_t groups = s.n / kEach;
    for (int64_t g = first_index(); g < groups; g += stride()) {
        const Pack<S> source = static_cast<const Pack<S>*>(s.source)[g];
        const Pack<V> value = static_cast<const Pack<V>*>(s.value)[g];
        Pack<S> cur{};
        if constexpr (KB != BetaKind::none) cur = static_cast<const Pack<S>*>(s.cur)[g];
        uint64_t carries = 0;
        if constexpr (Inverse && KA != AlphaKind::unit) carries = load_carries(s, g);
        int which = 0;
        if constexpr (Rows) which = s.choice[row_of(g * kEach, s.row_length, plan.per_row)] != 0 ? 1 : 0;
        const FixedCoef& k = plan.set[which].fixed;
        const C gamma = static_cast<C>(plan.set[which].gamma);
        bool near = false;
        typename FixedTraits<S>::Bits here = 0;
        Pack<S> out;
#pragma unroll
        for (int v = 0; v < kEach; ++v) {
            const C scaled = scaled_value(static_cast<C>(real(value.at[v])), gamma, unit);
            uint32_t carry = 0;
            if constexpr (Inverse && KA != AlphaKind::unit) carry = carry_in(carries, v);
            const Combined<S> c = combine<KA, KB, Inverse>(source.at[v], cur.at[v], quantise_or_any(scaled, S{}), carry, k);
            out.at[v] = c.x;
            near = near | c.near | value_near<S>(scaled);
            here = size_of(c.x) > here ? size_of(c.x) : here;
        }
        if (near || here > static_cast<typename FixedTraits<S>::Bits>(FixedTraits<S>::limit)) {
            group_apart<S, Inverse, Rows>(plan, g);
            continue;
        }
        largest = here > largest ? here : largest;
        if (!Inverse && KA != AlphaKind::unit && s.carry_bits != 0) {
            carries = 0;
#pragma unroll
            for (int v = 0; v < kEach; ++v) {
                const uint32_t carry = KA == AlphaKind::shift ? carry_of<AlphaKind::shift, false>(source.at[v], k) : carry_any(source.at[v], k);
                carries |= static_cast<uint64_t>(carry) << (8 * v);
            }
            store_carries(s, g, carries);
        }
        uint64_t sum = 0;
#pragma unroll
        for (int v = 0; v < kEach; ++v) sum += checksum_term(bits_of(out.at[v]), weight.at[v]);
        checksum += sum * checksum_outer(g * kEach);
        static_cast<Pack<S>*>(s.out)[g] = out;
        if (s.view == nullptr) continue;
        if (s.view_type == s.value_type) store_view<V>(s.view, g, out, s.frac_bits);
        else store_view<float>(s.view, g, out, s.frac_bits);
    }
    if (first_index() == 0) {
        if (groups * kEach < s.n) group_apart<S, Inverse, Rows>(plan, groups);
        else if (!Inverse && s.carry_bits != 0) clear_rest(s, groups);
    }
    publish_good(checksum, bits_of(to_double(static_cast<int64_t>(largest)) * exp2_of(-s.frac_bits)), s.stats);
}

template <class S, bool Inverse, bool Rows>
__global__ void __launch_bounds__(kThreads) step_each(const __grid_constant__ EightPlan plan) {
    Tally tally;
    for (int64_t g = first_index(); g * kEach < plan.args.n; g += stride()) tally.merge(tally_of<S, Inverse, Rows>(plan, g));
    publish(tally, plan.args.stats);
}

// ---- which kernel ----------------------------------------------------------------------------------------------

typedef void (*Kernel)(const EightPlan);

template <class S, class V, bool Inverse>
Kernel choose_kinds(const StepPlan& plan) {
    constexpr bool several = sizeof(S) == 4;  // of int64 states the kernels for any coefficients do nearly as well
    const Kinds kinds = kinds_of(plan.set[0].fixed);
    if (plan.args.row_length != 0) {
        if constexpr (several)
            if (kinds == Kinds::shift && kinds_of(plan.set[1].fixed) == Kinds::shift) return step_eight<S, V, Kinds::shift, Inverse, true>;
        return step_eight<S, V, Kinds::any, Inverse, true>;
    }
    if (kinds == Kinds::unit) return step_eight<S, V, Kinds::unit, Inverse, false>;
    if constexpr (several) {
        if (kinds == Kinds::unit_whole) return step_eight<S, V, Kinds::unit_whole, Inverse, false>;
        if (kinds == Kinds::shift) return step_eight<S, V, Kinds::shift, Inverse, false>;
    }
    return step_eight<S, V, Kinds::any, Inverse, false>;
}

// Dtypes without a kernel of their own: null.
template <class S, bool Inverse>
Kernel choose_eight(const StepPlan& plan) {
    const StepArgs& s = plan.args;
    if (!fits_eight(s) || (s.view != nullptr && s.view_type != s.value_type && s.view_type != DType::f32)) return nullptr;
    switch (s.value_type) {
        case DType::f32: return choose_kinds<S, float, Inverse>(plan);
        case DType::bf16: return choose_kinds<S, Bf16, Inverse>(plan);
        case DType::f16:
            if constexpr (sizeof(S) == 4) return choose_kinds<S, F16, Inverse>(plan);
            else return nullptr;
        default:
            if constexpr (sizeof(S) == 8) return choose_kinds<S, double, Inverse>(plan);
            else return nullptr;
    }
}

template <class S, bool Inverse>
Kernel choose(const StepPlan& plan) {
    const Kernel eight = choose_eight<S, Inverse>(plan);
    if (eight != nullptr) return eight;
    return plan.args.row_length != 0 ? step_each<S, Inverse, true> : step_each<S, Inverse, false>;
}

Kernel choose(const StepPlan& plan) {
    if (plan.args.state == DType::i64) return plan.inverse ? choose<int64_t, true>(plan) : choose<int64_t, false>(plan);
    return plan.inverse ? choose<int32_t, true>(plan) : choose<int32_t, false>(plan);
}

}  // namespace

void step_fixed(const StepPlan& plan, void* stream) {
    launch<EightPlan>(choose(plan), eight_plan(plan), (plan.args.n + kEach - 1) / kEach, static_cast<cudaStream_t>(stream));
}

}  // namespace revstep
