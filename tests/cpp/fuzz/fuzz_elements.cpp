// Kernels that take every element by itself, encode, decode, checksum, scale, fingerprint and differs: any arguments are refused
// without a byte written, or done within the memory that they name, with the same bits at every level.
#include <algorithm>

#include "input.hpp"
#include "kernels/look.hpp"

using namespace fuzz;

namespace {

// `call(level, outputs, stats)`, at every level, on outputs of those sizes.
template <class Call>
bool everywhere(const std::vector<size_t>& sizes, Call call, std::vector<Block>* result = nullptr) {
    bool first_done = false;
    std::vector<Block> first;
    int64_t first_stats[4] = {};
    for (int level = 0; level < static_cast<int>(isa_levels().size()); ++level) {
        std::vector<Block> outputs;
        for (const size_t bytes : sizes) outputs.emplace_back(bytes, 99u);
        int64_t stats[4] = {1, 2, 3, 4};
        const bool done = accepted([&] { call(static_cast<Isa>(level), outputs, stats); });
        if (!done)
            for (size_t k = 0; k < sizes.size(); ++k) must(outputs[k] == Block(sizes[k], 99u), "a refused call has written");
        if (level == 0) {
            first = std::move(outputs), first_done = done;
            std::memcpy(first_stats, stats, sizeof stats);
            continue;
        }
        must(done == first_done, "levels refuse different calls");
        must(outputs == first && std::memcmp(stats, first_stats, sizeof stats) == 0, "levels give different bits");
    }
    if (result != nullptr) *result = std::move(first);
    return first_done;
}

void coding(Input& in) {
    const int64_t n = in.up_to(300), said = in.flag(60) ? (int64_t{1} << 47) + 1 + n : in.flag(60) ? -1 - n : n;
    const DType value = in.dtype(), state = in.dtype(), view = in.dtype();
    const int frac_bits = in.small(0, 60);
    const Block x = values(in, value, n);
    const bool null_x = in.flag(40), null_out = in.flag(40), no_view = in.flag(3), no_stats = in.flag(40);
    const size_t states = static_cast<size_t>(n) * width(state), views = static_cast<size_t>(n) * width(view);
    std::vector<Block> encoded;
    const bool done = everywhere({states, views}, [&](Isa isa, auto& out, int64_t* stats) {
        encode_cpu({said, null_x ? nullptr : x.data(), null_out ? nullptr : out[0].data(), no_view ? nullptr : out[1].data(), no_stats ? nullptr : stats, value, state, view, frac_bits}, 2, isa);
    }, &encoded);
    if (!done) return;
    int64_t stats[4];
    checksum_cpu({n, encoded[0].data(), stats, state}, 1, Isa::best);
    std::vector<Block> decoded;
    if (!everywhere({views}, [&](Isa isa, auto& out, int64_t*) { decode_cpu({n, encoded[0].data(), out[0].data(), state, view, frac_bits}, 1, isa); }, &decoded)) return;
    if (!no_view) must(decoded[0] == encoded[1], "decode does not give the view of encode");
    must(differs_cpu({n, encoded[0].data(), decoded[0].data(), state, view, frac_bits}, 2, Isa::best) == 0, "a view differs from itself");
    if (n == 0) return;
    decoded[0].data()[in.up_to(n - 1) * static_cast<int64_t>(width(view))] ^= 1;
    must(differs_cpu({n, encoded[0].data(), decoded[0].data(), state, view, frac_bits}, 2, Isa::best) == 1, "one changed element was not counted");
}

void scaling(Input& in) {
    const int64_t n = in.up_to(300);
    ScaleArgs s{};
    s.n = n, s.count = in.small(1, 3), s.value_type = in.dtype(), s.last_type = in.dtype();
    for (int k = 0; k < kMaxScaled; ++k) s.factor[k] = in.coefficient(), s.factor1[k] = in.coefficient();
    if (in.flag(3)) {
        s.row_length = in.flag(8) ? in.raw<int16_t>() : 1 + in.up_to(40);
        if (s.row_length > 0 && !in.flag(8)) s.n -= s.n % s.row_length;
    }
    const Block g = values(in, s.value_type, n), choice(static_cast<size_t>(n) + 1, in.raw<uint32_t>());
    s.g = in.flag(40) ? nullptr : g.data();
    s.choice = (s.row_length != 0) != in.flag(40) ? choice.data() : nullptr;
    const int missing = in.flag(20) ? in.small(0, 2) : -1;
    const size_t wide = static_cast<size_t>(n) * width(s.value_type), last = static_cast<size_t>(n) * width(s.last_type);
    std::vector<size_t> sizes;
    for (int k = 0; k < kMaxScaled; ++k) sizes.push_back(k + 1 == s.count ? last : wide);
    everywhere(sizes, [&](Isa isa, auto& out, int64_t*) {
        for (int k = 0; k < kMaxScaled; ++k) s.out[k] = k == missing ? nullptr : out[static_cast<size_t>(k)].data();
        scale_cpu(s, 1, isa);
    });
}

// Strides of any kind; memory is only there for those that stay within it, and only those are read.
void sampling(Input& in) {
    static const int widths[] = {1, 2, 4, 8, 16};
    const int w = in.flag(20) ? in.small(-1, 17) : widths[in.byte() % 5];
    const size_t dims = in.byte() % 12;
    std::vector<int64_t> size, stride;
    int64_t furthest = 0, count = 1;
    for (size_t d = 0; d < dims; ++d) {
        size.push_back(in.flag(10) ? in.raw<int8_t>() : 1 + in.up_to(5));
        stride.push_back(in.flag(10) ? in.raw<int8_t>() : in.up_to(64));
        furthest += size[d] > 0 ? (size[d] - 1) * stride[d] : 0;
        if (stride[d] < 0 || size[d] < 0) furthest = INT16_MAX;
        count *= size[d];
    }
    const int64_t every = in.flag(10) ? in.raw<int64_t>() : 1 + in.up_to(8);
    const uint32_t seed = in.raw<uint32_t>();
    const bool fits = furthest < 8192;
    const Block bytes(fits ? static_cast<size_t>(furthest + 1) * static_cast<size_t>(std::clamp(w, 1, 16)) : 1, seed);
    everywhere({}, [&](Isa isa, auto&, int64_t* stats) {
        const SampleArgs s = sample_args(bytes.data(), w, size, stride, every, seed, stats);
        if (fits && count <= 1 << 20) sample_cpu(s, isa);
    });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in(data, size);
    const uint8_t which = in.byte() % 3;
    if (which == 0) coding(in);
    else if (which == 1) scaling(in);
    else sampling(in);
    return 0;
}
