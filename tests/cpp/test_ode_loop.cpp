// The loops against a plain 128-bit interpreter; there and back; the same bits however the work is cut.
#include <algorithm>

#include "ode_case.hpp"

using namespace ode_case;

namespace {

// ---- the arithmetic, restated without csrc/core ----

enum class Broken { nothing, truncates, swaps_units, forgets_time, drops_beta };

struct Oracle {
    const Run& r;
    Broken broken;
    std::vector<int64_t> s[2];
    std::vector<double> x[2];

    Oracle(const Run& run, Broken how) : r(run), broken(how), s{run.state[0], run.state[1]}, x{run.real[0], run.real[1]} {}

    bool agrees() const { return r.fixed ? s[0] == r.state[0] && s[1] == r.state[1] : x[0] == r.real[0] && x[1] == r.real[1]; }
    double value(int slot, int64_t j) const { return !r.fixed ? x[slot][static_cast<size_t>(j)] : std::ldexp(static_cast<double>(s[slot][static_cast<size_t>(j)]), -unit(j)); }
    int unit(int64_t j) const {
        const int64_t i = j % r.kind->dim;
        return r.bits[static_cast<size_t>(broken == Broken::swaps_units ? r.kind->dim - 1 - i : i)];
    }
    int64_t rounded(double v) const { return broken == Broken::truncates ? static_cast<int64_t>(v) : oracle::to_even(static_cast<long double>(v)); }

    void micro(const OdeMicro& m, int64_t n) {
        const int64_t dim = r.kind->dim;
        for (int64_t b = 0; b < r.batch; ++b) {
            std::vector<double> y, phi(static_cast<size_t>(dim));
            for (int64_t i = 0; i < dim; ++i) y.push_back(value(1 - m.slot, b * dim + i));
            const double t = r.t0 + (static_cast<double>(n) + (broken == Broken::forgets_time ? 0.0 : m.tau)) * r.h;
            if (m.function < 0) phi = y;
            else user_field(t, y.data(), phi.data(), static_cast<long>(dim), const_cast<double*>(&r.user));
            for (int64_t i = 0; i < dim; ++i) {
                const size_t j = static_cast<size_t>(b * dim + i);
                if (!r.fixed) {
                    double moved = m.alpha * x[m.slot][j];
                    if (broken != Broken::drops_beta) moved = moved + m.beta * x[1 - m.slot][j];
                    x[m.slot][j] = moved + m.gamma * phi[static_cast<size_t>(i)];
                    continue;
                }
                const int beta = broken == Broken::drops_beta ? 0 : static_cast<int>(m.beta * 0x1p24);
                const int64_t d = rounded(std::ldexp(phi[static_cast<size_t>(i)] * m.gamma, unit(static_cast<int64_t>(j))));
                s[m.slot][j] = static_cast<int64_t>(oracle::next(s[m.slot][j], s[1 - m.slot][j], d, static_cast<int>(m.alpha * 0x1p24), beta));
            }
        }
    }

    void go() {
        for (int64_t n = r.position; n < r.position + r.steps; ++n) {
            size_t at = 0;
            for (size_t p = 0; p < r.program->counts.size(); ++p) {
                if (static_cast<int64_t>(p) == n % static_cast<int64_t>(r.program->counts.size()))
                    for (int32_t k = 0; k < r.program->counts[p]; ++k) micro(r.program->micros[at + static_cast<size_t>(k)], n);
                at += static_cast<size_t>(r.program->counts[p]);
            }
        }
    }
};

long disagreements(Broken how, bool fixed) {
    const Kind user = kinds()[0];
    long count = 0;
    for (const Program& p : programs()) {
        if (p.tableau) continue;
        for (const Isa isa : levels()) {
            Run run(user, p, 3, 40, fixed, 7);
            run.position = 5;
            run.isa = isa;
            Run after = run;
            after.go(false);
            Oracle oracle(run, how);
            oracle.go();
            run = after;
            count += oracle.agrees() ? 0 : 1;
        }
    }
    return count;
}

// ---- there and back ----

double distance(const Run& a, const Run& b) {
    double most = 0.0;
    for (int s = 0; s < 2; ++s)
        for (size_t j = 0; j < a.real[s].size(); ++j) most = std::max(most, std::abs(a.real[s][j] - b.real[s][j]));
    return most;
}

double smallest(const Program& p) {
    double alpha = 1.0;
    for (const OdeMicro& m : p.micros) alpha = std::min(alpha, std::abs(m.alpha));
    return alpha;
}

long lost(void (*spoil)(Run&), bool floats) {
    long count = 0;
    each([&](const Kind& k, const Program& p, bool fixed) {
        if (fixed == floats || (floats && smallest(p) < 0.9)) return;  // small alpha: floats amplify by 1/alpha a step
        for (const int64_t batch : {1, 19}) {
            Run run(k, p, batch, 60, fixed);
            const Run start = run;
            run.go(false);
            check::expect(run.result.bad_step < 0 && !run.same(start), "%s did not run", run.name().c_str());
            spoil(run);
            run.go(true);
            // In floats each of 120 steps rounds less than 32 times at magnitudes below 32; leapfrog sums the errors twice.
            const bool good = fixed ? run.same(start) && run.carry_at == 0 : distance(run, start) < 120.0 * 120.0 * 32 * 32 * 0x1p-53;
            count += good ? 0 : 1;
        }
    });
    return count;
}

// ---- the same bits however the work is cut ----

template <class Cut>
long differing(Cut cut) {
    long count = 0;
    each([&](const Kind& k, const Program& p, bool fixed) {
        const int64_t batch = 37;
        Run whole(k, p, batch, 20, fixed, 3);
        Run other = whole;
        whole.go(false);
        cut(other);
        check::expect(whole.result.bad_step < 0, "%s overflows", whole.name().c_str());
        count += !whole.same(other) || whole.carry != other.carry;
    });
    return count;
}

void test_cuts() {
    for (const Isa isa : levels())
        check::real(differing([isa](Run& r) { r.isa = isa, r.go(false); }), "instruction set levels agree");
    check::real(differing([](Run& r) { r.lanes = 1, r.go(false); }), "one lane and many agree");
    check::real(differing([](Run& r) { r.threads = 3, r.go(false); }), "thread counts agree");
    check::real(differing([](Run& r) { r.go(false, r.steps, 0, 5), r.go(false, r.steps, 5, 1), r.go(false, r.steps, 6, r.batch - 6); }), "parts of the batch agree with the whole");
    check::real(differing([](Run& r) {
                    const int64_t total = r.steps;
                    for (const int64_t n : {7, 1, 12}) r.steps = n, r.go(false);
                    r.steps = total;
                }),
                "calls in pieces agree with one call");
    check::real(differing([](Run& r) { r.spread(0), r.go(false); }), "units of every system that are those of all");
    check::mutant(differing([](Run& r) { r.spread(1), r.go(false); }), "units that differ from system to system");
    check::real(differing([](Run& r) {
                    for (auto& w : r.watch) w.assign(static_cast<size_t>(r.batch * r.kind->dim), 0);
                    r.go(false);
                }),
                "a run that is watched is the same run");
    check::real(differing([](Run& r) {
                    r.bad.assign(static_cast<size_t>(r.batch), -1), r.bad_value.assign(static_cast<size_t>(r.batch), 0.0);
                    r.go(false);
                }),
                "a run in which systems may fail is the same run");
    check::mutant(differing([](Run& r) {
                      r.bad.assign(static_cast<size_t>(r.batch), -1), r.bad_value.assign(static_cast<size_t>(r.batch), 0.0);
                      r.bad[20] = 0;
                      r.go(false);
                  }),
                  "a system that has failed is left alone");
    check::mutant(differing([](Run& r) { r.position = 1, r.go(false); }), "started at another step");
    check::mutant(differing([](Run& r) { r.go(false, r.steps, 0, r.batch - 1); }), "one system left out");
    check::mutant(differing([](Run& r) { r.h = r.h * (1 + 0x1p-50), r.go(false); }), "another h");
}

// Tiles of one to four blocks, whole and not: every system has the bits, and the largest value, that it has alone, there and back.
long differing_in_blocks(int64_t batch, int lanes, bool large, void (*spoil)(Run&)) {
    long count = 0;
    for (const Isa isa : levels())
        each([&](const Kind& k, const Program& p, bool fixed) {
            if (large && (!fixed || k.dim > 2)) return;
            Run one(k, p, batch, 10, fixed, 3);
            one.isa = isa;
            if (large) {  // increments beyond 2^51 and states beyond 2^61 are rounded and looked at in another way
                one.bits.assign(one.bits.size(), 61);
                for (int s = 0; s < 2; ++s)
                    for (size_t j = 0; j < one.real[s].size(); ++j) one.state[s][j] = oracle::to_even(static_cast<long double>(one.real[s][j]) * 0x1p61L);
            }
            Run many = one;
            const Run start = one;
            one.lanes = 1, many.lanes = lanes;
            one.go(false), many.go(false);
            spoil(many);
            if (one.result.bad_step >= 0 || many.result.bad_step >= 0) {
                count += one.result.bad_step != many.result.bad_step || one.result.bad_system != many.result.bad_system;
                return;
            }
            count += !one.same(many) || one.carry != many.carry || one.result.largest != many.result.largest;
            if (fixed) many.go(true), count += !many.same(start);
        });
    return count;
}

void test_blocks() {
    const auto as_it_is = [](Run&) {};
    for (const int64_t batch : {5, 64, 75})
        for (int blocks = 1; blocks <= 4; ++blocks) check::real(differing_in_blocks(batch, blocks * ode_lanes(), false, as_it_is), "blocks of lanes and one system agree");
    check::real(differing_in_blocks(37, 4 * ode_lanes(), true, as_it_is), "blocks of lanes and one system agree on large values");
    check::mutant(differing_in_blocks(75, 4 * ode_lanes(), false, [](Run& r) { r.state[0].back() ^= 1, r.real[0].back() *= 1.0 + 0x1p-52; }), "one bit of the last system flipped");
}

// Units of every system, side by side and one by one, and what is noticed of each.
void test_units_of_every_system() {
    for (const Isa isa : levels())
        each([&](const Kind& k, const Program& p, bool fixed) {
            if (!fixed) return;
            Run many(k, p, 19, 20, true, 3);
            many.spread(2);
            many.isa = isa;
            for (auto& w : many.watch) w.assign(static_cast<size_t>(many.batch * k.dim), 0);
            Run one = many, other = many;
            one.lanes = 1;
            other.bits[5] += 1;
            many.go(false), one.go(false);
            bool alike = many.same(one) && many.carry == one.carry;
            for (int w = 0; w < 4; ++w) alike = alike && many.watch[w] == one.watch[w];
            check::expect(alike, "%s: units of every system", many.name().c_str());
            const int64_t highest = std::max(*std::max_element(many.watch[2].begin(), many.watch[2].end()), *std::max_element(many.watch[3].begin(), many.watch[3].end()));
            check::expect(many.result.bad_step < 0 && highest > 0, "%s: increments are noticed", many.name().c_str());
            if (k.field == OdeField::henon_heiles) other.go(false), check::expect(!other.same(many), "%s: another unit", many.name().c_str());
        });
}

// Enough work for threads: the loop itself must not differ.
void test_threads() {
    const Kind pendulum = kinds()[2];
    const Program verlet = programs()[0];
    for (const bool fixed : {true, false}) {
        Run one(pendulum, verlet, 200, 2000, fixed), three = one;
        one.go(false);
        three.threads = 3;
        three.go(false);
        check::expect(one.same(three) && one.result.largest == three.result.largest && one.result.evaluations == three.result.evaluations, "threads");
        check::expect(one.result.evaluations == one.steps, "evaluations: %lld", static_cast<long long>(one.result.evaluations));
    }
}

// ---- what does not fit is found ----

void test_overflow() {
    const Kind grows{"grows", OdeField::linear, 1, {1.0}};
    const Program euler{"euler", {{0, 0, 0, 1, 0, 1, 0}, {1, 0, 0, 1, 0, 1, 0}}, {2}, false};  // about e^1.0 a step
    const Program general{"general", {{0, 0, 0, 0.5, 2, 1, 0}, {1, 0, 0, 1, 0, 1, 0}}, {2}, false};
    for (const Program* p : {&euler, &general})
        for (const int64_t batch : {1, 40})
            for (const Isa isa : levels()) {
                Run run(grows, *p, batch, 200, true);
                run.isa = isa;
                run.bits.assign(1, 44);
                Run stepwise = run;
                int64_t expected = -1;  // the first step after which an exact integer is beyond 2^62
                for (int64_t n = 0; n < run.steps && expected < 0; ++n)
                    for (int64_t b = 0; b < batch; ++b) {
                        int128 s[2] = {stepwise.state[0][static_cast<size_t>(b)], stepwise.state[1][static_cast<size_t>(b)]};
                        for (const OdeMicro& m : p->micros) {
                            const int128 d = oracle::to_even(std::ldexp(static_cast<long double>(static_cast<double>(s[1 - m.slot])), 0));
                            s[m.slot] = oracle::rounded(s[m.slot] * static_cast<int>(m.alpha * 0x1p24)) + oracle::rounded(s[1 - m.slot] * static_cast<int>(m.beta * 0x1p24)) + d;
                            if (oracle::magnitude(s[m.slot]) > oracle::limit<int64_t>) {
                                expected = n;
                                break;
                            }
                        }
                        if (expected >= 0) break;
                        for (int k = 0; k < 2; ++k) stepwise.state[k][static_cast<size_t>(b)] = static_cast<int64_t>(s[k]);
                    }
                run.go(false);
                check::expect(run.result.bad_step == expected && expected > 5, "%s: bad step %lld, expected %lld", p->name, static_cast<long long>(run.result.bad_step), static_cast<long long>(expected));
                check::expect(run.result.bad_system >= 0 && run.result.bad_system < batch && run.result.largest > 0x1p62, "which and how large");
                for (const int64_t x : run.state[0]) check::expect(oracle::magnitude(x) <= oracle::limit<int64_t>, "a wrapped value was written");
                Run floats(grows, *p, batch, 2000, false);
                floats.isa = isa;
                floats.go(false);
                check::expect(floats.result.bad_step > 300 && floats.result.largest > 1e308, "floats overflow at step %lld", static_cast<long long>(floats.result.bad_step));
            }
}

void not_a_number(double, const double* x, double* out, long n, void*) {
    for (long i = 0; i < n; ++i) out[i] = x[i] > 1.5 ? std::numeric_limits<double>::quiet_NaN() : 1.0;
}

void test_nan() {
    for (const bool fixed : {true, false}) {
        std::vector<int64_t> q{0, int64_t{1} << 50}, v{0, 0};
        std::vector<double> rq{0.0, 1.0}, rv{0.0, 0.0};
        const std::vector<int32_t> bits{50};
        const std::vector<OdeMicro> micros{{0, -1, 0, 1, 0, 0.0625, 0}, {1, 0, 0, 1, 0, 0.0625, 0.5}};
        const int32_t count = 2;
        OdeArgs a{};
        a.batch = 2, a.dim = 1, a.fixed = fixed, a.steps = 100, a.h = 0.0625, a.micros = micros.data(), a.counts = &count, a.period = 1, a.threads = 1;
        a.slot[0] = fixed ? static_cast<void*>(q.data()) : rq.data(), a.slot[1] = fixed ? static_cast<void*>(v.data()) : rv.data();
        a.frac_bits[0] = a.frac_bits[1] = bits.data(), a.user[0] = not_a_number;
        const OdeResult r = ode_run(a, Isa::best);
        check::expect(r.bad_step > 3 && r.bad_step < 40 && r.bad_system == 1 && r.largest > 1e300, "NaN: step %lld, system %lld", static_cast<long long>(r.bad_step), static_cast<long long>(r.bad_system));
    }
}

// ---- saves ----

void test_saves() {
    const Kind k = kinds()[4];
    const Program p = programs()[0];
    for (const bool fixed : {true, false}) {
        Run run(k, p, 18, 12, fixed);
        std::vector<double> expected, saved(4 * 36);
        Run by_three = run;
        by_three.steps = 3;
        for (int n = 0; n < 4; ++n) {
            by_three.go(false);
            for (int64_t j = 0; j < 36; ++j)
                expected.push_back(fixed ? double_of(static_cast<uint64_t>(by_three.state[1][static_cast<size_t>(j)])) : by_three.real[1][static_cast<size_t>(j)]);
        }
        OdeArgs a{};
        a.batch = 18, a.dim = 2, a.fixed = fixed, a.steps = 12, a.h = run.h, a.t0 = run.t0, a.micros = p.micros.data(), a.counts = p.counts.data(), a.period = 1;
        a.field = k.field, a.params = k.params.data(), a.n_params = 1, a.threads = 2, a.save_every = 3, a.until_save = 3, a.save[1] = saved.data();
        for (int s = 0; s < 2; ++s) a.slot[s] = fixed ? static_cast<void*>(run.state[s].data()) : run.real[s].data(), a.frac_bits[s] = run.bits.data();
        ode_run(a, Isa::best);
        long wrong = 0, late = 0;
        for (size_t j = 0; j < saved.size(); ++j) {
            wrong += bits_of(saved[j]) != bits_of(expected[j]);
            late += bits_of(saved[j]) != bits_of(expected[(j + 36) % saved.size()]);
        }
        check::real(wrong, "saved states are the states");
        check::mutant(late, "saved one late");
    }
}

}  // namespace

int main() {
    for (const bool fixed : {true, false}) {
        check::real(disagreements(Broken::nothing, fixed), "the loop is the recurrence");
        check::mutant(disagreements(Broken::forgets_time, fixed), "time of the micro-step forgotten");
        check::mutant(disagreements(Broken::drops_beta, fixed), "beta dropped");
    }
    check::mutant(disagreements(Broken::truncates, true), "truncates");
    check::mutant(disagreements(Broken::swaps_units, true), "units of other components");
    check::real(lost([](Run&) {}, false), "forwards and back is the start, bit for bit");
    check::mutant(lost([](Run& r) { std::fill(r.carry.begin(), r.carry.end(), uint8_t{0}); }, false), "carries lost");
    check::mutant(lost([](Run& r) { r.state[0][0] ^= 1; }, false), "one bit flipped at the end");
    check::real(lost([](Run&) {}, true), "forwards and back is near the start in floats");
    check::mutant(lost([](Run& r) { r.real[0][0] += 1e-6; }, true), "start moved by 1e-6");
    test_cuts();
    test_blocks();
    test_units_of_every_system();
    test_threads();
    test_overflow();
    test_nan();
    test_saves();
    return check::finish("test_ode_loop");
}
