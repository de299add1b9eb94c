// Multiples in one pass: every pair of dtypes, level, thread count and number of factors against the definition, one element at a time;
// rows of either set; outputs stay within their bounds; refused arguments.
#include <cstring>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "core/half.hpp"
#include "kernels/step.hpp"

using namespace revstep;

namespace {

const DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};
constexpr unsigned char kGuard = 0xa5;

size_t width(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

double load(const unsigned char* p, DType t) {
    if (t == DType::f64) { double x; std::memcpy(&x, p, 8); return x; }
    if (t == DType::f32) { float x; std::memcpy(&x, p, 4); return static_cast<double>(x); }
    uint16_t h;
    std::memcpy(&h, p, 2);
    return static_cast<double>(t == DType::bf16 ? bf16_to_float(h) : half_to_float(h));
}

void store(unsigned char* p, DType t, double x) {
    const float f = static_cast<float>(x);
    const uint16_t h = t == DType::bf16 ? float_to_bf16(f) : float_to_half(f);
    if (t == DType::f64) std::memcpy(p, &x, 8);
    else if (t == DType::f32) std::memcpy(p, &f, 4);
    else std::memcpy(p, &h, 2);
}

// `twice`: the product is rounded to `value` before `type`; without it a mutant.
void define(unsigned char* p, DType value, DType type, double g, double factor, bool twice) {
    double x = value == DType::f64 ? g * factor : static_cast<double>(static_cast<float>(g) * static_cast<float>(factor));
    unsigned char rounded[8];
    store(rounded, value, x);
    if (twice) x = load(rounded, value);
    store(p, type, factor == 0.0 ? 0.0 : x);
}

struct Case {
    DType value, last;
    int64_t n, row_length;
    int count;
};

const double kFirst[] = {0.3, 0.0, -1.7}, kSecond[] = {0.0, 2.5, 1.0 / 3};

long wrong(const Case& c, int threads, int level, bool twice, bool second_set) {
    check::Random r{static_cast<uint64_t>(c.n) + 7};
    const size_t n = static_cast<size_t>(c.n);
    std::vector<unsigned char> g(n * width(c.value)), out[kMaxScaled];
    std::vector<uint8_t> choice(c.row_length != 0 ? n / static_cast<size_t>(c.row_length) : 0);
    for (uint8_t& w : choice) w = static_cast<uint8_t>(r.next() & 1);
    for (size_t i = 0; i < n; ++i) store(&g[i * width(c.value)], c.value, (r.unit() - 0.5) * 8);
    ScaleArgs s{c.n, g.data(), {}, c.count, c.value, c.last, {}, choice.empty() ? nullptr : choice.data(), c.row_length, {}};
    for (int k = 0; k < c.count; ++k) {
        out[k].assign(n * width(k + 1 < c.count ? c.value : c.last) + 1, kGuard);
        s.out[k] = out[k].data();
        s.factor[k] = kFirst[k];
        s.factor1[k] = kSecond[k];
    }
    scale_cpu(s, threads, static_cast<Isa>(level));
    long count = 0;
    for (int k = 0; k < c.count; ++k) {
        const DType type = k + 1 < c.count ? c.value : c.last;
        for (size_t i = 0; i < n; ++i) {
            const bool second = second_set && c.row_length != 0 && choice[i / static_cast<size_t>(c.row_length)] != 0;
            unsigned char expected[8];
            define(expected, c.value, type, load(&g[i * width(c.value)], c.value), second ? kSecond[k] : kFirst[k], twice);
            count += std::memcmp(expected, &out[k][i * width(type)], width(type)) != 0 ? 1 : 0;
        }
        count += out[k].back() != kGuard ? 1 : 0;
    }
    return count;
}

void test_refused() {
    float x[4] = {}, y[4];
    const ScaleArgs good{4, x, {y, nullptr, nullptr}, 1, DType::f32, DType::f32, {2.0}, nullptr, 0, {}};
    scale_cpu(good, 1, Isa::best);
    check::expect(y[0] == 0.0f, "an ordinary call fails");
    ScaleArgs bad[5] = {good, good, good, good, good};
    bad[0].count = 0;
    bad[1].count = 2;  // its second output is null
    bad[2].value_type = DType::i32;
    bad[3].row_length = 3;
    bad[4].row_length = 2;  // without a choice
    for (int i = 0; i < 5; ++i) {
        bool refused = false;
        try {
            scale_cpu(bad[i], 1, Isa::best);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        check::expect(refused, "bad arguments %d were not refused", i);
    }
}

}  // namespace

int main() {
    const int levels = static_cast<int>(isa_levels().size());
    for (DType value : kTypes)
        for (DType last : kTypes)
            for (int level = 0; level < levels; ++level)
                for (int count = 1; count <= kMaxScaled; ++count) {
                    for (int64_t n : {0, 1, 31, 257}) check::real(wrong({value, last, n, 0, count}, 1, level, true, true), "one set");
                    for (int64_t length : {1, 5, 190}) check::real(wrong({value, last, 7 * length, length, count}, 1, level, true, true), "rows");
                }
    for (DType value : kTypes) {
        check::real(wrong({value, DType::bf16, 70000, 0, 3}, 2, levels - 1, true, true), "two threads");
        check::real(wrong({value, DType::f32, 70000, 7000, 3}, 2, levels - 1, true, true), "two threads, rows");
    }
    check::mutant(wrong({DType::bf16, DType::f32, 257, 0, 1}, 1, 0, false, true), "a product rounded once");
    check::mutant(wrong({DType::f32, DType::f32, 257 * 4, 257, 2}, 1, 0, true, false), "one set for all rows");
    test_refused();
    return check::finish("scale");
}
