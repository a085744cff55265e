// SPDX-License-Identifier: BSD-3-Clause
#pragma once

/// The library's version, for `#if`. A test compares it with meson.build.
#define BALLAST_VERSION_MAJOR 0
#define BALLAST_VERSION_MINOR 1
#define BALLAST_VERSION_PATCH 0
