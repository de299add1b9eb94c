// Encoding, decoding, checksums, multiples and fingerprints on the shim and on the CPU.
#pragma once

#include "fibers.hpp"
#include "kernels/look.hpp"
#include "trial.hpp"

namespace trial {

struct Few {
    Room in, out[3], choice;
    explicit Few(size_t most) : in(8 * most), out{Room(8 * most), Room(8 * most), Room(8 * most)}, choice(most) {}
    bool intact() const { return in.intact() && out[0].intact() && out[1].intact() && out[2].intact() && choice.intact(); }
};

// Where an array lies: the same for both runs would hide what depends on it.
struct Place {
    bool end;
    size_t off;
    static Place random(check::Random& r, size_t w) {
        const uint64_t kind = r.next() % 3;
        return {kind == 0, kind == 2 ? w * (r.next() % 8) : 0};
    }
};

inline void intact(const Few& few) {
    if (!few.intact()) throw std::logic_error("something beside an array was written");
}

inline int64_t random_length(check::Random& r, int64_t longest) {
    static const int64_t lengths[] = {0, 1, 2, 7, 8, 9, 31, 255, 256, 257, 1023, 2048, 2051};
    return r.next() % 3 == 0 ? r.between(0, longest) : std::min(longest, one_of(r, lengths));
}

inline bool equal_stats(const int64_t* a, const int64_t* b, bool checksum) {
    return (!checksum || a[0] == b[0]) && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

inline void one_coding(check::Random& r, Few& few, int64_t longest, long number) {
    const DType state = one_of(r, kStates), value = one_of(r, kValues), view_type = one_of(r, kValues);
    const int64_t n = random_length(r, longest);
    const size_t size = static_cast<size_t>(n);
    const int frac = fixed(state) ? static_cast<int>(r.between(0, state == DType::i32 ? 30 : 61)) : 0;
    const Bytes x = make_values(r, value, n, r.next() % 2 == 0, std::ldexp(state == DType::i32 ? 0x1p31 : 0x1p62, -frac));
    const bool has_view = r.next() % 4 != 0;
    const revstep::Isa isa = static_cast<revstep::Isa>(r.next() % revstep::isa_levels().size());
    Bytes out[2], view[2];
    int64_t stats[2][4];
    for (int k = 0; k < 2; ++k) {
        const Place a = Place::random(r, width(value)), b = Place::random(r, width(state)), c = Place::random(r, width(view_type));
        revstep::EncodeArgs s{};
        s.n = n;
        s.x = few.in.take(x, a.end, a.off);
        s.out = few.out[0].take(size * width(state), b.end, b.off);
        unsigned char* v = few.out[1].take(has_view ? size * width(view_type) : 0, c.end, c.off);
        few.out[2].take(0, false, 0);
        few.choice.take(0, false, 0);
        s.view = has_view ? v : nullptr;
        s.stats = stats[k];
        s.value_type = value;
        s.state = state;
        s.view_type = view_type;
        s.frac_bits = frac;
        if (k == 0) revstep::encode_cuda(s, nullptr);
        else revstep::encode_cpu(s, 1, isa);
        out[k] = few.out[0].bytes();
        view[k] = few.out[1].bytes();
        intact(few);
    }
    const bool numbers = same(out[0], out[1], state, "encode", number);
    same(view[0], view[1], view_type, "the view of encode", number);
    check::expect(equal_stats(stats[0], stats[1], numbers), "trial %ld: the statistics of encode", number);
    const Bytes states = make_states(r, state, n, r.next() % 2 == 0);
    for (int k = 0; k < 2; ++k) {
        const Place a = Place::random(r, width(state)), b = Place::random(r, width(view_type));
        const revstep::DecodeArgs s{n, few.in.take(states, a.end, a.off), few.out[0].take(size * width(view_type), b.end, b.off), state, view_type, frac};
        if (k == 0) revstep::decode_cuda(s, nullptr);
        else revstep::decode_cpu(s, 1, isa);
        out[k] = few.out[0].bytes();
        const revstep::ChecksumArgs sum{n, few.in.bytes().empty() ? nullptr : s.state_data, stats[k], state};
        if (k == 0) revstep::checksum_cuda(sum, nullptr);
        else revstep::checksum_cpu(sum, 1, isa);
        intact(few);
    }
    same(out[0], out[1], view_type, "decode", number);
    check::expect(equal_stats(stats[0], stats[1], true), "trial %ld: the checksum", number);
    count().launches += 3;
    count().arrays += 2;
}

inline void one_scale(check::Random& r, Few& few, int64_t longest, long number) {
    const bool aligned = r.next() % 2 == 0;
    const DType value = one_of(r, kValues), last = aligned && r.next() % 2 == 0 ? value : aligned ? DType::f32 : one_of(r, kValues);
    int64_t n = random_length(r, longest), row = 0;
    if (aligned) n -= n % 8;
    Bytes choice;
    if (r.next() % 2 == 0) {
        const int64_t several[] = {1, 3, 8, 32, 500};
        row = std::min(std::max<int64_t>(n, 1), one_of(r, several));
        n = n / row * row;
        for (int64_t i = 0; i < n / row; ++i) choice.push_back(static_cast<unsigned char>(r.next() % 2));
    }
    const size_t size = static_cast<size_t>(n);
    const Bytes g = make_values(r, value, n, r.next() % 2 == 0, 1e30);
    const int outputs = static_cast<int>(r.between(1, revstep::kMaxScaled));
    revstep::ScaleArgs s{};
    for (int k = 0; k < outputs; ++k) {
        s.factor[k] = r.next() % 4 == 0 ? 0.0 : (r.unit() - 0.5) * 3;
        s.factor1[k] = row == 0 || r.next() % 4 == 0 ? 0.0 : (r.unit() - 0.5) * 3;
    }
    Bytes out[2][3];
    const revstep::Isa isa = static_cast<revstep::Isa>(r.next() % revstep::isa_levels().size());
    for (int k = 0; k < 2; ++k) {
        const Place a = aligned ? Place{false, 0} : Place::random(r, width(value));
        s.n = n;
        s.g = few.in.take(g, a.end, a.off);
        s.count = outputs;
        s.value_type = value;
        s.last_type = last;
        for (int o = 0; o < revstep::kMaxScaled; ++o) {
            const DType t = o + 1 < outputs ? value : last;
            const Place b = aligned ? Place{false, 16 * (r.next() % 2)} : Place::random(r, width(t));
            unsigned char* at = few.out[o].take(o < outputs ? size * width(t) : 0, b.end, b.off);
            s.out[o] = o < outputs ? at : nullptr;
        }
        s.choice = row != 0 ? few.choice.take(choice, r.next() % 2 == 0, 0) : nullptr;
        if (row == 0) few.choice.take(0, false, 0);
        s.row_length = row;
        if (k == 0) revstep::scale_cuda(s, nullptr);
        else revstep::scale_cpu(s, 1, isa);
        for (int o = 0; o < outputs; ++o) out[k][o] = few.out[o].bytes();
        intact(few);
    }
    for (int o = 0; o < outputs; ++o) same(out[0][o], out[1][o], o + 1 < outputs ? value : last, "a multiple", number);
    ++count().launches;
}

inline void one_sample(check::Random& r, Few& few, int64_t longest, long number) {
    const int widths[] = {1, 2, 4, 8, 16}, w = one_of(r, widths);
    std::vector<int64_t> size, stride;
    int64_t elements = 1;
    const int64_t dims = r.between(0, 4);
    for (int64_t d = 0; d < dims; ++d) {
        size.push_back(r.between(1, 12));
        stride.push_back(elements);
        elements *= size.back() + r.between(0, 1);  // a gap, at times
    }
    if (dims > 1 && r.next() % 2 == 0) {
        std::swap(size.front(), size.back());
        std::swap(stride.front(), stride.back());
    }
    if (elements * w > 8 * longest) return;
    Bytes x(static_cast<size_t>(elements * w));
    for (unsigned char& b : x) b = static_cast<unsigned char>(r.next());
    int64_t sum[2] = {-1, -2};
    const int64_t every = r.between(1, 5);
    const uint32_t seed = static_cast<uint32_t>(r.next());
    unsigned char* at = few.in.take(x, r.next() % 2 == 0, 0);
    for (int k = 0; k < 2; ++k) {
        const revstep::SampleArgs s = revstep::sample_args(at, w, size, stride, every, seed, &sum[k]);
        if (k == 0) revstep::sample_cuda(s, nullptr);
        else revstep::sample_cpu(s);
    }
    ++count().launches;
    ++count().arrays;
    check::expect(sum[0] == sum[1], "trial %ld: the fingerprint", number);
}

}  // namespace trial
