// Steps of float states on the device, 8 consecutive elements a thread and turn. A group that has a number that is not
// finite is done again, one element at a time, by float_group, which also has what fits no vector.
#include "cuda_eight.cuh"
#include "cuda_steps.hpp"

namespace revstep {
namespace {

template <class S, class C, bool Inverse, bool Rows>
RS_COLD void group_apart(const StepPlan& plan, int64_t g) {
    Tally tally;
    float_group<S, C, Inverse, Rows>(plan, g, tally);
    add(tally, plan.args.stats, 0u);
}

template <class W, class S>
__device__ __forceinline__ void store_view(void* view, int64_t g, const Pack<S>& x) {
    Pack<W> out;
#pragma unroll
    for (int v = 0; v < kEach; ++v) narrow<true>(out.at[v], static_cast<decltype(real(W{}))>(x.at[v]));
    static_cast<Pack<W>*>(view)[g] = out;
}

// S: of the state, and of the arithmetic. V: of the increments, and of the float view where that is not float32.
template <class S, class V, bool Inverse, bool Rows>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 4 ? 3 : 2) step_eight(const __grid_constant__ EightPlan plan) {
    typedef decltype(bits_of(S{})) Bits;
    constexpr Bits infinity = sizeof(S) == 4 ? Bits{0x7f800000u} : static_cast<Bits>(0x7ff0000000000000ull);
    const StepArgs& s = plan.args;
    const Pack<uint32_t> weight = weights();
    Bits largest = 0;
    unsigned long long checksum = 0;
    const int64_t groups = s.n / kEach;
    for (int64_t g = first_index(); g < groups; g += stride()) {
        const Pack<S> source = static_cast<const Pack<S>*>(s.source)[g];
        const Pack<V> value = static_cast<const Pack<V>*>(s.value)[g];
        int which = 0;
        if constexpr (Rows) which = s.choice[row_of(g * kEach, s.row_length, plan.per_row)] != 0 ? 1 : 0;
        const StepSet& set = plan.set[which];
        const FloatCoef<S> k{static_cast<S>(set.alpha), static_cast<S>(set.beta), static_cast<S>(set.gamma)};
        Pack<S> out;
        if (set.beta != 0.0) {
            const Pack<S> cur = static_cast<const Pack<S>*>(s.cur)[g];
#pragma unroll
            for (int v = 0; v < kEach; ++v) out.at[v] = combine_floats<Inverse, true>(source.at[v], cur.at[v], static_cast<S>(real(value.at[v])), k);
        } else {
#pragma unroll
            for (int v = 0; v < kEach; ++v) out.at[v] = combine_floats<Inverse, false>(source.at[v], S{0}, static_cast<S>(real(value.at[v])), k);
        }
        Bits here = 0;
        uint64_t sum = 0;
#pragma unroll
        for (int v = 0; v < kEach; ++v) {
            const Bits bits = bits_of(abs_of(out.at[v]));
            here = bits > here ? bits : here;
            sum += checksum_term(bits_of(out.at[v]), weight.at[v]);
        }
        if (here >= infinity) {
            group_apart<S, S, Inverse, Rows>(plan, g);
            continue;
        }
        largest = here > largest ? here : largest;
        checksum += sum * checksum_outer(g * kEach);
        static_cast<Pack<S>*>(s.out)[g] = out;
        if (s.view == nullptr) continue;
        if (s.view_type == s.value_type) store_view<V>(s.view, g, out);
        else store_view<float>(s.view, g, out);
    }
    if (first_index() == 0 && groups * kEach < s.n) group_apart<S, S, Inverse, Rows>(plan, groups);
    double size;
    if constexpr (sizeof(S) == 4) size = static_cast<double>(float_of(largest));
    else size = double_of(largest);
    publish_good(checksum, bits_of(size), s.stats);
}

template <class S, class C, bool Inverse, bool Rows>
__global__ void __launch_bounds__(kThreads) step_each(const __grid_constant__ EightPlan plan) {
    Tally tally;
    for (int64_t g = first_index(); g * kEach < plan.args.n; g += stride()) float_group<S, C, Inverse, Rows>(plan, g, tally);
    publish(tally, plan.args.stats);
}

typedef void (*Kernel)(const EightPlan);

// Dtypes without a kernel of their own: null.
template <bool Inverse, bool Rows>
Kernel choose_eight(const StepPlan& plan) {
    const StepArgs& s = plan.args;
    if (!fits_eight(s) || (s.view != nullptr && s.view_type != s.value_type && s.view_type != DType::f32)) return nullptr;
    if (s.state == DType::f64) return s.value_type == DType::f64 ? step_eight<double, double, Inverse, Rows> : nullptr;
    switch (s.value_type) {
        case DType::f32: return step_eight<float, float, Inverse, Rows>;
        case DType::bf16: return step_eight<float, Bf16, Inverse, Rows>;
        case DType::f16: return step_eight<float, F16, Inverse, Rows>;
        default: return nullptr;
    }
}

template <bool Inverse, bool Rows>
Kernel choose(const StepPlan& plan) {
    const Kernel eight = choose_eight<Inverse, Rows>(plan);
    if (eight != nullptr) return eight;
    if (plan.args.state == DType::f64) return step_each<double, double, Inverse, Rows>;
    return plan.wide ? step_each<float, double, Inverse, Rows> : step_each<float, float, Inverse, Rows>;
}

template <bool Inverse>
Kernel choose(const StepPlan& plan) {
    return plan.args.row_length != 0 ? choose<Inverse, true>(plan) : choose<Inverse, false>(plan);
}

}  // namespace

void step_float(const StepPlan& plan, void* stream) {
    launch<EightPlan>(plan.inverse ? choose<true>(plan) : choose<false>(plan), eight_plan(plan), (plan.args.n + kEach - 1) / kEach, static_cast<cudaStream_t>(stream));
}

}  // namespace revstep
