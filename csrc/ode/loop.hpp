// Compiled integration loops. Two slots of `batch` systems with `dim` components each; a micro-step is
//     slot[i] <- alpha slot[i] + beta slot[1-i] + gamma Phi(t, slot[1-i])       t = t0 + (n + tau) h
// and a step is a program of micro-steps. Fixed-point slots hold X = x 2^F in int64, F per component and slot; their
// micro-steps are those of core/fixed.hpp, and undoing them in reverse order returns the same bits.
// Bad arguments throw std::invalid_argument. Knows neither Python nor torch.
#pragma once

#include <cstdint>

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

struct OdeArgs {
    int64_t batch, dim;
    void* slot[2];  // (batch, dim), int64 or double, advanced in place
    bool fixed;
    const int32_t* frac_bits[2];  // dim values of F a slot; null for floats

    int64_t steps, position;  // forwards: steps position, position + 1, ...; backwards: position - 1, position - 2, ...
    bool undo;
    double t0, h;
    const OdeMicro* micros;  // the programs of `period` consecutive steps, one after the other
    const int32_t* counts;   // micro-steps in each; step n runs program n % period
    int period;
    OdeTableau tableau;

    OdeField field;
    const double* params;
    int64_t n_params;
    OdeFunction user[2];
    void* user_data[2];

    int64_t save_every, until_save;  // 0: never; steps until the next save, 1 .. save_every
    void* save[2];                   // (saves, batch, dim), either may be null

    uint8_t* carry;        // a row of bits a system, null: nothing is kept (then alpha < 1 cannot be undone)
    int64_t carry_stride;  // bytes a row
    int64_t carry_at;      // first free bit of every row

    int threads, lanes;  // lanes: 0 chooses, 1 or ode_lanes() insists
};

struct OdeResult {
    int64_t evaluations = 0;  // of the field, for one system; an RK increment counts its stages
    int64_t bad_step = -1;    // the first step in which a value was beyond the format, NaN or infinite
    int64_t bad_system = -1;
    double largest = 0.0;     // |X| (fixed point) or |x| in any slot after any step, also of the value that did not fit; inf for NaN
    int64_t carry_at = 0;     // position after the call
};

int ode_lanes();

// Bits a system needs to undo step n: the sum over its micro-steps of dim times what |alpha| costs. Fixed point only.
int64_t ode_carry_bits(const OdeMicro* micros, int count, int64_t dim);

OdeResult ode_run(const OdeArgs& args, Isa isa);

// The functions of math.hpp over an array, for tests.
enum class OdeMath : int { sin, cos, exp };
void ode_math(OdeMath function, const double* x, double* out, int64_t n, Isa isa);

}  // namespace revstep
