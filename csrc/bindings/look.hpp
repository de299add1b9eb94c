// The kernels that only look, for module.cpp.
#pragma once

#include <nanobind/nanobind.h>

void bind_look(nanobind::module_& m);
