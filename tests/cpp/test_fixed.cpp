// The fixed-point functors against the definition, on edges and at random; broken variants must be noticed.
#include <vector>

#include "check.hpp"
#include "core/fixed.hpp"
#include "oracle.hpp"

using namespace revstep;

namespace {

template <AlphaKind V> struct A { static constexpr AlphaKind value = V; };
template <BetaKind V> struct B { static constexpr BetaKind value = V; };

template <class F>
auto with_kinds(const FixedCoef& k, F f) {
    const auto beta = [&](auto a) {
        if (k.beta_kind == BetaKind::none) return f(a, B<BetaKind::none>{});
        if (k.beta_kind == BetaKind::whole) return f(a, B<BetaKind::whole>{});
        if (k.beta_kind == BetaKind::shift) return f(a, B<BetaKind::shift>{});
        return f(a, B<BetaKind::general>{});
    };
    if (k.alpha_kind == AlphaKind::unit) return beta(A<AlphaKind::unit>{});
    if (k.alpha_kind == AlphaKind::shift) return beta(A<AlphaKind::shift>{});
    return beta(A<AlphaKind::general>{});
}

struct Outcome {
    int64_t x;
    bool bad;
};

// What a launcher does with one element; `v` is the scaled value.
struct Real {
    template <class S, class C> static S increment(C v) { return quantise<S>(v); }
    template <class S> static uint32_t carry(S prev, const FixedCoef& k) {
        if (k.carry_bits == 0) return 0;
        if (k.alpha_kind == AlphaKind::shift) return carry_of<AlphaKind::shift, false>(prev, k);
        return k.carry_bits == 1 ? carry_of<AlphaKind::general, true>(prev, k) : carry_of<AlphaKind::general, false>(prev, k);
    }
    template <class S, class C> static Outcome next(S p, S c, C v, const FixedCoef& k) {
        return with_kinds(k, [&](auto a, auto b) {
            const S d = increment<S>(v), x = fixed_next<decltype(a)::value, decltype(b)::value>(p, c, d, k);
            if (!value_near<S>(v) && !next_near<decltype(a)::value, decltype(b)::value>(p, c, d, k) && oracle::magnitude(x) <= oracle::limit<S>) return Outcome{x, false};
            const Exact e = exact_next<S>(p, c, v, k, 0);
            return Outcome{oracle::low_bits<S>(e.wide), e.bad};
        });
    }
    template <class S, class C> static Outcome prev(S n, S c, C v, uint32_t carry, const FixedCoef& k) {
        return with_kinds(k, [&](auto a, auto b) {
            const S d = increment<S>(v), x = fixed_prev<decltype(a)::value, decltype(b)::value>(n, c, d, carry, k);
            if (!value_near<S>(v) && !prev_near<decltype(a)::value, decltype(b)::value>(n, c, d, k) && oracle::magnitude(x) <= oracle::limit<S>) return Outcome{x, false};
            const Exact e = exact_prev<S>(n, c, v, carry, k, 0);
            return Outcome{oracle::low_bits<S>(e.wide), e.bad};
        });
    }
};

// As where signs are known to be positive: of 32-bit states, which are undone there too.
struct Positive : Real {
    static bool holds(const FixedCoef& k) { return k.flip == 0 && k.alpha_kind != AlphaKind::general && (k.beta_kind != BetaKind::shift || k.beta_shift.flip == 0); }
    template <class S, class C> static Outcome next(S p, S c, C v, const FixedCoef& k) {
        const Outcome known = Real::next(p, c, v, k);
        if (!holds(k)) return known;
        return with_kinds(k, [&](auto a, auto b) {
            const S d = increment<S>(v), x = fixed_next<decltype(a)::value, decltype(b)::value, true>(p, c, d, k);
            return value_near<S>(v) || next_near<decltype(a)::value, decltype(b)::value>(p, c, d, k) ? known : Outcome{x, oracle::magnitude(x) > oracle::limit<S>};
        });
    }
    template <class C> static Outcome prev(int32_t n, int32_t c, C v, uint32_t carry, const FixedCoef& k) {
        const Outcome known = Real::prev(n, c, v, carry, k);
        if (!holds(k)) return known;
        return with_kinds(k, [&](auto a, auto b) {
            const int32_t d = increment<int32_t>(v), x = fixed_prev<decltype(a)::value, decltype(b)::value, true>(n, c, d, carry, k);
            return value_near<int32_t>(v) || prev_near<decltype(a)::value, decltype(b)::value>(n, c, d, k) ? known : Outcome{x, oracle::magnitude(x) > oracle::limit<int32_t>};
        });
    }
    template <class C> static Outcome prev(int64_t n, int64_t c, C v, uint32_t carry, const FixedCoef& k) { return Real::prev(n, c, v, carry, k); }
};

// ---- broken on purpose -----------------------------------------------------------------------------------------

struct Truncates : Real {  // r(m) = m >> 24
    template <class S, class C> static Outcome next(S p, S c, C v, const FixedCoef& k) {
        const int128 t = ((static_cast<int128>(p) * k.a) >> 24) + ((static_cast<int128>(c) * k.b) >> 24) + static_cast<int64_t>(increment<S>(v));
        return {oracle::low_bits<S>(t), oracle::magnitude(t) > oracle::limit<S>};
    }
};
struct LosesOverflow : Real {
    template <class S, class C> static Outcome next(S p, S c, C v, const FixedCoef& k) { return {Real::next(p, c, v, k).x, false}; }
};
struct FlipsBeta : Real {
    template <class S, class C> static Outcome prev(S n, S c, C v, uint32_t carry, const FixedCoef& k) { return Real::prev(n, c, v, carry, make_fixed_coef(k.a, -k.b)); }
};
struct DropsCarry : Real {
    template <class S, class C> static Outcome prev(S n, S c, C v, uint32_t, const FixedCoef& k) { return Real::prev(n, c, v, 0u, k); }
};
struct BiasesNegativeShift : Real {  // as if alpha were positive
    template <class S, class C> static Outcome next(S p, S c, C v, const FixedCoef& k) {
        FixedCoef wrong = k;
        if (k.alpha_kind == AlphaKind::shift) wrong.alpha_shift.bias = 1 << (k.carry_bits - 1);
        return Real::next(p, c, v, wrong);
    }
};
struct BiasesNegativeFraction : Real {  // the same of beta
    template <class S, class C> static Outcome next(S p, S c, C v, const FixedCoef& k) {
        FixedCoef wrong = k;
        if (k.beta_kind == BetaKind::shift) wrong.beta_shift.bias = 1 << (k.beta_shift.bits - 1);
        return Real::next(p, c, v, wrong);
    }
};
struct TakesFractionFromBelow : Real {  // 3/4 = 0 + 1/4
    template <class S, class C> static Outcome next(S p, S c, C v, const FixedCoef& k) {
        FixedCoef wrong = k;
        if (k.beta_shift.flip != 0) --wrong.whole;
        return Real::next(p, c, v, wrong);
    }
};
struct CoarseReciprocal : Real {  // a float is not enough
    template <class S, class C> static Outcome prev(S n, S c, C v, uint32_t carry, const FixedCoef& k) {
        FixedCoef wrong = k;
        wrong.up = static_cast<double>(static_cast<float>(k.up));
        wrong.per_a = static_cast<double>(static_cast<float>(k.per_a)) * 1.0001;
        return Real::prev(n, c, v, carry, wrong);
    }
};
struct CarryOffByOne : Real {
    template <class S> static uint32_t carry(S prev, const FixedCoef& k) {
        const uint32_t c = Real::carry(prev, k);
        return k.carry_bits > 0 && (static_cast<uint32_t>(prev) & 0xffu) == 7u ? c ^ 1u : c;
    }
};

// ---- the property ----------------------------------------------------------------------------------------------

std::vector<int> numerators(check::Random& random) {
    std::vector<int> all;
    for (int s = 16; s <= 25; ++s) all.push_back(1 << s);
    for (double a : {0.7, 1.3, 0.3, 1.9999999, 0.0040, 1.0 + 0x1p-24, 1.0 - 0x1p-24, 0.5 + 0x1p-24, 0.5 - 0x1p-24, 1.0 / 3}) all.push_back(static_cast<int>(a * 0x1p24));
    for (int i = 0; i < 12; ++i) all.push_back(static_cast<int>(random.between(1 << 16, 1 << 25)));
    const size_t n = all.size();
    for (size_t i = 0; i < n; ++i) all.push_back(-all[i]);
    return all;
}

template <class S>
int64_t some_state(check::Random& r, bool garbage) {
    const int64_t limit = static_cast<int64_t>(oracle::limit<S>);
    const int64_t edges[] = {0, 1, -1, 2, limit, -limit, limit - 1, 1 - limit, limit / 2, -limit / 2, limit / 2 + 1, 1 << 23, -(1 << 23), (1 << 24) + 1};
    const uint64_t pick = r.next() % 8;
    if (pick == 0) return edges[r.next() % (sizeof edges / sizeof *edges)];
    if (pick == 1 && garbage) return static_cast<int64_t>(static_cast<S>(r.next() % 3 == 0 ? uint64_t{1} << (8 * sizeof(S) - 1) : r.next()));
    return r.between(-limit, limit) >> (r.next() % (8 * sizeof(S) - 1));
}

template <class S, class C>
C some_value(check::Random& r) {
    const C top = static_cast<C>(oracle::limit<S>) + C{1};
    switch (r.next() % 12) {
        case 0: return static_cast<C>(r.between(-1000, 1000)) + C(0.5);  // ties
        case 1: return top;
        case 2: return -top;
        case 3: return std::nextafter(top, C{0});
        case 4: return std::numeric_limits<C>::quiet_NaN();
        case 5: return -std::numeric_limits<C>::infinity();
        case 6: return r.next() % 2 ? std::numeric_limits<C>::denorm_min() : C(-0.0);
        case 7: return std::nextafter(top, C{0}) - C(0.25);
        default: return static_cast<C>(std::ldexp(r.unit() - 0.5, static_cast<int>(r.next() % (8 * sizeof(S) - 2))));
    }
}

template <class Ops, class S, class C>
long violations(int rounds) {
    check::Random r{11};
    long bad = 0;
    for (const int a : numerators(r)) {
        const int one = 1 << 24;
        for (const int b : {0, one - a > 4 * one ? one : one - a, 2 * one, -3 * one, one / 2, -one / 8, 3 * one - one / 4, 1, -2 * one + 1, static_cast<int>(r.between(-4 * one, 4 * one))}) {
            const FixedCoef k = make_fixed_coef(a, b);
            for (int i = 0; i < rounds; ++i) {
                const bool garbage = i % 4 == 0;
                const S p = static_cast<S>(some_state<S>(r, garbage)), c = b == 0 ? S{0} : static_cast<S>(some_state<S>(r, garbage));
                const C v = some_value<S, C>(r);
                const bool fits = std::fabs(v) < static_cast<C>(oracle::limit<S>) + C{1};
                const int64_t d = fits ? oracle::to_even(v) : 0;
                const int128 total = oracle::next(p, c, d, a, b);
                const Outcome n = Ops::next(p, c, v, k);
                const bool overflow = !fits || oracle::magnitude(total) > oracle::limit<S>;
                bad += n.x != oracle::low_bits<S>(total) || n.bad != overflow;
                const uint32_t carry = Ops::carry(p, k);
                if (k.carry_bits > 0) bad += static_cast<int64_t>(carry) != static_cast<int64_t>(oracle::carry(p, a)) || carry >> k.carry_bits != 0;
                if (!overflow && oracle::magnitude(p) <= oracle::limit<S>) {
                    const Outcome back = Ops::prev(static_cast<S>(n.x), c, v, carry, k);
                    bad += back.x != p || back.bad;
                }
                const S any_state = static_cast<S>(some_state<S>(r, true));  // not from a step
                const uint32_t any = static_cast<uint32_t>(r.next()) & ((1u << k.carry_bits) - 1u);
                const int128 expected = oracle::prev(any_state, c, d, any, a, b);
                const Outcome u = Ops::prev(any_state, c, v, any, k);
                bad += u.x != oracle::low_bits<S>(expected) || u.bad != (!fits || oracle::magnitude(expected) > oracle::limit<S>);
            }
        }
    }
    return bad;
}

// Every increment alone, where the launchers do not take the exact way.
template <class S, class C>
struct RealQuantise {
    static S apply(C v) { return quantise<S>(v); }
};
template <class S, class C>
struct HalfAway {
    static S apply(C v) { return static_cast<S>(std::round(v)); }
};

template <template <class, class> class Q, class S, class C>
long quantise_violations() {
    check::Random r{5};
    long bad = 0;
    for (int i = 0; i < 20000; ++i) {
        const C v = some_value<S, C>(r);
        if (!value_near<S>(v)) bad += Q<S, C>::apply(v) != oracle::to_even(v);
    }
    return bad;
}

template <class S, class C>
void suite(const char* name, int rounds) {
    std::printf("%s\n", name);
    check::real(violations<Real, S, C>(rounds), name);
    check::real(violations<Positive, S, C>(rounds), "signs known to be positive");
    check::real(quantise_violations<RealQuantise, S, C>(), "quantise");
    check::mutant(quantise_violations<HalfAway, S, C>(), "half away from zero");
    check::mutant(violations<Truncates, S, C>(20), "truncation instead of rounding");
    check::mutant(violations<LosesOverflow, S, C>(20), "overflow not reported");
    check::mutant(violations<FlipsBeta, S, C>(20), "beta with the wrong sign");
    check::mutant(violations<DropsCarry, S, C>(20), "carry ignored");
    check::mutant(violations<BiasesNegativeShift, S, C>(20), "shift rounds as for a positive alpha");
    check::mutant(violations<BiasesNegativeFraction, S, C>(20), "beta's fraction rounds as a positive one");
    check::mutant(violations<TakesFractionFromBelow, S, C>(20), "beta's fraction from the wrong whole number");
    check::mutant(violations<CoarseReciprocal, S, C>(200), "reciprocal in float");
    check::mutant(violations<CarryOffByOne, S, C>(200), "carry wrong now and then");
}

}  // namespace

int main() {
    suite<int32_t, float>("int32, float", 1500);
    suite<int32_t, double>("int32, double", 1500);
    suite<int64_t, float>("int64, float", 1500);
    suite<int64_t, double>("int64, double", 1500);
    return check::finish("fixed");
}
