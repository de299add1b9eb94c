// Fingerprints against their definition, what they have to notice, and float views against decode.
#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.hpp"
#include "kernels/look.hpp"

using namespace revstep;

namespace {

int64_t somewhere = 0;  // an address that is not null; nothing is read or written there

uint64_t mixed(uint64_t k) {
    uint32_t a = static_cast<uint32_t>(2 * k + 1) * 0x9E3779B1u;
    a ^= a >> 15 & 0xfffffffeu;
    a *= 0x2C1B3C6Du;
    return a ^ (a >> 12 & 0xfffffffeu);
}

struct Case {
    int width;
    std::vector<int64_t> size, stride;  // in any order, in elements
    int64_t every;
    uint32_t seed;
};

// The dimensions of a tensor outermost first, without those that repeat, and the number of elements.
struct Lying {
    std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
    int64_t n = 1;
    int width;
};

Lying lying(const Case& c) {
    Lying found{{}, 1, c.width};
    for (size_t d = 0; d < c.size.size(); ++d) {
        if (c.size[d] == 0) found.n = 0;
        if (c.size[d] != 1 && c.stride[d] != 0) found.dims.push_back({c.stride[d], c.size[d]});
    }
    if (c.width == 16) {
        for (auto& dim : found.dims) dim.first *= 2;
        found.dims.push_back({1, 2});
        found.width = 8;
    }
    std::stable_sort(found.dims.begin(), found.dims.end(), [](auto a, auto b) { return a.first > b.first; });
    for (const auto& dim : found.dims) found.n *= dim.second;
    return found;
}

// In elements of the width that is summed.
int64_t place(const Lying& tensor, int64_t i) {
    int64_t at = 0;
    for (size_t d = tensor.dims.size(); d-- > 0;) {
        at += i % tensor.dims[d].second * tensor.dims[d].first;
        i /= tensor.dims[d].second;
    }
    return at;
}

// The elements that are looked at: of each `every` units one, which a mixed number decides.
std::vector<int64_t> looked_at(const Lying& tensor, int64_t every, uint32_t seed) {
    const int64_t group = 64 / tensor.width, units = (tensor.n + group - 1) / group;
    std::vector<int64_t> found;
    for (int64_t first = 0; first < units; first += every) {
        const uint64_t among = static_cast<uint64_t>(std::min(every, units - first));
        const uint64_t number = mixed(static_cast<uint32_t>(first / every) + seed);
        const int64_t unit = first + static_cast<int64_t>(number * among >> 32);
        const int64_t end = std::min(tensor.n, (unit + 1) * group);
        for (int64_t i = unit * group; i < end; ++i) found.push_back(i);
    }
    return found;
}

uint64_t by_definition(const Case& c, const std::vector<unsigned char>& memory) {
    const Lying tensor = lying(c);
    const size_t width = static_cast<size_t>(tensor.width);
    uint64_t sum = 0;
    for (const int64_t i : looked_at(tensor, c.every, c.seed)) {
        uint64_t word = 0;
        std::memcpy(&word, memory.data() + static_cast<size_t>(place(tensor, i)) * width, width);
        const uint64_t index = static_cast<uint64_t>(i), inner = mixed(index % 128);
        const uint64_t low = static_cast<uint32_t>(word);
        sum += (low * inner + (word >> 32) * (inner ^ 0x5BD1E994u)) * mixed(128 + index / 128);
    }
    return sum;
}

uint64_t by_kernel(const Case& c, const void* memory, Isa isa = Isa::best) {
    int64_t sum = -1;
    sample_cpu(sample_args(memory, c.width, c.size, c.stride, c.every, c.seed, &sum), isa);
    return static_cast<uint64_t>(sum);
}

// Bytes from the first element to the end of the last one.
size_t extent(const Case& c) {
    int64_t last = 0;
    for (size_t d = 0; d < c.size.size(); ++d) last += (c.size[d] - 1) * c.stride[d];
    return static_cast<size_t>((std::max<int64_t>(last, 0) + 1) * c.width);
}

std::vector<unsigned char> bytes(size_t count, check::Random& r) {
    std::vector<unsigned char> memory(count);
    for (unsigned char& b : memory) b = static_cast<unsigned char>(r.next());
    return memory;
}

// A tensor of `rank` dimensions, permuted, with gaps, slices and expanded dimensions.
Case random_case(check::Random& r) {
    const int widths[] = {1, 2, 4, 8, 16}, everies[] = {1, 1, 2, 3, 7, 64, 256};
    const uint32_t seed = static_cast<uint32_t>(r.next());
    Case c{widths[r.between(0, 4)], {}, {}, everies[r.between(0, 6)], seed};
    const int64_t rank = r.between(0, 5);
    std::vector<std::pair<int64_t, int64_t>> dims;
    int64_t step = r.between(0, 3) == 0 ? r.between(2, 3) : 1;
    for (int64_t d = 0; d < rank; ++d) {
        const int64_t size = r.between(1, rank < 3 ? 700 : 9);
        const bool expanded = r.between(0, 6) == 0;
        dims.push_back({size, expanded ? 0 : step});
        if (!expanded) step *= size + (r.between(0, 2) == 0 ? r.between(1, 5) : 0);
    }
    for (size_t d = dims.size(); d > 1; --d) std::swap(dims[d - 1], dims[r.next() % d]);
    for (const auto& [size, stride] : dims) {
        c.size.push_back(size);
        c.stride.push_back(stride);
    }
    return c;
}

std::vector<Isa> levels() {
    std::vector<Isa> found;
    for (size_t k = 0; k < isa_levels().size(); ++k) found.push_back(static_cast<Isa>(k));
    return found;
}

long disagreements(const Case& c, check::Random& r) {
    const std::vector<unsigned char> memory = bytes(extent(c), r);
    const uint64_t expected = by_definition(c, memory);
    long wrong = 0;
    for (const Isa level : levels()) wrong += by_kernel(c, memory.data(), level) != expected;
    return wrong;
}

void against_the_definition() {
    check::Random r{31};
    long random = 0, runs = 0, broken = 0;
    for (int trial = 0; trial < 1500; ++trial) random += disagreements(random_case(r), r);
    check::real(random, "fingerprints of tensors of any strides are those of the definition");
    for (const int width : {1, 2, 4, 8, 16})
        for (const int64_t every : {1, 2, 5, 256})
            for (const int64_t n : {0, 1, 7, 8, 9, 15, 17, 31, 63, 64, 65, 127, 128, 129, 513, 4097, 20011}) {
                const Case c{width, {n}, {1}, every, static_cast<uint32_t>(r.next())};
                runs += disagreements(c, r);
                Case later = c;
                later.seed += 1;
                const std::vector<unsigned char> memory = bytes(extent(c), r);
                if (every == 1 || n < 4097) continue;
                broken += by_kernel(c, memory.data()) != by_definition(later, memory);
            }
    check::real(runs, "fingerprints of one run are those of the definition, whole units and tails");
    check::mutant(broken, "another seed");
}

void shapes() {
    check::Random r{5};
    const std::vector<unsigned char> memory = bytes(1 << 14, r);
    const auto sum = [&](std::vector<int64_t> size, std::vector<int64_t> stride, int width = 4) {
        return by_kernel({width, std::move(size), std::move(stride), 1, 0}, memory.data());
    };
    const uint64_t one = sum({1}, {1}), run = sum({300}, {1});
    check::expect(sum({}, {}) == one && sum({1, 1}, {77, 5}) == one, "a scalar is one element");
    check::expect(sum({3, 0, 2}, {0, 2, 1}) == 0 && sum({0}, {1}, 16) == 0, "nothing to look at gives 0");
    check::expect(by_kernel({4, {0}, {1}, 9, 3}, nullptr) == 0, "nothing is read of no elements");
    check::expect(sum({6, 50}, {50, 1}) == run, "neighbouring rows are one run");
    check::expect(sum({50, 6}, {1, 50}) == run, "numbered as they lie in memory");
    check::expect(sum({9, 50}, {0, 1}) == sum({50}, {1}), "an expanded dimension is counted once");
    check::expect(sum({6, 50}, {51, 1}) != run, "a gap matters");
    typedef std::vector<int64_t> Numbers;
    const auto refused = [](int width, const Numbers& sizes, const Numbers& strides, int64_t every) {
        try {
            (void)sample_args(&somewhere, width, sizes, strides, every, 0, &somewhere);
        } catch (const std::invalid_argument&) {
            return true;
        }
        return false;
    };
    check::expect(refused(3, {1}, {1}, 1), "three bytes are no element");
    check::expect(refused(4, {1}, {1, 1}, 1) && refused(4, {1}, {1}, 0), "bad arguments are refused");
    check::expect(!refused(4, {1}, {1}, 1), "good ones are not");
}

// Sixteen dimensions of which no two are one run. A seventeenth is refused, also that of 16-byte elements.
void many_dimensions() {
    check::Random r{8};
    Case c{1, {}, {}, 1, 0};
    int64_t step = 1;
    for (int d = 0; d < 16; ++d, step *= 3) {
        c.size.push_back(2);
        c.stride.push_back(step);
    }
    check::real(disagreements(c, r), "sixteen dimensions");
    c.every = 5;
    check::real(disagreements(c, r), "sixteen dimensions, one unit in five");
    const auto fits = [](const Case& tensor) {
        try {
            (void)sample_args(&somewhere, tensor.width, tensor.size, tensor.stride, 1, 0, &somewhere);
        } catch (const std::invalid_argument&) {
            return false;
        }
        return true;
    };
    Case wide = c, joined = c, more = c;
    wide.width = 16;
    for (int64_t& stride : wide.stride) stride *= 2;  // the halves of an element are not one run then
    joined.size.push_back(2);
    joined.stride.push_back(2 * c.stride.back());  // one run with the last
    more.size.push_back(2);
    more.stride.push_back(step);
    check::expect(fits(c) && fits(joined), "sixteen dimensions fit, after joining");
    check::expect(!fits(more) && !fits(wide), "seventeen do not");
}

// Every bit of every element that is looked at changes the sum, and no other bit does.
void changes() {
    check::Random r{77};
    const Case cases[] = {
        {1, {300}, {1}, 1, 0},       {2, {150}, {1}, 3, 9},       {4, {3, 40}, {1, 3}, 1, 2},
        {4, {700}, {1}, 5, 1u << 31}, {8, {65}, {1}, 1, 4},       {8, {5, 20}, {40, 2}, 2, 6},
        {16, {33}, {1}, 1, 0},       {16, {4, 30}, {31, 1}, 3, 7}, {2, {9, 9}, {20, 2}, 1, 0},
        {1, {40, 7, 5}, {0, 5, 1}, 2, 3},
    };
    for (const Case& c : cases) {
        std::vector<unsigned char> memory = bytes(extent(c), r);
        const Lying tensor = lying(c);
        std::set<int64_t> seen;  // bytes
        for (const int64_t i : looked_at(tensor, c.every, c.seed))
            for (int64_t b = 0; b < tensor.width; ++b) seen.insert(place(tensor, i) * tensor.width + b);
        const uint64_t before = by_kernel(c, memory.data());
        long missed = 0, false_alarms = 0;
        for (size_t b = 0; b < memory.size(); ++b)
            for (int bit = 0; bit < 8; ++bit) {
                memory[b] ^= static_cast<unsigned char>(1 << bit);
                const bool noticed = by_kernel(c, memory.data()) != before;
                const bool expected = seen.count(static_cast<int64_t>(b)) != 0;
                missed += expected && !noticed;
                false_alarms += noticed && !expected;
                memory[b] ^= static_cast<unsigned char>(1 << bit);
            }
        check::real(missed, "a changed bit that is looked at is noticed");
        check::real(false_alarms, "a bit that is not looked at does not matter");
    }
}

// Each group of `every` units gives exactly one, the last group too. Over the seeds every unit is reached.
void places() {
    for (const int64_t every : {1, 2, 3, 8, 61, 256}) {
        for (const int64_t units : {int64_t{1}, every - 1, every, every + 1, 7 * every + every / 2}) {
            if (units == 0) continue;
            const SampleArgs base = sample_args(&somewhere, 4, {units * 16 - 3}, {1}, every, 0, &somewhere);
            const int shown = static_cast<int>(units), one_in = static_cast<int>(every);
            check::expect(sample_units(base) == units, "%d units", shown);
            const int64_t groups = (units + every - 1) / every;
            check::expect(sample_chosen(base) == groups, "%d units, one in %d", shown, one_in);
            std::set<int64_t> reached;
            long outside = 0;
            for (uint32_t seed = 0; seed < 40 * static_cast<uint32_t>(every); ++seed) {
                SampleArgs s = base;
                s.seed = seed * 0x9E3779B9u;  // sums of seed and group number wrap
                for (int64_t j = 0; j < sample_chosen(s); ++j) {
                    const int64_t unit = sample_unit(s, j);
                    outside += unit < j * every || unit >= std::min(units, (j + 1) * every);
                    reached.insert(unit);
                }
            }
            check::real(outside, "a group's unit is one of its own");
            const int places = static_cast<int>(reached.size());
            check::expect(places == shown, "%d of %d units reached, one in %d", places, shown, one_in);
        }
    }
}

// ---- float views -----------------------------------------------------------------------------------------

int64_t bytes_of(DType t) {
    if (t == DType::f64 || t == DType::i64) return 8;
    return t == DType::bf16 || t == DType::f16 ? 2 : 4;
}

// A number of a state's format, as its bytes.
void put(unsigned char* to, DType state, int64_t x) {
    const double wide = static_cast<double>(x) * 0x1p-20;
    const float single = static_cast<float>(wide);
    const int32_t narrow = static_cast<int32_t>(x);
    switch (state) {
        case DType::i64: std::memcpy(to, &x, 8); break;
        case DType::f64: std::memcpy(to, &wide, 8); break;
        case DType::f32: std::memcpy(to, &single, 4); break;
        default: std::memcpy(to, &narrow, 4);
    }
}

// The number of differences, on every level and number of threads that does not give it.
long miscounted(const DecodeArgs& args, int64_t expected) {
    long wrong = 0;
    for (const Isa level : levels())
        for (const int threads : {1, 2, 7}) wrong += differs_cpu(args, threads, level) != expected;
    return wrong;
}

void differences_of(DType state, DType view_type, int64_t n, check::Random& r) {
    const int64_t wide = bytes_of(state), narrow = bytes_of(view_type);
    std::vector<unsigned char> data(static_cast<size_t>(n * wide) + 1);
    std::vector<unsigned char> view(static_cast<size_t>(n * narrow) + 1);
    for (int64_t i = 0; i < n; ++i) put(data.data() + i * wide, state, r.between(-(1 << 29), 1 << 29));
    const DecodeArgs args{n, data.data(), view.data(), state, view_type, 20};
    decode_cpu(args, 1, Isa::best);
    const int from = static_cast<int>(state), to = static_cast<int>(view_type), shown = static_cast<int>(n);
    check::expect(miscounted(args, 0) == 0, "decode's own view: state %d, view %d, n %d", from, to, shown);
    if (n == 0) return;
    std::set<int64_t> changed{0, n - 1};
    for (int k = 0; k < 5; ++k) changed.insert(r.between(0, n - 1));
    for (const int64_t i : changed) {
        const int64_t byte = i * narrow + r.between(0, narrow - 1);
        view[static_cast<size_t>(byte)] ^= static_cast<unsigned char>(1 << r.between(0, 7));
    }
    const int64_t count = static_cast<int64_t>(changed.size());
    check::expect(miscounted(args, count) == 0, "changed bits: state %d, view %d, n %d", from, to, shown);
    check::expect(miscounted(args, count + 1) != 0, "a wrong number was not noticed");
}

void differences() {
    check::Random r{3};
    for (const DType state : {DType::i32, DType::i64, DType::f32, DType::f64})
        for (const DType view : {DType::f32, DType::f64, DType::bf16, DType::f16})
            for (const int64_t n : {0, 1, 4095, 4096, 4097, 65536, 70001}) differences_of(state, view, n, r);
    int32_t zero = 0;  // the sign of a zero is a bit as any other
    float minus = -0.0f;
    const DecodeArgs args{1, &zero, &minus, DType::i32, DType::f32, 20};
    check::expect(differs_cpu(args, 1, Isa::best) == 1, "-0.0 is not 0.0");
}

}  // namespace

int main() {
    against_the_definition();
    shapes();
    many_dimensions();
    changes();
    places();
    differences();
    return check::finish("look");
}
