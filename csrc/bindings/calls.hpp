// Calls of step and inverse by position, for module.cpp.
#pragma once

#include <nanobind/nanobind.h>

void bind_calls(nanobind::module_& m);
