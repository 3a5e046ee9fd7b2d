// Launches the kernels that test the emulation by name, with buffers and integers as arguments.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "device/platform.h"

// An argument from tests/emulation/small_kernels.py.
struct Argument {
  char format;  // of the elements, as in Python's struct module; 'n': an integer
  void* data;
  int64_t number;
};

template <class T>
constexpr char format_of() {
  using Element = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<Element, float>) return 'f';
  if constexpr (std::is_same_v<Element, double>) return 'd';
  if constexpr (std::is_same_v<Element, int>) return 'i';
  if constexpr (std::is_same_v<Element, unsigned>) return 'I';
  if constexpr (std::is_same_v<Element, uint16_t>) return 'H';
  return '?';
}

template <class Parameter>
Parameter take(const Argument& argument) {
  if constexpr (std::is_pointer_v<Parameter>) {
    constexpr char format = format_of<std::remove_pointer_t<Parameter>>();
    if (argument.format != format) {
      throw std::invalid_argument(std::string("expected elements '") + format + "', got '" + argument.format + "'");
    }
    return static_cast<Parameter>(argument.data);
  } else {
    if (argument.format != 'n') throw std::invalid_argument("expected an integer, got a buffer");
    return static_cast<Parameter>(argument.number);
  }
}

// Kernels by name.
class Kernels {
 public:
  template <class... Parameters>
  void add(const std::string& name, void (*kernel)(Parameters...)) {
    launchers_[name] = [kernel](dim3 grid, dim3 block, size_t shared_bytes, const Argument* arguments, size_t count) {
      if (count != sizeof...(Parameters)) throw std::invalid_argument("wrong number of arguments");
      start(kernel, grid, block, shared_bytes, arguments, std::index_sequence_for<Parameters...>{});
    };
  }

  void launch(const std::string& name, dim3 grid, dim3 block, size_t shared_bytes, const Argument* arguments,
              size_t count) const {
    launchers_.at(name)(grid, block, shared_bytes, arguments, count);
  }

 private:
  template <class... Parameters, size_t... kIndices>
  static void start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                    const Argument* arguments, std::index_sequence<kIndices...>) {
    emulation::launch(kernel, grid, block, shared_bytes, take<Parameters>(arguments[kIndices])...);
  }

  std::map<std::string, std::function<void(dim3, dim3, size_t, const Argument*, size_t)>> launchers_;
};

void add_order_kernels(Kernels& kernels);
void add_bounds_kernels(Kernels& kernels);
void add_meeting_kernels(Kernels& kernels);
void add_function_kernels(Kernels& kernels);
void add_matrix_kernels(Kernels& kernels);
