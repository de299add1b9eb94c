// One tile: systems advanced side by side through all steps of a call. Either one (W = 1), whose state lives in local arrays
// where its shape is fixed, so that it stays in registers; or some blocks of W = kLanes systems in scratch, component i of system
// l of block b at [(b size + i) W + l]. What is done to one block does not wait for another: several hide how long a sine takes.
// Included by watch.hpp only.
#pragma once

#include "tile_parts.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// What a tile knows beside its numbers, which lie in scratch between two stretches of steps.
struct Resume {
    bool known[2] = {false, false};  // phi<J> holds the value of `function` at time t
    int function[2] = {0, 0};
    double when[2] = {0.0, 0.0};
    int64_t carry_at;
    int phase;           // program of the next step
    int64_t until;       // steps until the next save
    int64_t row = 0;     // of the next save
};

// `Each`: every lane has units of its own. A single system reads its own in any case.
template <bool Fixed, class Field, int W, bool Each>
struct Tile {
    typedef typename Choose<Fixed, int64_t, double>::type S;
    static constexpr int N = W == 1 ? Field::dim : 0;  // components in local arrays
    static constexpr bool kInline = N > 0;
    static constexpr int kOwn = N > 0 ? N : 1;

    const OdePlan& plan;
    const OdeArgs& a;
    const Field field;
    OdeShare& share;
    double* const scratch;
    const int64_t padded, begin;
    const int count, many;
    int64_t carry_at;
    Store<S, N> s0, s1;
    typename Choose<Fixed, Store<double, N>, None>::type v0, v1;
    Store<double, N> phi0, phi1;
    bool known0 = false, known1 = false;  // phi holds the field's value at the slot
    int function0 = 0, function1 = 0;
    double when0 = 0.0, when1 = 0.0;
    typename Choose<(W > 1), double, S>::type largest[W > 1 ? kPack : 1] = {};  // of lanes: as doubles, which round a magnitude and keep their order
    bool small[2] = {true, true};  // increments of a slot are tried as small ones
    const double *up[2], *down[2];  // 2^F and 2^-F of a component, or of an element where Each

    RS_MEMBER Tile(const Field& f, const OdePlan& p, int64_t first, int64_t end, double* room, OdeShare& result, const Resume& k)
        : plan(p), a(*p.args), field(f), share(result), scratch(room), padded(ode_padded(p.args->dim, W * blocks_of(end - first))), begin(first), count(static_cast<int>(end - first)), many(blocks_of(end - first)), carry_at(k.carry_at),
          known0(k.known[0]), known1(k.known[1]), function0(k.function[0]), function1(k.function[1]), when0(k.when[0]), when1(k.when[1]) {
        s0.place(at(0)), s1.place(at(1)), v0.place(at(2)), v1.place(at(3)), phi0.place(at(4)), phi1.place(at(5));
        const int64_t own = W == 1 && a.each ? begin * a.dim : 0;
        for (int s = 0; s < 2; ++s) up[s] = Each ? at(12 + a.tableau.stages + s) : plan.up[s] + own, down[s] = Each ? at(14 + a.tableau.stages + s) : plan.down[s] + own;
    }

    static constexpr RS_MEMBER int blocks_of(int64_t n) { return static_cast<int>((n + W - 1) / W); }
    RS_MEMBER int blocks() const { return W == 1 ? 1 : many; }  // of one system known when compiling: no loop around it

    // Where lane l of component i of block b is, and its unit.
    RS_MEMBER int place(int b, int i, int l) const { return (b * size() + i) * W + l; }
    RS_MEMBER double unit(const double* units, int b, int i, int l) const { return units[Each ? place(b, i, l) : i]; }
    // The system of a lane; lanes beyond the last repeat it.
    RS_MEMBER int64_t system(int b, int l) const { return begin + (b * W + l < count ? b * W + l : count - 1); }

    // `f(b, i, l)` for every component of every lane.
    template <class F>
    RS_MEMBER void each_lane(F f) const {
        for (int b = 0; b < blocks(); ++b)
            for (int i = 0; i < size(); ++i)
                for (int l = 0; l < W; ++l) f(b, i, l);
    }
    RS_MEMBER LanePacks packs() const { return {blocks(), size()}; }
    // The units of the tile's systems, side by side as the systems are.
    RS_MEMBER void place_units() {
        for (int s = 0; s < 2; ++s)
            each_lane([&](int b, int i, int l) {
                at(12 + a.tableau.stages + s)[place(b, i, l)] = plan.up[s][system(b, l) * a.dim + i];
                at(14 + a.tableau.stages + s)[place(b, i, l)] = plan.down[s][system(b, l) * a.dim + i];
            });
    }

    RS_MEMBER double* at(int k) const { return scratch + k * padded; }
    RS_MEMBER int size() const { return field.size(); }

    template <int I>
    RS_MEMBER S* state() {
        if constexpr (I == 0) return s0.data;
        else return s1.data;
    }
    template <int I>
    RS_MEMBER double* view() {
        if constexpr (!Fixed) return state<I>();
        else if constexpr (I == 0) return v0.data;
        else return v1.data;
    }
    template <int I>
    RS_MEMBER double* phi() {
        if constexpr (I == 0) return phi0.data;
        else return phi1.data;
    }

    template <int I>
    RS_MEMBER void load() {
        const S* from = static_cast<const S*>(a.slot[I]);
        each_lane([&](int b, int i, int l) {
            const S x = from[system(b, l) * a.dim + i];
            state<I>()[place(b, i, l)] = x;
            if constexpr (Fixed) view<I>()[place(b, i, l)] = widen_fast<W>(x) * unit(down[I], b, i, l);
        });
    }

    template <int I>
    RS_MEMBER void store(void* base, int64_t row) {
        S* to = static_cast<S*>(base) + (row * a.batch + begin) * a.dim;
        for (int k = 0; k < count; ++k)
            for (int i = 0; i < size(); ++i) to[k * a.dim + i] = state<I>()[place(k / W, i, k % W)];
    }

    // ---- Phi ----

    template <int J>
    RS_MEMBER void forget() {
        if constexpr (J == 0) known0 = false;
        else known1 = false;
    }

    // phi<J>() <- the field at slot J.
    template <int J>
    RS_MEMBER void evaluate(const PlannedMicro& m, double t) {
        bool& known = J == 0 ? known0 : known1;
        int& function = J == 0 ? function0 : function1;
        double& when = J == 0 ? when0 : when1;
        if (m.rk_sign != 0) {
            increment<J>(m, t);
            return;
        }
        if (known && function == m.function && (field.autonomous || when == t)) return;
        for (int b = 0; b < blocks(); ++b) field.template eval<W>(m.function, t, view<J>() + place(b, 0, 0), phi<J>() + place(b, 0, 0));
        ++share.evaluations;
        known = true, function = m.function, when = t;
    }

    template <int J>
    RS_MEMBER void increment(const PlannedMicro& m, double t) {
        const int all = size() * W;
        double *z = at(8), *psi = at(9);
        for (int b = 0; b < blocks(); ++b) {
            const int first = place(b, 0, 0);
            for (int j = 0; j < all; ++j) z[j] = view<J>()[first + j];
            rk_increment<Field, W>(field, a.tableau, m.function, t, m.rk_sign > 0 ? a.h : -a.h, z, psi, at(10), at(12), padded);
            for (int j = 0; j < all; ++j) phi<J>()[first + j] = psi[j];
        }
        share.evaluations += a.tableau.stages;
        forget<J>();
    }

    // ---- the micro-step ----

    // False: a value near the limits, nothing was written. With f (gamma 2^F) instead of (f gamma) 2^F, which is the same number
    // for the gammas that a plan calls plain.
    template <int I, bool Undo>
    RS_MEMBER bool plain_fixed(const PlannedMicro& m, const double* f) {
        if constexpr (W > 1) return plain_lanes<I, Undo>(m, f);
        S local[kOwn];
        S* next = N > 0 ? local : reinterpret_cast<S*>(at(7));
        const uint64_t limit = static_cast<uint64_t>(FixedTraits<int64_t>::limit), value_limit = bits_of(0x1p61);
        uint64_t near = 0;
        for (int i = 0; i < size(); ++i) {
            const double v = f[i] * (m.gamma * up[I][i]);
            const uint64_t d = static_cast<uint64_t>(rint_fast<W>(v)), x = static_cast<uint64_t>(state<I>()[i]);
            const uint64_t y = Undo ? x - d : x + d;
            // A sign bit is set where |v| > 2^61 (or is NaN, whose bits are above all numbers'), y < -limit or y > limit.
            near |= (value_limit - bits_of(abs_of(v))) | (y + limit) | (limit - y);
            next[i] = static_cast<S>(y);
        }
        if (__builtin_expect((near >> 63) != 0, 0)) return false;
        for (int i = 0; i < size(); ++i) {
            state<I>()[i] = next[i];
            view<I>()[i] = widen_fast<W>(next[i]) * down[I][i];
        }
        return true;
    }

    // The same of lanes.
    template <int I, bool Undo>
    RS_MEMBER bool plain_lanes(const PlannedMicro& m, const double* f) {
        int64_t* const next = reinterpret_cast<int64_t*>(at(7));
        const LaneUnits<Each> units{up[I]};
        bool good = small[I] && lanes_next<Undo, true>(packs(), m.gamma, units, f, state<I>(), next);
        if (__builtin_expect(!good, 0)) {
            small[I] = false;  // until the next stretch
            good = lanes_next<Undo, false>(packs(), m.gamma, units, f, state<I>(), next);
        }
        if (good) lanes_take(packs(), LaneUnits<Each>{down[I]}, next, state<I>(), view<I>());
        return good;
    }

    template <int I, bool Undo>
    RS_MEMBER void plain_float(const PlannedMicro& m, const double* f) {
        if constexpr (W > 1) return lanes_float<Undo>(packs(), m.gamma, f, state<I>());
        const FloatCoef<double> k{1.0, 0.0, m.gamma};
        for (int j = 0; j < size(); ++j) {
            const double x = state<I>()[j];
            state<I>()[j] = Undo ? float_inverse<FloatAlpha::one, false>(x, 0.0, f[j], k) : float_forward<FloatAlpha::one, false>(x, 0.0, f[j], k);
        }
    }

    // Works on copies where the state is local: its address must not leave this function.
    template <int I, bool Undo>
    RS_MEMBER Verdict general(const PlannedMicro& m, const double* f) {
        const int all = size() * W;
        const double* from = f;
        if constexpr (N > 0) {
            double* copy = at(8);
            for (int j = 0; j < all; ++j) reinterpret_cast<S*>(at(I))[j] = state<I>()[j], reinterpret_cast<S*>(at(1 - I))[j] = state<1 - I>()[j], copy[j] = f[j];
            from = copy;
        }
        Verdict verdict;
        for (int b = 0; b < blocks() && !verdict.bad; ++b) {
            const int first = place(b, 0, 0), to = b * W;
            S *own = reinterpret_cast<S*>(at(I)) + first, *other = reinterpret_cast<S*>(at(1 - I)) + first;
            if constexpr (Fixed) {
                const Flat flat{plan, m, size(), W, begin + to, count - to < W ? count - to : W, carry_at, reinterpret_cast<int64_t*>(at(6)), reinterpret_cast<int64_t*>(at(7)), reinterpret_cast<uint8_t*>(at(11)), up[I] + (Each ? first : 0), down[I] + (Each ? first : 0)};
                verdict = general_fixed<Each>(flat, own, at(2 + I) + first, other, from + first, Undo);
                verdict.lane += to;
            } else {
                general_float(m, all, own, other, from + first, Undo);
            }
        }
        if constexpr (N > 0)
            for (int j = 0; j < all; ++j) {
                state<I>()[j] = reinterpret_cast<S*>(at(I))[j];
                if constexpr (Fixed) view<I>()[j] = verdict.bad ? view<I>()[j] : at(2 + I)[j];
            }
        return verdict;
    }

    template <int I, bool Undo>
    RS_MEMBER bool update(const PlannedMicro& m, const double* f, int64_t step) {
        if (m.plain) {
            if constexpr (Fixed) {
                if (__builtin_expect(plain_fixed<I, Undo>(m, f), 1)) return true;
            } else {
                plain_float<I, Undo>(m, f);
                return true;
            }
        }
        const Verdict verdict = general<I, Undo>(m, f);
        if (verdict.bad) report(step, verdict.lane, verdict.magnitude);
        return !verdict.bad;
    }

    template <int I, bool Undo>
    RS_MEMBER bool micro(const PlannedMicro& m, int64_t step) {
        if (Fixed && Undo) carry_at -= m.carry_bits * a.dim;  // first: carry_at is now where the step began to write
        forget<I>();  // slot I changes, so what was evaluated there is no longer its value
        bool good;
        if (m.function >= 0) {
            double t = a.t0 + (static_cast<double>(step) + m.tau) * a.h;
            if (__builtin_expect(!field.autonomous, 0) && m.rk_sign == 0) t = clamped(a, t);
            evaluate<1 - I>(m, t);
            if (__builtin_expect(!field.autonomous, 0) && share.fault != OdeFault::none) return blame(step);
        }
        if constexpr (kInline) good = m.function < 0 ? update<I, Undo>(m, view<1 - I>(), step) : update<I, Undo>(m, phi<1 - I>(), step);
        else good = update<I, Undo>(m, m.function < 0 ? view<1 - I>() : phi<1 - I>(), step);
        if (Fixed && !Undo) carry_at += m.carry_bits * a.dim;
        return good;
    }

    RS_MEMBER void report(int64_t step, int lane, double magnitude) {
        share.bad_step = step;
        share.bad_system = begin + (lane < count ? lane : count - 1);
        if (magnitude > share.failed) share.failed = magnitude;
    }

    // The caller's function failed, and nothing was made of what it gave.
    RS_MEMBER bool blame(int64_t step) {
        if (share.fault != OdeFault::elsewhere) report(step, 0, 0.0);
        return false;
    }

    // ---- between two stretches ----

    // Between local arrays and their places in scratch; larger tiles have nothing else.
    template <int I, bool Out>
    RS_MEMBER void exchange() {
        if constexpr (N > 0) {
            S* there = reinterpret_cast<S*>(at(I));
            for (int j = 0; j < size() * W; ++j) {
                if constexpr (Out) {
                    there[j] = state<I>()[j], at(4 + I)[j] = phi<I>()[j];
                    if constexpr (Fixed) at(2 + I)[j] = view<I>()[j];
                } else {
                    state<I>()[j] = there[j], phi<I>()[j] = at(4 + I)[j];
                    if constexpr (Fixed) view<I>()[j] = at(2 + I)[j];
                }
            }
        }
    }

    RS_MEMBER void take_up() { exchange<0, false>(), exchange<1, false>(); }

    RS_MEMBER void put_down(Resume& k) {
        exchange<0, true>(), exchange<1, true>();
        k.known[0] = known0, k.known[1] = known1, k.function[0] = function0, k.function[1] = function1, k.when[0] = when0, k.when[1] = when1, k.carry_at = carry_at;
        for (const auto x : largest) share.largest = static_cast<double>(x) > share.largest ? static_cast<double>(x) : share.largest;
    }
    // ---- the steps ----

    // Largest magnitude so far; false for a value that is not finite.
    RS_MEMBER bool inspect(int64_t step) {
        if constexpr (W > 1) return inspect_lanes(step);
        else if constexpr (Fixed) {
            for (int i = 0; i < size(); ++i) {
                const int64_t x = state<0>()[i], y = state<1>()[i], u = x < 0 ? -x : x, v = y < 0 ? -y : y, both = u > v ? u : v;
                largest[0] = both > largest[0] ? both : largest[0];
            }
            return true;
        } else {
            uint64_t odd = 0;
            for (int i = 0; i < size(); ++i) {
                const double u = abs_of(state<0>()[i]), v = abs_of(state<1>()[i]), both = u > v ? u : v;
                largest[0] = both > largest[0] ? both : largest[0];
                odd |= not_finite(u) | not_finite(v);
            }
            if (__builtin_expect((odd >> 63) == 0, 1)) return true;
            report(step, 0, double_of(0x7ff0000000000000ull));
            return false;
        }
    }

    RS_MEMBER bool inspect_lanes(int64_t step) {
        if (__builtin_expect(lanes_inspect<Fixed>(packs(), view<0>(), view<1>(), LaneUnits<Each>{up[0]}, LaneUnits<Each>{up[1]}, largest), 1)) return true;
        for (int k = 0; k < blocks() * W; ++k)
            for (int i = 0; i < size(); ++i) {
                const int j = place(k / W, i, k % W);
                if (((not_finite(abs_of(view<0>()[j])) | not_finite(abs_of(view<1>()[j]))) >> 63) == 0) continue;
                report(step, k, double_of(0x7ff0000000000000ull));
                return false;
            }
        return true;
    }

    template <bool Undo>
    RS_MEMBER bool step(int64_t n, int phase) {
        const int first = plan.first[phase], end = plan.first[phase + 1];
        for (int k = first; k < end; ++k) {
            const PlannedMicro& m = plan.micros[Undo ? first + end - 1 - k : k];
            const bool good = m.slot == 0 ? micro<0, Undo>(m, n) : micro<1, Undo>(m, n);
            if (__builtin_expect(!good, 0)) return false;
        }
        return inspect(n);
    }

    // After a step: the program of the next one, and a save where it is time for one.
    template <bool Undo>
    RS_MEMBER void taken(Resume& k) {
        if constexpr (Undo) k.phase = k.phase == 0 ? a.period - 1 : k.phase - 1;
        else k.phase = k.phase + 1 == a.period ? 0 : k.phase + 1;
        if (a.save_every == 0 || --k.until != 0) return;
        k.until = a.save_every;
        if (a.save[0] != nullptr) store<0>(a.save[0], k.row);
        if (a.save[1] != nullptr) store<1>(a.save[1], k.row);
        ++k.row;
    }

    // Steps from .. stop - 1 of the call; false where one failed.
    template <bool Undo>
    RS_MEMBER bool steps(Resume& resume, int64_t from, int64_t stop) {
        const int64_t start = Undo ? a.position - 1 : a.position;
        Resume at = resume;  // local: its counters stay in registers
        bool good = true;
        for (int64_t k = from; k < stop; ++k) {
            good = step<Undo>(Undo ? start - k : start + k, at.phase);
            if (__builtin_expect(!good, 0)) break;
            taken<Undo>(at);
        }
        resume.phase = at.phase, resume.until = at.until, resume.row = at.row;
        return good;
    }

    RS_MEMBER bool stretch(Resume& resume, int64_t from, int64_t stop) {
        take_up();
        const bool good = a.undo ? steps<true>(resume, from, stop) : steps<false>(resume, from, stop);
        put_down(resume);
        return good;
    }

    RS_MEMBER void enter() {
        if constexpr (Each) place_units();
        load<0>(), load<1>();
    }

    RS_MEMBER void leave() { store<0>(a.slot[0], 0), store<1>(a.slot[1], 0); }
};
}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
