// One-thread bandwidth of the step against memcpy, measured in turn. Usage: speed [log2 n = 22] [part of a case name]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/step.hpp"

using namespace revstep;

namespace {

double seconds(const std::function<void()>& f) {
    const auto t = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

size_t width(DType t) { return t == DType::bf16 || t == DType::f16 ? 2 : t == DType::f64 || t == DType::i64 ? 8 : 4; }

struct Case {
    const char* name;
    DType state, value, view;
    double alpha, beta;
    int64_t row_length = 0;  // every second row takes (-alpha, 2 - beta): BDIA's pair at alpha = 1/2
};

int bits_for(double alpha) {
    int b = 0;
    for (double a = alpha < 0 ? -alpha : alpha; a < 1.0; a *= 2.0) ++b;
    return b;
}

double on_grid(double x) { return static_cast<double>(static_cast<int64_t>(x * 0x1p24)) * 0x1p-24; }

void measure(const Case& c, int64_t n, int level) {
    const size_t count = static_cast<size_t>(n);
    std::vector<char> source(count * 8), cur(count * 8), out(count * 8), value(count * 8), view(count * 8);
    std::vector<uint32_t> carry(count / 32 * 8 + 8);
    for (size_t i = 0; i < count; ++i) {
        const uint32_t r = static_cast<uint32_t>(i) * 2654435761u;
        const int64_t x = static_cast<int64_t>(r >> 9) - (1 << 22);
        const int32_t x32 = static_cast<int32_t>(x);
        const float xf = static_cast<float>(x) * 0x1p-20f;
        const double xd = static_cast<double>(xf);
        const uint16_t xh = static_cast<uint16_t>((r >> 20) | 0x3000u);
        const auto put = [&](std::vector<char>& to, DType t, int64_t flip) {
            if (t == DType::i32) { const int32_t y = x32 ^ static_cast<int32_t>(flip); std::memcpy(&to[4 * i], &y, 4); }
            else if (t == DType::i64) { const int64_t y = x ^ flip; std::memcpy(&to[8 * i], &y, 8); }
            else if (t == DType::f32) std::memcpy(&to[4 * i], &xf, 4);
            else if (t == DType::f64) std::memcpy(&to[8 * i], &xd, 8);
            else std::memcpy(&to[2 * i], &xh, 2);
        };
        put(source, c.state, 0x5a5a5);
        put(cur, c.state, 0x33333);
        put(value, c.value, 0);
    }
    const bool fixed = c.state == DType::i32 || c.state == DType::i64;
    const int bits = fixed ? bits_for(c.alpha) : 0;
    std::vector<uint8_t> choice(c.row_length != 0 ? count / static_cast<size_t>(c.row_length) : 0);
    for (size_t i = 1; i < choice.size(); i += 2) choice[i] = 1;
    int64_t stats[4];
    StepArgs s{n, source.data(), c.beta != 0.0 ? cur.data() : nullptr, value.data(), out.data(), view.data(), carry.data(), stats,
               c.state, c.value, c.view, on_grid(c.alpha), on_grid(c.beta), 0.5, fixed ? 20 : 0, bits,
               choice.empty() ? nullptr : choice.data(), c.row_length, -on_grid(c.alpha), 2.0 - on_grid(c.beta), 0.5};
    const double bytes = static_cast<double>(count * (width(c.state) * (c.beta != 0.0 ? 3 : 2) + width(c.value) + width(c.view))) + static_cast<double>(count) * bits / 8;
    StepArgs back = s;
    back.source = out.data();
    back.out = source.data();
    double step_time = 1e9, inverse_time = 1e9, copy_time = 1e9;
    for (int i = 0; i < 12; ++i) {
        step_time = std::min(step_time, seconds([&] { step_cpu(s, 1, static_cast<Isa>(level)); }));
        inverse_time = std::min(inverse_time, seconds([&] { inverse_cpu(back, 1, static_cast<Isa>(level)); }));
        copy_time = std::min(copy_time, seconds([&] { std::memcpy(view.data(), cur.data(), view.size()); }));
    }
    const double copy = 2e-9 * static_cast<double>(view.size()) / copy_time, forward = bytes * 1e-9 / step_time, inverse = bytes * 1e-9 / inverse_time;
    std::printf("%-8s %-18s step %5.1f GB/s (%3.0f %%)   inverse %5.1f GB/s (%3.0f %%)   memcpy %5.1f GB/s\n",
                isa_levels()[static_cast<size_t>(level)].c_str(), c.name, forward, 100 * forward / copy, inverse, 100 * inverse / copy, copy);
}

}  // namespace

int main(int argc, char** argv) {
    const int64_t n = int64_t{1} << (argc > 1 ? std::atoi(argv[1]) : 22);
    const char* only = argc > 2 ? argv[2] : "";
    const Case cases[] = {
        {"i32/f32 a=1", DType::i32, DType::f32, DType::f32, 1.0, 0.0},    {"i32/f32 a=-1 b=2", DType::i32, DType::f32, DType::f32, -1.0, 2.0},
        {"i32/f32 a=0.25", DType::i32, DType::f32, DType::f32, 0.25, 0.75}, {"i32/f32 a=0.7", DType::i32, DType::f32, DType::f32, 0.7, 0.3},
        {"i32/f32 a=-1.3", DType::i32, DType::f32, DType::f32, -1.3, 2.3}, {"i32/bf16 a=1", DType::i32, DType::bf16, DType::bf16, 1.0, 0.0},
        {"i32/f16 a=1", DType::i32, DType::f16, DType::f16, 1.0, 0.0},    {"i32/f64 a=1", DType::i32, DType::f64, DType::f32, 1.0, 0.0},
        {"i64/f32 a=1", DType::i64, DType::f32, DType::f32, 1.0, 0.0},    {"i64/f32 a=0.7", DType::i64, DType::f32, DType::f32, 0.7, 0.3},
        {"i64/f32 a=0.25", DType::i64, DType::f32, DType::f32, 0.25, 0.75}, {"i64/f64 a=-1.3", DType::i64, DType::f64, DType::f64, -1.3, 2.3},
        {"f32/f32 a=1", DType::f32, DType::f32, DType::f32, 1.0, 0.0},    {"f32/bf16 a=0.7", DType::f32, DType::bf16, DType::bf16, 0.7, 0.3},
        {"i32/f32 a=0.5", DType::i32, DType::f32, DType::f32, 0.5, 0.5},
        {"i32/f32 rows 4096", DType::i32, DType::f32, DType::f32, 0.5, 0.5, 4096},
        {"i32/f32 rows 64", DType::i32, DType::f32, DType::f32, 0.5, 0.5, 64},
        {"i32/f32 rows 4", DType::i32, DType::f32, DType::f32, 0.5, 0.5, 4},
    };
    for (int level = 0; level < static_cast<int>(isa_levels().size()); ++level)
        for (const Case& c : cases)
            if (std::strstr(c.name, only) != nullptr) measure(c, n, level);
    return 0;
}
