// Checks a call, plans its micro-steps, shares the systems among threads.
#include "loop.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/cpu_parts.hpp"
#include "loop_parts.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace revstep {
namespace {

[[maybe_unused]] constexpr int64_t kSerialBelow = 200000;  // micro-steps of single components: below, threads cost more than they give
constexpr int kMaxFracBits = 256;
constexpr int64_t kMostSteps = int64_t{1} << 62;
[[maybe_unused]] constexpr int64_t kMostThreads = 1024;  // as in kernels/cpu.cpp

const OdeBody& choose(Isa isa) {
    [[maybe_unused]] const int level = usable_level(isa);
#if defined(REVSTEP_X86_LEVELS)
    if (level == 2) return isa_v4::ode_body;
    if (level == 1) return isa_v3::ode_body;
#endif
    return isa_generic::ode_body;
}

void require(bool condition, const char* sentence) {
    if (!condition) throw std::invalid_argument(std::string("revstep ode loop: ") + sentence);
}

int32_t numerator(double c) { return static_cast<int32_t>(c * 0x1p24); }

bool on_grid(double c, double limit) { return std::abs(c) <= limit && std::floor(c * 0x1p24) == c * 0x1p24; }

int carry_bits_of(const OdeMicro& m) {
    require(on_grid(m.alpha, 2.0) && std::abs(m.alpha) >= 0x1p-8, "alpha must be a multiple of 2^-24 with 2^-8 <= |alpha| <= 2");
    require(on_grid(m.beta, 4.0), "beta must be a multiple of 2^-24 with |beta| <= 4");
    return make_fixed_coef(numerator(m.alpha), numerator(m.beta)).carry_bits;
}

PlannedMicro planned(const OdeArgs& a, const OdeMicro& micro, bool same_units) {
    PlannedMicro m{};
    static_cast<OdeMicro&>(m) = micro;
    require(m.slot == 0 || m.slot == 1, "a micro-step changes slot 0 or 1");
    require(m.function >= -1 && m.function <= 1, "a micro-step's function is 0, 1 or -1, the identity");
    require(std::isfinite(m.alpha) && std::isfinite(m.beta) && std::isfinite(m.gamma) && std::isfinite(m.tau), "coefficients must be finite");
    require(m.rk_sign == 0 || (m.function >= 0 && a.tableau.stages > 0), "an RK increment needs a tableau and a function");
    require(m.function < 0 || a.field != OdeField::user || a.user[m.function] != nullptr, "the user's function is null");
    require(m.function < 1 || a.field == OdeField::user || a.field == OdeField::lotka_volterra_log, "this field has one function");
    m.plain = m.alpha == 1.0 && m.beta == 0.0;
    if (!a.fixed) {
        require(!a.undo || m.alpha != 0.0, "alpha = 0 cannot be undone");
        return m;
    }
    m.carry_bits = carry_bits_of(m);
    m.coef = make_fixed_coef(numerator(m.alpha), numerator(m.beta));
    m.plain = m.plain && (m.gamma == 0.0 || (std::abs(m.gamma) > 0x1p-700 && std::abs(m.gamma) < 0x1p700));
    require(m.carry_bits == 0 || !a.undo || a.carry != nullptr, "|alpha| < 1 cannot be undone without carries");
    require(m.beta == 0.0 || same_units, "beta != 0 mixes the slots: both need the same units");
    return m;
}

void check_field(const OdeArgs& a) {
    const auto params = [&](int64_t n) { require(a.n_params == n, "the field has another number of parameters"); };
    const auto dims = [&](bool good) { require(good, "the field has another number of components"); };
    switch (a.field) {
        case OdeField::user: return;
        case OdeField::harmonic:
        case OdeField::pendulum: return params(1);
        case OdeField::kepler: return params(1), dims(a.dim == 2 || a.dim == 3);
        case OdeField::henon_heiles: return params(1), dims(a.dim == 2);
        case OdeField::fput: return params(2);
        case OdeField::n_body: {
            require(a.n_params >= 3 && a.params[0] >= 1.0 && a.params[0] <= 0x1p24, "the field has another number of parameters");
            const int64_t space = static_cast<int64_t>(a.params[0]);
            return dims(a.dim == space * (a.n_params - 2));
        }
        case OdeField::lotka_volterra: return params(4), dims(a.dim == 2);
        case OdeField::lotka_volterra_log: return params(4);
        case OdeField::van_der_pol: return params(1), dims(a.dim == 2);
        case OdeField::linear: return params(a.dim * a.dim);
    }
    require(false, "no such field");
}

// Units of a slot.
int64_t units_of(const OdeArgs& a) { return a.each ? a.batch * a.dim : a.dim; }

void check(const OdeArgs& a) {
    require(a.batch >= 0 && a.dim >= 1 && a.dim <= (1 << 24), "batch >= 0 and 1 <= dim <= 2^24");
    require(a.batch <= kMostElements / a.dim, "batch times dim is more than any memory has");
    require(a.steps >= 0 && a.position >= 0 && a.steps < kMostSteps && a.position < kMostSteps && (!a.undo || a.position >= a.steps), "steps and position must not be negative, nor more steps be undone than were taken");
    require(a.batch == 0 || (a.slot[0] != nullptr && a.slot[1] != nullptr && a.slot[0] != a.slot[1]), "two different slots");
    require(a.period >= 1 && a.micros != nullptr && a.counts != nullptr, "a program of at least one step");
    require(std::isfinite(a.t0) && std::isfinite(a.h), "t0 and h must be finite");
    require(a.save_every >= 0 && (a.save_every == 0 || (a.until_save >= 1 && a.until_save <= a.save_every)), "1 <= until_save <= save_every");
    require(a.lanes == 0 || a.lanes == 1 || (a.lanes > 0 && a.lanes <= kMostBlocks * kLanes && a.lanes % kLanes == 0), "lanes must be 0, 1 or ode_lanes() times 1 to 4");
    require(a.tableau.stages >= 0 && a.tableau.stages <= 64, "at most 64 stages");
    require(a.lo <= a.hi, "the interval of times must not be empty");
    require(a.bad == nullptr || a.bad_value != nullptr, "bad needs bad_value");
    require(a.fixed || !a.each, "floats have no units");
    require(a.carry == nullptr || (a.carry_stride >= 0 && a.carry_stride <= kMostElements && a.carry_at >= 0), "carry_stride and carry_at must not be negative, nor a row larger than any memory");
    check_field(a);
    if (!a.fixed) return;
    require(a.frac_bits[0] != nullptr && a.frac_bits[1] != nullptr, "fixed point needs the units of both slots");
    for (int slot = 0; slot < 2; ++slot)
        for (int64_t i = 0; i < units_of(a); ++i) require(std::abs(a.frac_bits[slot][i]) <= kMaxFracBits, "|frac_bits| <= 256");
}

bool earlier(const OdeArgs& a, const OdeShare& x, const OdeShare& y) {
    if (x.bad_step != y.bad_step) return a.undo ? x.bad_step > y.bad_step : x.bad_step < y.bad_step;
    return x.bad_system < y.bad_system;
}

void merge(const OdeArgs& a, OdeShare& into, const OdeShare& share) {
    into.evaluations = std::max(into.evaluations, share.evaluations);
    into.largest = std::max(into.largest, share.largest);
    into.failed = std::max(into.failed, share.failed);
    into.carry_at = share.carry_at;
    if (share.fault == OdeFault::elsewhere) into.fault = into.bad_step < 0 ? share.fault : into.fault;
    if (share.bad_step < 0) return;
    // A function that failed comes before a value that did not fit: the exception it left has to be told.
    const bool raised = share.fault == OdeFault::raised, known = into.fault == OdeFault::raised;
    if (into.bad_step >= 0 && raised == known && !earlier(a, share, into)) return;
    if (known && !raised) return;
    into.bad_step = share.bad_step, into.bad_system = share.bad_system;
    into.fault = share.fault, into.fault_component = share.fault_component, into.fault_t = share.fault_t;
}

struct Units {
    std::vector<double> values[4];
    bool same = true;  // in both slots

    explicit Units(const OdeArgs& a) {
        if (!a.fixed) return;
        for (int64_t i = 0; i < units_of(a); ++i) {
            for (int slot = 0; slot < 2; ++slot) {
                values[slot].push_back(exp2_of(a.frac_bits[slot][i]));
                values[2 + slot].push_back(exp2_of(-a.frac_bits[slot][i]));
            }
            same = same && a.frac_bits[0][i] == a.frac_bits[1][i];
        }
    }
};

bool looks(const OdeWatch& w) { return w.zero[0] != nullptr || w.zero[1] != nullptr || w.high[0] != nullptr || w.high[1] != nullptr || w.apart != nullptr; }

thread_local const int64_t* inside = nullptr;

// For as long as this thread works for a call.
struct Inside {
    const int64_t* const before;
    explicit Inside(const OdeArgs& a) : before(inside) { inside = a.stop; }
    ~Inside() { inside = before; }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
};

int64_t thread_number() { return static_cast<int64_t>(reinterpret_cast<intptr_t>(&inside)); }

// A call in which systems may fail without ending it.
class Survivors {
public:
    Survivors(const OdePlan& plan, const OdeBody& body, double* scratch, OdeShare& share) : plan_(plan), a_(*plan.args), body_(body), scratch_(scratch), share_(share) {}

    // Systems from .. to - 1, side by side where none has failed. Where one does now, all are put back to where they were at the
    // beginning of the call and taken one by one: their bits do not depend on who is beside them.
    void run(int64_t from, int64_t to, int lanes) {
        const bool all = std::all_of(a_.bad + from, a_.bad + to, [](int64_t step) { return step < 0; });
        if (all && to - from > 1) {
            keep(from, to);
            OdeShare mine;
            body_.run(plan_, from, to, lanes, scratch_, mine);
            if (mine.bad_step < 0 || mine.fault != OdeFault::none) return merge(a_, share_, mine);
            put_back(from, to);
        }
        for (int64_t system = from; system < to && share_.fault == OdeFault::none; ++system)
            if (a_.bad[system] < 0) one(system);
    }

private:
    void one(int64_t system) {
        OdeShare mine;
        body_.run(plan_, system, system + 1, 1, scratch_, mine);
        if (mine.bad_step < 0 || mine.fault != OdeFault::none) return merge(a_, share_, mine);
        a_.bad[system] = mine.bad_step, a_.bad_value[system] = mine.failed;
        share_.evaluations = std::max(share_.evaluations, mine.evaluations);
    }

    // All that a call changes and does not write again: `visit(array, first, count)`.
    template <class F>
    void each_array(int64_t from, int64_t to, F visit) {
        for (int s = 0; s < 2; ++s) {
            visit(static_cast<int64_t*>(a_.slot[s]), from * a_.dim, (to - from) * a_.dim);  // doubles are moved as what they are: 8 bytes
            visit(a_.watch.zero[s], from * a_.dim, (to - from) * a_.dim);
            visit(a_.watch.high[s], from * a_.dim, (to - from) * a_.dim);
        }
        visit(a_.watch.apart, from, to - from);
        visit(a_.watch.apart_at, from, to - from);
    }
    void keep(int64_t from, int64_t to) {
        before_.clear();
        each_array(from, to, [&](auto* array, int64_t first, int64_t count) {
            if (array == nullptr) return;
            const char* const begin = reinterpret_cast<const char*>(array + first);
            before_.insert(before_.end(), begin, begin + count * static_cast<int64_t>(sizeof *array));
        });
    }
    void put_back(int64_t from, int64_t to) {
        const char* at = before_.data();
        each_array(from, to, [&](auto* array, int64_t first, int64_t count) {
            if (array == nullptr) return;
            const size_t bytes = static_cast<size_t>(count) * sizeof *array;
            std::memcpy(static_cast<void*>(array + first), at, bytes);
            at += bytes;
        });
    }

    const OdePlan& plan_;
    const OdeArgs& a_;
    const OdeBody& body_;
    double* const scratch_;
    OdeShare& share_;
    std::vector<char> before_;
};

// Where the carries are after all steps of a call, also where no system was left to take them: rows stay in step.
int64_t carries_after(const OdePlan& plan) {
    const OdeArgs& a = *plan.args;
    int64_t bits = 0;
    for (int p = 0; p < a.period; ++p) {
        const int64_t low = a.undo ? a.position - a.steps : a.position, offset = ((p - low) % a.period + a.period) % a.period;
        const int64_t times = a.steps <= offset ? 0 : (a.steps - offset + a.period - 1) / a.period;
        for (int k = plan.first[p]; k < plan.first[p + 1]; ++k) bits += times * plan.micros[k].carry_bits * a.dim;
    }
    return a.carry_at + (a.undo ? -bits : bits);
}

// The bits of all steps of a call lie within a row.
void check_carries(const OdePlan& plan) {
    const OdeArgs& a = *plan.args;
    if (!a.fixed || a.carry == nullptr) return;
    double most = 0.0;
    for (int k = 0; k < plan.first[a.period]; ++k) most += static_cast<double>(plan.micros[k].carry_bits) * static_cast<double>(a.dim);
    require(most * static_cast<double>(a.steps) < 0x1p62, "the carries of so many steps are more than any memory has");
    const int64_t after = carries_after(plan);
    require(a.carry_at <= 8 * a.carry_stride && after >= 0 && after <= 8 * a.carry_stride, "the carries do not fit into their rows");
}

OdeResult result_of(const OdePlan& plan, const OdeShare& t) {
    const OdeArgs& a = *plan.args;
    OdeResult r{t.evaluations, t.bad_step, t.bad_system, std::max(t.largest, t.failed), t.carry_at, t.fault, t.fault_component, t.fault_t};
    if (a.batch == 0 || (a.bad != nullptr && t.fault == OdeFault::none)) r.carry_at = carries_after(plan);
    return r;
}

int lanes_for(const OdeArgs& a) {
    if (a.field == OdeField::user) return 1;
    if (a.lanes != 0) return a.lanes;
    if (a.batch < 4) return 1;
    // Blocks that fit into the first cache together, and no fewer tiles than threads.
    const int64_t threads = std::max(a.threads, 1), each = (a.batch + kLanes * threads - 1) / (kLanes * threads), fit = 8 / a.dim;
    return kLanes * static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({each, fit, kMostBlocks})));
}

}  // namespace

int ode_lanes() { return kLanes; }

std::pair<const int64_t*, int64_t> ode_inside() { return {inside, thread_number()}; }

OdeResult ode_run(const OdeArgs& a, Isa isa) {
    check(a);
    const OdeBody& body = choose(isa);
    const Units units(a);
    std::vector<PlannedMicro> micros;
    std::vector<int32_t> first{0};
    for (int p = 0; p < a.period; ++p) {
        require(a.counts[p] >= 0, "a program cannot have fewer than no micro-steps");
        for (int k = 0; k < a.counts[p]; ++k) micros.push_back(planned(a, a.micros[micros.size()], units.same));
        first.push_back(static_cast<int32_t>(micros.size()));
    }
    const OdePlan plan{&a, micros.data(), first.data(), {units.values[0].data(), units.values[1].data()}, {units.values[2].data(), units.values[3].data()}, !a.undo && looks(a.watch)};
    check_carries(plan);

    const int lanes = lanes_for(a);
    const int64_t tiles = (a.batch + lanes - 1) / lanes, room = ode_scratch(a.dim, lanes, a.tableau.stages, a.each) + 8;
    OdeShare total;
    total.carry_at = a.carry_at;
    const auto work = [&](int64_t begin, int64_t end, double* memory, OdeShare& share) {
        double* const scratch = memory + (8 - reinterpret_cast<uintptr_t>(memory) / sizeof(double) % 8) % 8;
        const Inside here(a);
        for (int64_t tile = begin; tile < end && share.fault == OdeFault::none; ++tile) {
            const int64_t from = tile * lanes, to = std::min(a.batch, from + lanes);
            if (a.bad != nullptr) {
                Survivors(plan, body, scratch, share).run(from, to, lanes);
                continue;
            }
            OdeShare mine;
            body.run(plan, from, to, lanes, scratch, mine);
            merge(a, share, mine);
        }
    };
#if defined(_OPENMP)
    const double size = static_cast<double>(a.batch) * static_cast<double>(a.dim) * static_cast<double>(a.steps) * static_cast<double>(micros.size()) / a.period;
    const int count = size < kSerialBelow ? 1 : static_cast<int>(std::min<int64_t>({a.threads, tiles, kMostThreads}));
    if (count > 1) {
        std::unique_ptr<double[]> memory(new double[static_cast<size_t>(room * count)]);
#pragma omp parallel num_threads(count)
        {
            const int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
            OdeShare mine;
            mine.carry_at = a.carry_at;
            work(tiles * rank / team, tiles * (rank + 1) / team, memory.get() + room * rank, mine);
#pragma omp critical(revstep_ode_merge)
            merge(a, total, mine);
        }
        return result_of(plan, total);
    }
#endif
    std::unique_ptr<double[]> memory(new double[static_cast<size_t>(room)]);
    if (tiles > 0) work(0, tiles, memory.get(), total);
    return result_of(plan, total);
}

void ode_math(OdeMath function, const double* x, double* out, int64_t n, Isa isa) {
    require(function == OdeMath::sin || function == OdeMath::cos || function == OdeMath::exp, "no such function");
    require(n >= 0 && n <= kMostElements && (n == 0 || (x != nullptr && out != nullptr)), "a null pointer, or a size that no memory has");
    choose(isa).math(function, x, out, n);
}

}  // namespace revstep
