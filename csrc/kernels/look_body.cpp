// The loops of a fingerprint. Compiled once per instruction set; only `look_body` is visible outside.
// Elements are brought into a tile of 32-bit or 64-bit words, one after the other as sample.hpp numbers them,
// and the tile's sum is the checksum's. Words that already lie so in memory are summed there.
#include "cpu_streams.hpp"
#include "look_parts.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

RS_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

RS_FN bool is_one_run(const SampleArgs& s) { return s.dims == 1 && s.stride[0] == 1; }

// Reads elements in their order, from any of them on. No division in the way from one to the next.
template <class Word, class S>
class Walk {
  public:
    explicit Walk(const SampleArgs& s) : s_(s), last_(s.dims - 1) {}

    void seek(int64_t i) {
        at_ = sample_offset(s_, i);
        for (int d = last_; d > 0; --d) {
            index_[d] = i % s_.size[d];
            i /= s_.size[d];
        }
        index_[0] = i;
    }

    void read(S* out, int64_t count) {
        const int64_t step = s_.stride[last_];
        while (count > 0) {
            const int64_t run = smaller(count, s_.size[last_] - index_[last_]);
            const Word* x = static_cast<const Word*>(s_.data) + at_;
            if (step == 1) for (int64_t k = 0; k < run; ++k) out[k] = static_cast<S>(x[k]);
            else for (int64_t k = 0; k < run; ++k) out[k] = static_cast<S>(x[k * step]);
            index_[last_] += run;
            at_ += run * step;
            out += run;
            count -= run;
            carry();
        }
    }

  private:
    // A dimension that has come to its end begins anew, and the one outside it goes one further.
    void carry() {
        for (int d = last_; d > 0 && index_[d] == s_.size[d]; --d) {
            index_[d] = 0;
            at_ -= s_.size[d] * s_.stride[d];
            ++index_[d - 1];
            at_ += s_.stride[d - 1];
        }
    }

    const SampleArgs& s_;
    const int last_;
    int64_t index_[kSampleDims] = {};
    int64_t at_ = 0;
};

// All of one run in memory. Narrow words are widened first, which the compiler does many at a time.
template <class Word, class S>
uint64_t whole_run(const SampleArgs& s) {
    const Word* x = static_cast<const Word*>(s.data);
    uint64_t sum = 0;
    for_tiles_in_streams(0, s.n, [&](int64_t at) {
        const int m = tile_length(at, s.n);
        if constexpr (sizeof(Word) == sizeof(S)) {
            sum += checksum_tile(reinterpret_cast<const S*>(x + at), at, m);
        } else {
            alignas(64) S words[kTile];
            for (int k = 0; k < m; ++k) words[k] = static_cast<S>(x[at + k]);
            sum += checksum_tile(words, at, m);
        }
    });
    return sum;
}

template <class Word, class S>
uint64_t whole(const SampleArgs& s) {
    alignas(64) S words[kTile];
    Walk<Word, S> walk(s);
    uint64_t sum = 0;
    for (int64_t at = 0; at < s.n; at += kTile) {
        const int m = tile_length(at, s.n);
        walk.read(words, m);
        sum += checksum_tile(words, at, m);
    }
    return sum;
}

// Elements [i, i + m) of one unit, which lies within one period of the weights.
template <class Word, class S>
RS_FN uint64_t unit_sum(const Word* x, int64_t i, int64_t m) {
    const uint32_t* inner = kChecksumTable.inner + i % kChecksumPeriod;
    uint64_t sum = 0;
    for (int64_t k = 0; k < m; ++k) sum += checksum_term(bits_of(static_cast<S>(x[k])), inner[k]);
    return sum * checksum_outer(i);
}

// One run in memory, as most tensors are: whole units of a constant length, and the line some units ahead is
// asked for, since the hardware does not guess which one comes next.
template <class Word, class S>
uint64_t sampled_run(const SampleArgs& s) {
    constexpr int64_t group = kSampleUnit / static_cast<int64_t>(sizeof(Word)), ahead = 12;
    const Word* x = static_cast<const Word*>(s.data);
    const int64_t chosen = sample_chosen(s);
    uint64_t sum = 0;
    for (int64_t j = 0; j < chosen; ++j) {
        if (j + ahead < chosen) __builtin_prefetch(x + sample_unit(s, j + ahead) * group);
        const int64_t i = sample_unit(s, j) * group;
        sum += i + group > s.n ? unit_sum<Word, S>(x + i, i, s.n - i) : unit_sum<Word, S>(x + i, i, group);
    }
    return sum;
}

template <class Word, class S>
uint64_t sampled(const SampleArgs& s) {
    constexpr int64_t group = kSampleUnit / static_cast<int64_t>(sizeof(Word));
    const int64_t chosen = sample_chosen(s);
    alignas(64) S words[group];
    Walk<Word, S> walk(s);
    uint64_t sum = 0;
    for (int64_t j = 0; j < chosen; ++j) {
        const int64_t i = sample_unit(s, j) * group, m = smaller(group, s.n - i);
        walk.seek(i);
        walk.read(words, m);
        sum += unit_sum<S, S>(words, i, m);
    }
    return sum;
}

template <class Word, class S>
uint64_t sample_as(const SampleArgs& s) {
    if (is_one_run(s)) return s.every == 1 ? whole_run<Word, S>(s) : sampled_run<Word, S>(s);
    return s.every == 1 ? whole<Word, S>(s) : sampled<Word, S>(s);
}

uint64_t sample(const SampleArgs& s) {
    if (s.n == 0) return 0;
    switch (s.width) {
        case 8: return sample_as<int64_t, int64_t>(s);
        case 4: return sample_as<int32_t, int32_t>(s);
        case 2: return sample_as<uint16_t, int32_t>(s);
        default: return sample_as<uint8_t, int32_t>(s);
    }
}

}  // namespace

const LookBody look_body = {sample};

}  // namespace REVSTEP_ISA
}  // namespace revstep
