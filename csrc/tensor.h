// A DLPack tensor as a checked view. The capsule stays the caller's: it is read during a call and not consumed.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "device/device.h"

namespace conan_fast {

using Capsule = pybind11::object;

// DLTensor of DLPack (https://dmlc.github.io/dlpack), the first member of DLManagedTensor.
struct DLPackTensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t dimensions;
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major
  uint64_t byte_offset;
};

enum class ScalarType { kBf16, kFp16, kFp32, kInt32, kInt64, kOther };

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::kBf16: return "bfloat16";
    case ScalarType::kFp16: return "float16";
    case ScalarType::kFp32: return "float32";
    case ScalarType::kInt32: return "int32";
    case ScalarType::kInt64: return "int64";
    default: return "another dtype";
  }
}

class Tensor {
 public:
  // Errors name the argument `name`. ValueError for shapes, strides, devices and alignment, TypeError for dtypes.
  Tensor(const char* name, const Capsule& capsule) : name_(name) {
    if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
      throw pybind11::type_error(name_ + " must be a DLPack capsule that has not been consumed, got " +
                                 Py_TYPE(capsule.ptr())->tp_name);
    }
    const auto* tensor = static_cast<const DLPackTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    device_type_ = tensor->device_type;
    device_id_ = tensor->device_id;
    data_ = static_cast<char*>(tensor->data) + tensor->byte_offset;
    shape_.assign(tensor->shape, tensor->shape + tensor->dimensions);
    strides_.resize(shape_.size());
    int64_t size = 1;
    for (int i = tensor->dimensions - 1; i >= 0; --i) {
      strides_[i] = tensor->strides != nullptr ? tensor->strides[i] : size;
      size *= shape_[i];
    }
    type_ = scalar_type(*tensor);
  }

  ScalarType type() const { return type_; }
  int rank() const { return static_cast<int>(shape_.size()); }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t size(int dimension) const { return shape_[dimension < 0 ? rank() + dimension : dimension]; }
  int64_t stride(int dimension) const { return strides_[dimension < 0 ? rank() + dimension : dimension]; }
  int device_id() const { return device_id_; }
  bool empty() const { return std::find(shape_.begin(), shape_.end(), 0) != shape_.end(); }
  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }

  const Tensor& require_device(int type, int id) const {
    if (device_type_ != type || device_id_ != id) {
      fail("must be on DLPack device " + text({type, id}) + ", got " + text({device_type_, device_id_}));
    }
    return *this;
  }

  const Tensor& require_type(ScalarType type) const {
    if (type_ != type) {
      throw pybind11::type_error(name_ + " must be " + name_of(type) + ", got " + name_of(type_));
    }
    return *this;
  }

  const Tensor& require_shape(const std::vector<int64_t>& shape) const {
    if (shape_ != shape) fail("must have shape " + text(shape) + ", got " + text(shape_));
    return *this;
  }

  const Tensor& require_rank(int rank) const {
    if (this->rank() != rank) fail("must have " + std::to_string(rank) + " dimensions, got shape " + text(shape_));
    return *this;
  }

  const Tensor& require_contiguous() const {
    if (empty()) return *this;  // without elements strides mean nothing
    int64_t size = 1;
    for (int i = rank() - 1; i >= 0; --i) {
      if (shape_[i] != 1 && strides_[i] != size) fail("must be contiguous, got strides " + text(strides_));
      size *= shape_[i];
    }
    return *this;
  }

  // Rows that can be read 16 bytes at a time: the last stride is 1, the others are multiples of 16 bytes.
  const Tensor& require_aligned_rows() const {
    if (empty()) return *this;
    const int per_chunk = type_ == ScalarType::kFp32 ? 4 : 8;
    bool good = reinterpret_cast<uintptr_t>(data_) % 16 == 0;
    for (int i = 0; i < rank(); ++i) {
      good &= shape_[i] == 1 || (i == rank() - 1 ? strides_[i] == 1 : strides_[i] % per_chunk == 0);
    }
    if (!good) fail("must have rows aligned to 16 bytes, got strides " + text(strides_));
    return *this;
  }

  // Throws ValueError.
  [[noreturn]] void fail(const std::string& message) const { throw pybind11::value_error(name_ + " " + message); }

 private:
  static std::string text(const std::vector<int64_t>& values) {
    std::string result = "[";
    for (size_t i = 0; i < values.size(); ++i) result += (i == 0 ? "" : ", ") + std::to_string(values[i]);
    return result + "]";
  }

  static ScalarType scalar_type(const DLPackTensor& tensor) {
    if (tensor.type_lanes != 1) return ScalarType::kOther;
    switch (tensor.type_code * 256 + tensor.type_bits) {  // codes: 0 int, 2 float, 4 bfloat
      case 4 * 256 + 16: return ScalarType::kBf16;
      case 2 * 256 + 16: return ScalarType::kFp16;
      case 2 * 256 + 32: return ScalarType::kFp32;
      case 0 * 256 + 32: return ScalarType::kInt32;
      case 0 * 256 + 64: return ScalarType::kInt64;
      default: return ScalarType::kOther;
    }
  }

  std::string name_;
  char* data_;
  std::vector<int64_t> shape_, strides_;
  ScalarType type_;
  int device_type_, device_id_;
};

// The tensors of one call, which must all be on the device of the first.
struct CallTensors {
  int device;

  explicit CallTensors(const Tensor& first) : device(first.device_id()) { first.require_device(kDeviceType, device); }

  Tensor tensor(const char* name, const Capsule& capsule, ScalarType type) const {
    return Tensor(name, capsule).require_device(kDeviceType, device).require_type(type);
  }
  // The data of a contiguous tensor.
  template <class T = float>
  T* data(const char* name, const Capsule& capsule, const std::vector<int64_t>& shape,
          ScalarType type = ScalarType::kFp32) const {
    return tensor(name, capsule, type).require_shape(shape).require_contiguous().data<T>();
  }
  // Null for None.
  template <class T = float>
  T* data_or_null(const char* name, const Capsule& capsule, const std::vector<int64_t>& shape,
                  ScalarType type = ScalarType::kFp32) const {
    return capsule.is_none() ? nullptr : data<T>(name, capsule, shape, type);
  }
};

}  // namespace conan_fast
