#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace revstep {
namespace {

[[noreturn]] void fail(const std::string& sentence) { throw std::invalid_argument("revstep kernel: " + sentence); }

void require(bool ok, const char* sentence) {
    if (!ok) fail(sentence);
}

bool is_value(DType t) { return t == DType::f32 || t == DType::f64 || t == DType::bf16 || t == DType::f16; }
bool is_state(DType t) { return t == DType::f32 || t == DType::f64 || is_fixed(t); }

void check_size(int64_t n) {
    require(n >= 0, "n is negative");
    if (n > kMostElements) fail("n is " + std::to_string(n) + ", more elements than any memory has");
}

void check_format(int64_t n, const void* stats, DType state, int frac_bits) {
    check_size(n);
    require(stats != nullptr, "stats is a null pointer, expected room for four int64");
    require(is_state(state), "the state dtype must be i32, i64, f32 or f64");
    const int top = state == DType::i32 ? FixedTraits<int32_t>::max_frac_bits : FixedTraits<int64_t>::max_frac_bits;
    if (is_fixed(state) && (frac_bits < 0 || frac_bits > top))
        fail("frac_bits is " + std::to_string(frac_bits) + ", expected 0 to " + std::to_string(top));
}

void check_rows(int64_t n, int64_t row_length, const uint8_t* choice) {
    const bool rows = row_length != 0;
    require(!rows || (row_length > 0 && n % row_length == 0), "row_length is not a positive divisor of n");
    require(!rows || n == 0 || choice, "row_length is not zero but choice is a null pointer");
    require(rows || choice == nullptr, "choice is given but row_length is zero");
}

int32_t on_grid(double value, double largest, const char* name) {
    const double scaled = value * 0x1p24;
    if (!(std::fabs(value) <= largest) || scaled != std::rint(scaled))
        fail(std::string(name) + " is " + std::to_string(value) + ", expected a multiple of 2^-24 with magnitude at most " +
             std::to_string(static_cast<int>(largest)));
    return static_cast<int32_t>(scaled);
}

// Carry bits that the set needs.
int check_fixed(StepSet& set) {
    const int32_t a = on_grid(set.alpha, kMaxAlpha, "alpha");
    const int32_t b = on_grid(set.beta, kMaxBeta, "beta");
    if (a == 0 || std::fabs(set.alpha) < 0x1p-8)
        fail("alpha is " + std::to_string(set.alpha) + ", expected |alpha| >= 2^-8: below that the step cannot be undone");
    set.fixed = make_fixed_coef(a, b);
    return set.fixed.carry_bits;
}

void check_carry(const StepPlan& plan, int needed) {
    const StepArgs& s = plan.args;
    if (s.carry_bits != needed && (plan.inverse || s.carry_bits != 0))
        fail("carry_bits is " + std::to_string(s.carry_bits) + ", alpha = " + std::to_string(s.alpha) +
             (s.row_length != 0 ? " or " + std::to_string(s.alpha1) : "") + " needs " + std::to_string(needed));
    require(s.carry_bits == 0 || s.carry != nullptr || s.n == 0, "carry is a null pointer although carry_bits > 0");
}

}  // namespace

StepPlan make_plan(const StepArgs& args, bool inverse) {
    StepPlan plan{};
    plan.args = args;
    plan.inverse = inverse;
    check_format(args.n, args.stats, args.state, args.frac_bits);
    require(is_value(args.value_type), "the value dtype must be f32, f64, bf16 or f16");
    require(args.view == nullptr || is_value(args.view_type), "the view dtype must be f32, f64, bf16 or f16");
    require(args.n == 0 || (args.source && args.value && args.out), "a required pointer is null");
    const bool rows = args.row_length != 0;
    check_rows(args.n, args.row_length, args.choice);
    plan.set[0] = {args.alpha, args.beta, args.gamma, {}};
    plan.set[1] = {args.alpha1, args.beta1, args.gamma1, {}};
    plan.wide = args.value_type == DType::f64 || args.state == DType::f64;
    bool uses_cur = false;
    int bits = 0;
    for (int i = 0; i < (rows ? 2 : 1); ++i) {
        uses_cur = uses_cur || plan.set[i].beta != 0.0;
        if (is_fixed(args.state)) bits = std::max(bits, check_fixed(plan.set[i]));
        else require(!inverse || plan.set[i].alpha != 0.0, "alpha = 0 cannot be undone");
    }
    require(args.n == 0 || !uses_cur || args.cur, "beta is not zero but cur is a null pointer");
    if (is_fixed(args.state)) check_carry(plan, bits);
    else require(args.carry_bits == 0, "float states have no carry");
    if (!uses_cur) plan.args.cur = args.source;  // never used, but always readable
    return plan;
}

void check(const EncodeArgs& args) {
    check_format(args.n, args.stats, args.state, args.frac_bits);
    require(is_value(args.value_type), "the value dtype must be f32, f64, bf16 or f16");
    require(args.view == nullptr || is_value(args.view_type), "the view dtype must be f32, f64, bf16 or f16");
    require(args.n == 0 || (args.x && args.out), "a required pointer is null");
}

void check(const DecodeArgs& args) {
    check_format(args.n, &args, args.state, args.frac_bits);
    require(is_value(args.view_type), "the view dtype must be f32, f64, bf16 or f16");
    require(args.n == 0 || (args.state_data && args.view), "a required pointer is null");
}

void check(const ChecksumArgs& args) {
    check_format(args.n, args.stats, args.state, 0);
    require(args.n == 0 || args.data, "a required pointer is null");
}

void check(const ScaleArgs& args) {
    check_size(args.n);
    require(is_value(args.value_type) && is_value(args.last_type), "the dtypes must be f32, f64, bf16 or f16");
    if (args.count < 1 || args.count > kMaxScaled)
        fail("count is " + std::to_string(args.count) + ", expected 1 to " + std::to_string(kMaxScaled));
    check_rows(args.n, args.row_length, args.choice);
    for (int k = 0; k < args.count; ++k) require(args.n == 0 || (args.g && args.out[k]), "a required pointer is null");
}

}  // namespace revstep
