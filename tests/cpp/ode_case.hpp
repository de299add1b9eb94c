// Integrations to run: every built-in field and a user's, several programs, both kinds of numbers.
#pragma once

#include <string>
#include <vector>

#include "check.hpp"
#include "oracle.hpp"
#include "ode/loop.hpp"

namespace ode_case {

using namespace revstep;

inline void user_field(double t, const double* x, double* out, long n, void* user) {
    const double c = *static_cast<const double*>(user);
    for (long i = 0; i < n; ++i) out[i] = c * x[(i + 1) % n] - 0.25 * x[i] + 0.125 * t;
}

struct Kind {
    const char* name;
    OdeField field;
    int64_t dim;
    std::vector<double> params;
};

inline std::vector<Kind> kinds() {
    return {{"user", OdeField::user, 3, {}},
            {"harmonic", OdeField::harmonic, 2, {1.44}},
            {"pendulum", OdeField::pendulum, 1, {1.0}},
            {"pendulums", OdeField::pendulum, 3, {1.0}},
            {"kepler 2", OdeField::kepler, 2, {1.0}},
            {"kepler 3", OdeField::kepler, 3, {1.0}},
            {"henon-heiles", OdeField::henon_heiles, 2, {0.5}},
            {"fput", OdeField::fput, 5, {0.25, 0.5}},
            {"two bodies", OdeField::n_body, 6, {3.0, 0.01, 1.0, 1e-3}},
            {"four bodies", OdeField::n_body, 12, {3.0, 0.25, 1.0, 0.5, 0.25, 0.125}},
            {"flat bodies", OdeField::n_body, 6, {2.0, 0.25, 1.0, 0.5, 0.25}},
            {"lotka-volterra", OdeField::lotka_volterra, 2, {0.6, 1.3, 1.0, 1.0}},
            {"lotka-volterra, logarithms", OdeField::lotka_volterra_log, 3, {0.6, 1.3, 1.0, 1.0}},
            {"van der pol", OdeField::van_der_pol, 2, {1.0}},
            {"linear 2", OdeField::linear, 2, {0.0, 1.0, -1.0, -0.5}},
            {"linear 3", OdeField::linear, 3, {0.0, 1.0, 0.5, -1.0, -0.5, 0.25, 0.1, 0.0, -0.2}}};
}

struct Program {
    const char* name;
    std::vector<OdeMicro> micros;
    std::vector<int32_t> counts;
    bool tableau;
};

constexpr double kStep = 1.0 / 512;

// Splitting, two-step (midpoint, blend), general coefficients, a value used again after another one, reversible Runge-Kutta.
inline std::vector<Program> programs() {
    const double h = kStep, third = 5592405.0 * 0x1p-24, lam = 16760438.0 * 0x1p-24;
    return {{"verlet", {{0, -1, 0, 1, 0, 0.5 * h, 0}, {1, 0, 0, 1, 0, h, 0.5}, {0, -1, 0, 1, 0, 0.5 * h, 1}}, {3}, false},
            {"midpoint", {{0, 0, 0, 1, 0, 2 * h, 0}, {1, 0, 0, 1, 0, 2 * h, 0}}, {1, 1}, false},
            {"blend", {{0, 0, 0, 0.25, 0.75, 1.25 * h, 0}, {1, 0, 0, 0.25, 0.75, 1.25 * h, 0}}, {1, 1}, false},
            {"leapfrog", {{0, 0, 0, -1, 2, h * h, 0}, {1, 0, 0, -1, 2, h * h, 0}}, {1, 1}, false},
            {"general", {{0, 0, 0, third, 1 - third, h, 0}, {1, 0, 0, -third, 1 - third, 0.5 * h, 1}}, {2}, false},
            {"mixed", {{1, 0, 0, 1, 0, h, 0}, {1, -1, 0, 0.5, 0.5, h, 0}, {1, 0, 0, 1, 0, h, 0}, {0, -1, 0, 1, 0, h, 0}}, {4}, false},
            {"reversible rk", {{0, 0, 1, lam, 1 - lam, 1, 0}, {1, 0, -1, 1, 0, -1, 1}}, {2}, true}};
}

struct Run {
    const Kind* kind;
    const Program* program;
    int64_t batch, steps;
    bool fixed;
    std::vector<int64_t> state[2];
    std::vector<double> real[2];
    std::vector<int32_t> bits;
    std::vector<uint8_t> carry;
    int64_t stride = 0, carry_at = 0, position = 0;
    int threads = 1, lanes = 0;
    bool each = false;              // bits are (batch, dim)
    std::vector<int64_t> watch[4];  // zero and high of both slots, where not empty
    std::vector<int64_t> bad;       // where not empty, systems may fail
    std::vector<double> bad_value;
    Isa isa = Isa::best;
    double h = kStep, t0 = 0.5, user = 0.75;
    OdeResult result;

    Run(const Kind& k, const Program& p, int64_t batch_, int64_t steps_, bool fixed_, uint64_t seed = 1) : kind(&k), program(&p), batch(batch_), steps(steps_), fixed(fixed_) {
        check::Random random{seed};
        for (int64_t i = 0; i < k.dim; ++i) bits.push_back(static_cast<int32_t>(44 + i % 3));
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t i = 0; i < k.dim; ++i) {
                const double x = 0.5 + 0.5 * random.unit() + 0.75 * static_cast<double>(i), v = random.unit() - 0.5;
                add(0, x, i), add(1, p.counts.size() == 2 || p.micros[0].function >= 0 ? x : v, i);
            }
        int64_t widest = 0;
        for (const OdeMicro& m : p.micros) widest += std::abs(m.alpha) < 1.0 ? k.dim * 2 : 0;
        stride = (widest * steps + 7) / 8;
        carry.assign(static_cast<size_t>(stride * batch), 0);
    }

    void add(int s, double x, int64_t i) {
        const double unit = std::ldexp(1.0, bits[static_cast<size_t>(i)]);
        state[s].push_back(oracle::to_even(static_cast<long double>(x * unit)));
        real[s].push_back(x);
    }

    // Systems first .. first + count - 1, `n` steps forwards or back.
    void go(bool undo, int64_t n, int64_t first, int64_t count) {
        static const double a[16] = {0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 1, 0}, b[4] = {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6}, c[4] = {0, 0.5, 0.5, 1};
        OdeArgs g{};
        g.batch = count, g.dim = kind->dim, g.fixed = fixed, g.steps = n, g.position = position, g.undo = undo, g.t0 = t0, g.h = h;
        g.micros = program->micros.data(), g.counts = program->counts.data(), g.period = static_cast<int>(program->counts.size());
        if (program->tableau) g.tableau = {4, a, b, c};
        g.field = kind->field, g.params = kind->params.data(), g.n_params = static_cast<int64_t>(kind->params.size());
        g.user[0] = g.user[1] = user_field, g.user_data[0] = g.user_data[1] = &user;
        for (int s = 0; s < 2; ++s) {
            const size_t at = static_cast<size_t>(first * kind->dim);
            g.slot[s] = fixed ? static_cast<void*>(state[s].data() + at) : real[s].data() + at;
            g.frac_bits[s] = bits.data() + (each ? at : 0);
            if (!watch[0].empty()) g.watch.zero[s] = watch[s].data() + at, g.watch.high[s] = watch[2 + s].data() + at;
        }
        g.each = each;
        if (!bad.empty()) g.bad = bad.data() + first, g.bad_value = bad_value.data() + first;
        g.carry = fixed && stride != 0 ? carry.data() + first * stride : nullptr, g.carry_stride = stride, g.carry_at = carry_at;
        g.threads = threads, g.lanes = lanes;
        result = ode_run(g, isa);
    }
    void go(bool undo) {
        go(undo, steps, 0, batch);
        position += undo ? -steps : steps;
        carry_at = result.carry_at;
    }
    // Units of every system: those of all, the given number of bits coarser from system to system.
    void spread(int32_t step) {
        if (!fixed) return;
        std::vector<int32_t> all;
        for (int64_t b = 0; b < batch; ++b)
            for (const int32_t f : bits) all.push_back(f - step * static_cast<int32_t>(b % 3));
        for (int s = 0; s < 2; ++s)
            for (size_t j = 0; j < all.size(); ++j) state[s][j] >>= bits[j % bits.size()] - all[j];
        bits = all, each = true;
    }
    bool same(const Run& other) const {
        for (int s = 0; s < 2; ++s) {
            if (fixed && state[s] != other.state[s]) return false;
            if (!fixed)
                for (size_t j = 0; j < real[s].size(); ++j)
                    if (bits_of(real[s][j]) != bits_of(other.real[s][j])) return false;
        }
        return true;
    }
    std::string name() const { return std::string(kind->name) + ", " + program->name + (fixed ? ", fixed" : ", float"); }
};

// Every program with every field, whether or not that field is meant for it: bits are all that matters here.
template <class F>
void each(F f) {
    const std::vector<Kind> fields = kinds();
    const std::vector<Program> all = programs();
    for (const Kind& k : fields)
        for (const Program& p : all)
            for (const bool fixed : {true, false}) f(k, p, fixed);
}

inline std::vector<Isa> levels() {
    const std::vector<Isa> all{Isa::generic, Isa::v3, Isa::v4};
    return std::vector<Isa>(all.begin(), all.begin() + static_cast<long>(isa_levels().size()));
}

}  // namespace ode_case
