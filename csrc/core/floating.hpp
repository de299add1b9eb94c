// Float states: the plain recurrence, every operation rounded once in C.
#pragma once

#include "portable.hpp"

namespace revstep {

enum class FloatAlpha : int { one, minus_one, general };

template <class C>
struct FloatCoef {
    C alpha, beta, gamma;
};

template <FloatAlpha KA, bool HasBeta, class C>
RS_FN C float_forward(C prev, C cur, C f, const FloatCoef<C>& k) {
    C t = prev;
    if constexpr (KA != FloatAlpha::one) t = k.alpha * prev;
    if constexpr (HasBeta) t = t + k.beta * cur;
    return t + k.gamma * f;
}

template <FloatAlpha KA, bool HasBeta, class C>
RS_FN C float_inverse(C next, C cur, C f, const FloatCoef<C>& k) {
    C t = next;
    if constexpr (HasBeta) t = t - k.beta * cur;
    t = t - k.gamma * f;
    if constexpr (KA == FloatAlpha::minus_one) t = -t;
    if constexpr (KA == FloatAlpha::general) t = t / k.alpha;
    return t;
}

}  // namespace revstep
