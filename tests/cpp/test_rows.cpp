// Coefficients by row: every level, thread count and row length against the definition in 128-bit integers, forward, backward
// and through the carries; float states against the one-set step; refused arguments.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "kernels/step.hpp"
#include "oracle.hpp"

using namespace revstep;

namespace {

constexpr int kFrac = 20;

struct Set {
    int a, b;  // alpha, beta in units of 2^-24
    double gamma;
};

int at(double x) { return static_cast<int>(std::floor(x * 0x1p24)); }

int bits_of_set(const Set& s) {
    int bits = 0;
    while ((int64_t{std::abs(s.a)} << bits) < 1 << 24) ++bits;
    return bits;
}

struct Problem {
    int64_t rows, length;
    Set set[2];
    std::vector<uint8_t> choice;
    int64_t n() const { return rows * length; }
    int bits() const { return std::max(bits_of_set(set[0]), bits_of_set(set[1])); }
};

// The set of every element. `shift` moves the boundaries between rows: 0 is the definition, anything else a mutant.
const Set& set_of(const Problem& p, int64_t i, int64_t shift) {
    const int64_t moved = std::min(p.n() - 1, std::max<int64_t>(0, i + shift));
    return p.set[p.choice[static_cast<size_t>(moved / p.length)]];
}

template <class S>
struct Data {
    std::vector<S> prev, cur;
    std::vector<float> f;
};

template <class S>
Data<S> make_data(check::Random& r, int64_t n, bool wild) {
    Data<S> d;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t reach = wild && r.next() % 64 == 0 ? (int64_t{1} << (sizeof(S) == 4 ? 31 : 62)) - 1 : 1 << 24;
        d.prev.push_back(static_cast<S>(r.between(-reach, reach)));
        d.cur.push_back(static_cast<S>(r.between(-reach, reach)));
        d.f.push_back(static_cast<float>((r.unit() - 0.5) * 8));
    }
    return d;
}

int64_t increment(float f, double gamma) {
    const float g = f * static_cast<float>(gamma), v = g * 0x1p20f;
    return oracle::to_even(static_cast<long double>(v));
}

// Elements in which the step differs from the definition, bad ones and carries counted.
template <class S>
long wrong_steps(const Problem& p, const Data<S>& d, const std::vector<S>& next, const std::vector<uint32_t>& carry, const int64_t* stats, int64_t shift) {
    long wrong = 0;
    int64_t bad = 0, first_bad = -1;
    for (int64_t i = 0; i < p.n(); ++i) {
        const size_t j = static_cast<size_t>(i);
        const Set& s = set_of(p, i, shift);
        const int128 total = oracle::next(d.prev[j], d.cur[j], increment(d.f[j], s.gamma), s.a, s.b);
        if (oracle::magnitude(total) > oracle::limit<S> && ++bad == 1) first_bad = i;
        const int128 carried = bits_of_set(s) > 0 ? oracle::carry(d.prev[j], s.a) : 0;
        int128 packed = 0;
        for (int b = 0; b < p.bits(); ++b) packed |= static_cast<int128>((carry[j / 32 * static_cast<size_t>(p.bits()) + static_cast<size_t>(b)] >> (j % 32)) & 1u) << b;
        if (next[j] != oracle::low_bits<S>(total) || packed != carried) ++wrong;
    }
    return wrong + (stats[1] != bad ? 1 : 0) + (stats[3] != first_bad ? 1 : 0);
}

template <class S>
StepArgs arguments(const Problem& p, const Data<S>& d, const S* source, S* out, std::vector<uint32_t>& carry, int64_t* stats) {
    const double unit = 0x1p-24;
    const Set &k = p.set[0], &l = p.set[1];
    return {p.n(), source, d.cur.data(), d.f.data(), out, nullptr, carry.empty() ? nullptr : carry.data(), stats,
            sizeof(S) == 4 ? DType::i32 : DType::i64, DType::f32, DType::f32, k.a * unit, k.b * unit, k.gamma, kFrac, p.bits(),
            p.choice.data(), p.length, l.a * unit, l.b * unit, l.gamma};
}

template <class S>
void fixed(const Problem& p, check::Random& r, bool wild) {
    const Data<S> d = make_data<S>(r, p.n(), wild);
    for (int level = 0; level < static_cast<int>(isa_levels().size()); ++level)
        for (const int threads : {1, 2, 3})
            for (const bool in_place : {false, true}) {
                std::vector<S> next = in_place ? d.prev : std::vector<S>(d.prev.size(), S{77});
                std::vector<uint32_t> carry(static_cast<size_t>((p.n() + 31) / 32 * p.bits()), 0xabababab);
                int64_t stats[4], undone[4], whole[4];
                step_cpu(arguments(p, d, in_place ? next.data() : d.prev.data(), next.data(), carry, stats), threads, static_cast<Isa>(level));
                check::real(wrong_steps(p, d, next, carry, stats, 0), "step by rows");
                checksum_cpu({p.n(), next.data(), whole, sizeof(S) == 4 ? DType::i32 : DType::i64}, 1, Isa::best);
                check::expect(stats[0] == whole[0], "the checksum is over the whole state");
                if (stats[1] != 0) continue;
                std::vector<S> back = in_place ? next : std::vector<S>(next.size(), S{77});
                inverse_cpu(arguments(p, d, in_place ? back.data() : next.data(), back.data(), carry, undone), threads, static_cast<Isa>(level));
                check::expect(back == d.prev && undone[1] == 0, "inverse by rows: level %d, %d threads, %lld rows of %lld", level, threads,
                              static_cast<long long>(p.rows), static_cast<long long>(p.length));
            }
}

Problem make_problem(check::Random& r, int64_t rows, int64_t length, int which) {
    static const Set pairs[][2] = {
        {{at(0.5), at(0.5), 1.5}, {at(-0.5), at(1.5), 0.5}},      {{at(0.25), at(0.75), 1.25}, {at(-0.5), at(1.5), 0.5}},
        {{at(1.0), at(0.0), 2.0}, {at(0.5), at(0.5), 1.5}},       {{at(-1.3), at(2.0), 1.0}, {at(-0.3), at(1.3), 0.7}},
        {{at(0x1p-8), at(0.7), -1.0}, {at(-1.0), at(2.0), 0.37}},
    };
    Problem p{rows, length, {pairs[which % 5][0], pairs[which % 5][1]}, {}};
    for (int64_t i = 0; i < rows; ++i) p.choice.push_back(static_cast<uint8_t>(r.next() % 2));
    if (rows > 1) p.choice[1] = static_cast<uint8_t>(1 - p.choice[0]);
    return p;
}

void against_the_definition() {
    check::Random r{7};
    int which = 0;
    for (const int64_t rows : {1, 2, 7})
        for (const int64_t length : {1, 5, 32, 33, 127, 128, 129, 1000}) {
            const Problem p = make_problem(r, rows, length, which++);
            fixed<int32_t>(p, r, which % 2 == 0);
            fixed<int64_t>(p, r, which % 2 == 1);
        }
    fixed<int32_t>(make_problem(r, 7, 5003, 0), r, false);  // enough for several threads, rows that end inside words
    fixed<int32_t>(make_problem(r, 40009, 1, 1), r, false);
}

// The comparison above sees a boundary that is one element off, on either side, and a choice that is not read.
void mutants() {
    check::Random r{8};
    Problem p = make_problem(r, 7, 33, 0);
    const Data<int32_t> d = make_data<int32_t>(r, p.n(), false);
    std::vector<int32_t> next(d.prev.size());
    std::vector<uint32_t> carry(static_cast<size_t>((p.n() + 31) / 32 * p.bits()));
    int64_t stats[4];
    step_cpu(arguments(p, d, d.prev.data(), next.data(), carry, stats), 1, Isa::best);
    check::real(wrong_steps(p, d, next, carry, stats, 0), "step by rows");
    check::mutant(wrong_steps(p, d, next, carry, stats, 1), "rows begin one element early");
    check::mutant(wrong_steps(p, d, next, carry, stats, -1), "rows begin one element late");
    std::fill(p.choice.begin(), p.choice.end(), uint8_t{0});
    check::mutant(wrong_steps(p, d, next, carry, stats, 0), "choice ignored");
}

template <class S>
void floats(DType state, int64_t rows, int64_t length) {
    check::Random r{static_cast<uint64_t>(rows * length)};
    const size_t n = static_cast<size_t>(rows * length);
    std::vector<S> prev, cur, alone[2], out(n);
    std::vector<float> f;
    for (size_t i = 0; i < n; ++i) {
        prev.push_back(static_cast<S>(r.unit() - 0.5));
        cur.push_back(static_cast<S>(r.unit() - 0.5));
        f.push_back(static_cast<float>(r.unit() - 0.5));
    }
    std::vector<uint8_t> choice;
    for (int64_t i = 0; i < rows; ++i) choice.push_back(static_cast<uint8_t>(i == 1 || r.next() % 2));
    const double c[2][3] = {{1.0, 0.0, 0.3}, {-0.7, 1.7, 0.9}};
    int64_t stats[4];
    for (int level = 0; level < static_cast<int>(isa_levels().size()); ++level)
        for (const bool inverse : {false, true}) {
            const auto run = inverse ? inverse_cpu : step_cpu;
            StepArgs s{static_cast<int64_t>(n), prev.data(), cur.data(), f.data(), nullptr, nullptr, nullptr, stats, state, DType::f32, DType::f32, 0, 0, 0, 0, 0};
            for (int w = 0; w < 2; ++w) {
                alone[w].resize(n);
                s.alpha = c[w][0], s.beta = c[w][1], s.gamma = c[w][2], s.out = alone[w].data();
                run(s, 1, static_cast<Isa>(level));
            }
            s.alpha = c[0][0], s.beta = c[0][1], s.gamma = c[0][2], s.alpha1 = c[1][0], s.beta1 = c[1][1], s.gamma1 = c[1][2];
            s.choice = choice.data(), s.row_length = length, s.out = out.data();
            run(s, 2, static_cast<Isa>(level));
            long wrong = 0;
            for (size_t i = 0; i < n; ++i) wrong += out[i] != alone[choice[i / static_cast<size_t>(length)]][i];
            check::real(wrong, "float rows are those of their set alone");
        }
}

void refusals() {
    int32_t state[6] = {}, out[6];
    float f[6] = {};
    int64_t stats[4];
    uint32_t carry[1] = {};
    uint8_t choice[3] = {0, 1, 0};
    const StepArgs good{6, state, nullptr, f, out, nullptr, carry, stats, DType::i32, DType::f32, DType::f32, 1.0, 0.0, 1.0, 20, 1, choice, 2, 0.5, 0.0, 1.0};
    const auto refused = [&](const char* what, const std::function<void(StepArgs&)>& change) {
        StepArgs s = good;
        change(s);
        bool thrown = false;
        try {
            inverse_cpu(s, 1, Isa::best);
        } catch (const std::invalid_argument&) {
            thrown = true;
        }
        check::expect(thrown, "accepted: %s", what);
    };
    refused("a row length that does not divide n", [](StepArgs& s) { s.row_length = 4; });
    refused("negative row length", [](StepArgs& s) { s.row_length = -2; });
    refused("rows without choice", [](StepArgs& s) { s.choice = nullptr; });
    refused("choice without rows", [](StepArgs& s) { s.row_length = 0; });
    refused("carry bits of the first set", [](StepArgs& s) { s.carry_bits = 0; });
    refused("carry bits of neither set", [](StepArgs& s) { s.carry_bits = 2; });
    refused("missing carry", [](StepArgs& s) { s.carry = nullptr; });
    refused("second alpha off the grid", [](StepArgs& s) { s.alpha1 = 0.5 + 0x1p-30; });
    refused("second alpha zero", [](StepArgs& s) { s.alpha1 = 0.0; });
    refused("second beta too large", [&](StepArgs& s) { s.beta1 = 5.0; s.cur = state; });
    refused("second beta without cur", [](StepArgs& s) { s.beta1 = 0.5; });
    inverse_cpu(good, 1, Isa::best);
    StepArgs empty = good;
    empty.n = 0, empty.choice = nullptr, empty.row_length = 1;
    inverse_cpu(empty, 1, Isa::best);
}

}  // namespace

int main() {
    against_the_definition();
    mutants();
    for (const int64_t length : {1, 5, 33, 1000}) {
        floats<float>(DType::f32, 7, length);
        floats<double>(DType::f64, 7, length);
    }
    refusals();
    return check::finish("rows");
}
