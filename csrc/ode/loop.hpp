// Compiled integration loops. Two slots of `batch` systems with `dim` components each; a micro-step is
//     slot[i] <- alpha slot[i] + beta slot[1-i] + gamma Phi(t, slot[1-i])       t = t0 + (n + tau) h
// and a step is a program of micro-steps. Fixed-point slots hold X = x 2^F in int64, F per component and slot; their
// micro-steps are those of core/fixed.hpp, and undoing them in reverse order returns the same bits.
// Bad arguments throw std::invalid_argument. Knows neither Python nor torch.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>

#include "../kernels/step.hpp"

namespace revstep {

enum class OdeField : int { user, harmonic, pendulum, kepler, henon_heiles, fput, n_body, lotka_volterra, van_der_pol, linear, lotka_volterra_log };

struct OdeMicro {
    int slot;      // the one that changes
    int function;  // 0 or 1: of the field; -1: Phi is the other slot itself
    int rk_sign;   // +1, -1: Phi is the tableau's increment of a step of +h, -h of the field
    double alpha, beta, gamma, tau;
};

struct OdeTableau {
    int stages;
    const double *a, *b, *c;  // a: stages x stages, the strict lower triangle is used
};

typedef void (*OdeFunction)(double t, const double* x, double* out, long n, void* user);

// What a run forwards notices of itself, on the steps that are looked at (ode_looked_at) and nowhere else. All of it belongs to
// the caller and is accumulated over calls; null: not recorded. The first four are for fixed point only.
struct OdeWatch {
    int64_t* zero[2];   // (batch, dim) a slot: increments that are not zero and were rounded to zero
    int64_t* high[2];   // (batch, dim) a slot: largest magnitude of an increment, in units of X
    double* apart;      // (batch): largest |u_i - v_i| between the slots after a step, in the units of the equation
    int64_t* apart_at;  // (batch): the step after which it was found
};

// The first of the steps looked at that is not below n: 0 to 3, then 4, 6, 8, 12, 16, 24, ..., two in every octave.
inline int64_t ode_looked_at(int64_t n) {
    if (n < 4) return n;
    int64_t low = 4;
    while (low <= n / 2) low *= 2;
    if (n == low) return low;
    return n <= low + low / 2 ? low + low / 2 : low * 2;
}

struct OdeArgs {
    int64_t batch, dim;
    void* slot[2];  // (batch, dim), int64 or double, advanced in place
    bool fixed;
    const int32_t* frac_bits[2];  // dim values of F a slot, or (batch, dim) where `each`; null for floats
    bool each;                    // every system has units of its own

    int64_t steps, position;  // forwards: steps position, position + 1, ...; backwards: position - 1, position - 2, ...
    bool undo;
    double t0, h;
    // The caller's functions are asked at times in [lo, hi] only: others are moved to its ends.
    double lo = -std::numeric_limits<double>::infinity(), hi = std::numeric_limits<double>::infinity();
    const OdeMicro* micros;  // the programs of `period` consecutive steps, one after the other
    const int32_t* counts;   // micro-steps in each; step n runs program n % period
    int period;
    OdeTableau tableau;

    OdeField field;
    const double* params;
    int64_t n_params;
    OdeFunction user[2];
    void* user_data[2];
    const int64_t* stop;  // set by someone else to the number (ode_inside) of the thread whose function failed; may be null

    int64_t save_every, until_save;  // 0: never; steps until the next save, 1 .. save_every
    void* save[2];                   // (saves, batch, dim), either may be null

    uint8_t* carry;        // a row of bits a system, null: nothing is kept (then alpha < 1 cannot be undone)
    int64_t carry_stride;  // bytes a row
    int64_t carry_at;      // first free bit of every row

    int threads, lanes;  // lanes: 0 chooses; 1, or ode_lanes() times 1 to 4, insists

    OdeWatch watch;
    int64_t* bad;      // (batch), null: the call ends at the first system that fails. Otherwise the others go on: the step in
    double* bad_value; // which each failed (-1: it did not; those that have are left alone) and the magnitude that did not fit
};

// unwritten: a component of `out` was left as it was before the call; raised: `stop` was set from within it.
enum class OdeFault : int { none, unwritten, raised, elsewhere };

struct OdeResult {
    int64_t evaluations = 0;  // of the field, for one system; an RK increment counts its stages
    int64_t bad_step = -1;    // the first step in which a value was beyond the format, NaN or infinite
    int64_t bad_system = -1;
    double largest = 0.0;     // |X| (fixed point) or |x| in any slot after any step, also of the value that did not fit; inf for NaN
    int64_t carry_at = 0;     // position after the call
    OdeFault fault = OdeFault::none;  // of the caller's function, in bad_step and for bad_system
    int64_t fault_component = -1;     // the first that was not written
    double fault_t = 0.0;             // the time it was asked at
};

// What this thread is inside of: the `stop` of the call it works for (null: none), and a number of the thread.
std::pair<const int64_t*, int64_t> ode_inside();

int ode_lanes();

OdeResult ode_run(const OdeArgs& args, Isa isa);

// The functions of math.hpp over an array, for tests.
enum class OdeMath : int { sin, cos, exp };
void ode_math(OdeMath function, const double* x, double* out, int64_t n, Isa isa);

}  // namespace revstep
