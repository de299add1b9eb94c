// The integration loops of revstep._C.
#pragma once

#include <nanobind/nanobind.h>

void bind_ode(nanobind::module_& m);
