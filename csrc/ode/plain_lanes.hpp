// The registers of lanes.hpp as plain arrays, for compilers without vector types: the same operations on the same lanes, and so
// the same bits. Included by lanes.hpp only.
#pragma once

namespace revstep {

template <class T>
struct Row {
    T lane[kWide];
    inline T operator[](int l) const { return lane[l]; }
};
typedef Row<double> Reals;
typedef Row<uint64_t> Words;
typedef Row<int64_t> Signs;

// `f(l)` of every lane l.
template <class T, class F>
RS_FN Row<T> row(F f) {
    Row<T> r;
    for (int l = 0; l < kWide; ++l) r.lane[l] = static_cast<T>(f(l));
    return r;
}

// A number beside a row is of the row's type, whatever it is written as.
template <class T>
struct Same {
    typedef T type;
};

#define RS_LANEWISE(R, op)                                                                                              \
    template <class T>                                                                                                  \
    RS_FN Row<R> operator op(const Row<T>& a, const Row<T>& b) {                                                        \
        return row<R>([&](int l) { return RS_LANE(a.lane[l] op b.lane[l]); });                                          \
    }                                                                                                                   \
    template <class T>                                                                                                  \
    RS_FN Row<R> operator op(const Row<T>& a, typename Same<T>::type b) {                                               \
        return row<R>([&](int l) { return RS_LANE(a.lane[l] op b); });                                                  \
    }                                                                                                                   \
    template <class T>                                                                                                  \
    RS_FN Row<R> operator op(typename Same<T>::type a, const Row<T>& b) {                                               \
        return row<R>([&](int l) { return RS_LANE(a op b.lane[l]); });                                                  \
    }

#define RS_LANE(x) (x)
RS_LANEWISE(T, +)
RS_LANEWISE(T, -)
RS_LANEWISE(T, *)
RS_LANEWISE(T, ^)
RS_LANEWISE(T, |)
RS_LANEWISE(T, &)
#undef RS_LANE
#define RS_LANE(x) ((x) ? -1 : 0)
RS_LANEWISE(int64_t, <)
RS_LANEWISE(int64_t, >)
#undef RS_LANE
#undef RS_LANEWISE

template <class T>
RS_FN Row<T> operator<<(const Row<T>& a, int b) {
    return row<T>([&](int l) { return a.lane[l] << b; });
}
template <class T>
RS_FN Row<T> operator>>(const Row<T>& a, int b) {
    return row<T>([&](int l) { return a.lane[l] >> b; });
}

// The same bits as another type.
template <class To, class From>
RS_FN To as(const From& x) {
    static_assert(sizeof(To) == sizeof(From), "one register");
    To r;
    __builtin_memcpy(&r, &x, sizeof r);
    return r;
}

RS_FN Reals pick(const Signs& where, const Reals& a, const Reals& b) {
    return row<double>([&](int l) { return where.lane[l] != 0 ? a.lane[l] : b.lane[l]; });
}
RS_FN Reals values_of(const Signs& x) {
    return row<double>([&](int l) { return static_cast<double>(x.lane[l]); });
}
RS_FN Reals load(const double* from) {
    Reals r;
    __builtin_memcpy(&r, from, sizeof r);
    return r;
}
RS_FN void store(double* to, const Reals& x) { __builtin_memcpy(to, &x, sizeof x); }

}  // namespace revstep
