// Whether this is an AddressSanitizer build: EMULATION_ASAN is 0 or 1.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define EMULATION_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATION_ASAN 1
#endif
#endif

#ifndef EMULATION_ASAN
#define EMULATION_ASAN 0
#endif
