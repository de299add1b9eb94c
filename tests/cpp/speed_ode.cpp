// Nanoseconds a step of the integration loops; measures and is not a test. Usage: speed_ode [threads]
#include <chrono>
#include <cstdlib>
#include <vector>

#include "ode/loop.hpp"
#include "check.hpp"

using namespace revstep;

namespace {

struct Problem {
    OdeField field;
    std::vector<double> params, q, v;
};

const Problem two_bodies{OdeField::n_body, {3.0, 0.0, 1.0, 1e-3}, {-1e-3, 0, 0, 0.9, 0, 0}, {0, -1.1e-3, 0, 0, 1.1, 0}};
const Problem pendulum{OdeField::pendulum, {1.0}, {1.0}, {0.0}};

const Problem van_der_pol{OdeField::van_der_pol, {1.0}, {1.0, 0.5}, {1.0, 0.5}};

// Drift, kick, drift: s kicks of h / s.
std::vector<OdeMicro> program(int stages, double h) {
    std::vector<OdeMicro> micros;
    const double part = 1.0 / stages;
    for (int k = 0; k < stages; ++k) {
        micros.push_back({0, -1, 0, 1.0, 0.0, (k == 0 ? 0.5 : 1.0) * part * h, k * part});
        micros.push_back({1, 0, 0, 1.0, 0.0, part * h, (k + 0.5) * part});
    }
    micros.push_back({0, -1, 0, 1.0, 0.0, 0.5 * part * h, 1.0});
    return micros;
}

// The classical Runge-Kutta step, and its reversible form: z <- lam z + (1 - lam) w + psi(h, w), w <- w - psi(-h, z).
const double rk4_a[16] = {0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 1, 0}, rk4_b[4] = {1 / 6.0, 1 / 3.0, 1 / 3.0, 1 / 6.0}, rk4_c[4] = {0, 0.5, 0.5, 1};

std::vector<OdeMicro> reversible_rk(double lam) { return {{0, 0, 1, lam, 1.0 - lam, 1.0, 0.0}, {1, 0, -1, 1.0, 0.0, -1.0, 1.0}}; }

void time_it(const char* name, const Problem& p, bool fixed, int stages, int64_t batch, int64_t steps, int threads) {
    const int64_t dim = static_cast<int64_t>(p.q.size()), n = batch * dim;
    std::vector<double> reals[2];
    std::vector<int64_t> integers[2];
    for (int s = 0; s < 2; ++s)
        for (int64_t j = 0; j < n; ++j) {
            const double x = (s == 0 ? p.q : p.v)[static_cast<size_t>(j % dim)];
            reals[s].push_back(x);
            integers[s].push_back(rint_i64(x * 0x1p56));
        }
    const std::vector<int32_t> bits(static_cast<size_t>(dim), 56);
    const std::vector<OdeMicro> micros = stages == 0 ? reversible_rk(0.5) : program(stages, 1e-3);
    const int32_t count = static_cast<int32_t>(micros.size());
    OdeArgs a{};
    a.batch = batch, a.dim = dim, a.fixed = fixed, a.steps = steps, a.h = 1e-3, a.micros = micros.data(), a.counts = &count, a.period = 1;
    a.field = p.field, a.params = p.params.data(), a.n_params = static_cast<int64_t>(p.params.size()), a.threads = threads;
    std::vector<uint8_t> carry(static_cast<size_t>(batch * (steps * dim + 8)));
    if (stages == 0) a.tableau = {4, rk4_a, rk4_b, rk4_c}, a.carry = carry.data(), a.carry_stride = steps * dim + 8;
    for (int s = 0; s < 2; ++s) a.slot[s] = fixed ? static_cast<void*>(integers[s].data()) : reals[s].data(), a.frac_bits[s] = bits.data();
    for (const std::string& level : isa_levels()) {
        const Isa isa = level == "generic" ? Isa::generic : level == "v3" ? Isa::v3 : Isa::v4;
        double best = 1e30;
        for (int repeat = 0; repeat < 200; ++repeat) {
            const auto begin = std::chrono::steady_clock::now();
            const OdeResult r = ode_run(a, isa);
            const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
            if (r.bad_step >= 0) std::printf("bad step %lld\n", static_cast<long long>(r.bad_step));
            best = ns < best ? ns : best;
            a.position += steps;
        }
        std::printf("%-44s %-8s %10.2f ns a step%s\n", name, level.c_str(), best / static_cast<double>(steps * batch), batch > 1 ? " and system" : "");
    }
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
    time_it("two bodies, float, leapfrog", two_bodies, false, 1, 1, 20000, 1);
    time_it("two bodies, fixed, leapfrog", two_bodies, true, 1, 1, 20000, 1);
    time_it("two bodies, float, 9 stages", two_bodies, false, 9, 1, 3000, 1);
    time_it("two bodies, fixed, 9 stages", two_bodies, true, 9, 1, 2000, 1);
    time_it("pendulum, float, leapfrog", pendulum, false, 1, 1, 20000, 1);
    time_it("1000 pendulums, float, leapfrog", pendulum, false, 1, 1000, 100, threads);
    time_it("1000 pendulums, fixed, leapfrog", pendulum, true, 1, 1000, 100, threads);
    time_it("1000 two bodies, float, leapfrog", two_bodies, false, 1, 1000, 50, threads);
    time_it("1000 two bodies, fixed, leapfrog", two_bodies, true, 1, 1000, 50, threads);
    time_it("van der Pol, float, reversible RK4", van_der_pol, false, 0, 1, 5000, 1);
    time_it("van der Pol, fixed, reversible RK4", van_der_pol, true, 0, 1, 5000, 1);
    return 0;
}
