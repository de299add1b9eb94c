// Checked arguments with everything that is constant over the elements: the same for every launcher.
#pragma once

#include "../core/fixed.hpp"
#include "step.hpp"

namespace revstep {

// What one row is combined with.
struct StepSet {
    double alpha, beta, gamma;
    FixedCoef fixed;  // fixed-point states only
};

struct StepPlan {
    StepArgs args;
    StepSet set[2];  // the second one only with args.row_length
    bool inverse;
    bool wide;  // arithmetic in double instead of float
};

// More elements than any memory has: a size above is a lie, and sums of sizes below it do not overflow.
constexpr int64_t kMostElements = int64_t{1} << 47;

inline bool is_fixed(DType t) { return t == DType::i32 || t == DType::i64; }

StepPlan make_plan(const StepArgs& args, bool inverse);
void check(const EncodeArgs& args);
void check(const DecodeArgs& args);
void check(const ChecksumArgs& args);
void check(const ScaleArgs& args);

}  // namespace revstep
