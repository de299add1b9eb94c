// Pointers as Python hands them over: integers, 0 for null.
#pragma once

#include <cstdint>

namespace revstep {

typedef uintptr_t Address;

template <class T>
T* at(Address a) {
    return reinterpret_cast<T*>(a);
}

inline Address address_of(const volatile void* p) { return reinterpret_cast<Address>(p); }

}  // namespace revstep
