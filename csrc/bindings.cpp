// The Python module: checks every argument, then starts kernels. Compiled twice, for the GPU (conan_fast._C) and for
// the CPU emulation (conan_fast._emulated); both have the same functions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "attention/launch.h"
#include "contrastive/bindings.h"
#include "contrastive/launch.h"
#include "device/runtime.h"
#include "tensor.h"

#if defined(CONAN_FAST_EMULATED)
#include "emulation/emulation.h"
#endif

namespace py = pybind11;

namespace conan_fast {
namespace {

constexpr std::array kHeadDims = {CONAN_FAST_HEAD_DIM_LIST};

// Calls function(std::integral_constant<int, head_dim>()).
template <size_t kIndex = 0, class Function>
void for_head_dim(int64_t head_dim, Function&& function) {
  if constexpr (kIndex < kHeadDims.size()) {
    if (head_dim == kHeadDims[kIndex]) return function(std::integral_constant<int, kHeadDims[kIndex]>());
    return for_head_dim<kIndex + 1>(head_dim, function);
  } else {
    std::string taken;
    for (int dim : kHeadDims) taken += (taken.empty() ? "" : ", ") + std::to_string(dim);
    throw py::value_error("head_dim must be one of " + taken + ", got " + std::to_string(head_dim));
  }
}

// For the build's report: threads and bytes of dynamic shared memory of a block, by kernel.
template <size_t... kIndices>
void list_launch_shapes(py::module_& module, std::index_sequence<kIndices...>) {
  py::dict threads, bytes;
  auto add = [&](const std::vector<LaunchShape>& kernels) {
    for (const auto& entry : kernels) {
      threads[py::str(entry.kernel)] = entry.threads;
      bytes[py::str(entry.kernel)] = entry.shared_bytes;
    }
  };
  add(common_launch_shapes());
  add(contrastive_launch_shapes());
  (add(attention_launch_shapes<kHeadDims[kIndices]>()), ...);
  module.attr("threads_per_block") = threads;
  module.attr("dynamic_shared_bytes") = bytes;
}

Rows rows_of(const Tensor& tensor) {  // [tokens, heads, head_dim] or [batch, tokens, heads, head_dim]
  // The stride of a dimension with one entry means nothing and may be anything, but kernels count addresses with it, of
  // rows that do not exist and are not read, and those must be aligned, too.
  auto stride = [&](int dimension) { return tensor.size(dimension) == 1 ? 0 : tensor.stride(dimension); };
  return {tensor.data<uint16_t>(), tensor.rank() == 4 ? stride(0) : 0, stride(-3), stride(-2)};
}

// What both passes are given. alpha_tensor, cu_seqlens and schedule may be None.
struct Call {
  AttentionParams params;
  Element element;
  int head_dim, device;
};

Call check_inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& logsumexp,
                  const py::object& cu_seqlens, int max_seqlen, float alpha, const py::object& alpha_tensor,
                  int saturation, float scale, const py::object& schedule) {
  Call call;
  AttentionParams& p = call.params;
  bool packed = !cu_seqlens.is_none();
  call.device = q.device_id();
  q.require_rank(packed ? 3 : 4);
  if (q.type() != ScalarType::kBf16) q.require_type(ScalarType::kFp16);
  call.element = q.type() == ScalarType::kBf16 ? Element::kBf16 : Element::kFp16;
  k.require_rank(q.rank());
  std::vector<int64_t> keys;
  for (int i = 0; i < q.rank(); ++i) keys.push_back(i == q.rank() - 2 ? k.size(-2) : q.size(i));
  for (const Tensor* tensor : {&q, &k, &v}) {
    tensor->require_device(kDeviceType, call.device).require_type(q.type()).require_aligned_rows();
  }
  k.require_shape(keys);
  v.require_shape(keys);
  call.head_dim = static_cast<int>(q.size(-1));
  constexpr int64_t kMost = 1LL << 30;
  for (int i = 0; i < q.rank(); ++i) {
    if (q.size(i) > kMost) throw py::value_error("q must have fewer than 2^30 entries in each dimension");
  }
  p.batch = packed ? 1 : static_cast<int>(q.size(0));
  p.tokens = static_cast<int>(q.size(-3));
  p.heads = static_cast<int>(q.size(-2));
  p.kv_heads = static_cast<int>(k.size(-2));
  if (p.kv_heads == 0 || p.heads % p.kv_heads != 0 || p.heads > 65535) {
    throw py::value_error("q must have a multiple of the heads of k, at most 65535, got " + std::to_string(p.heads) +
                          " and " + std::to_string(p.kv_heads));
  }
  std::vector<int64_t> lines = {p.heads, p.tokens};
  if (!packed) lines.insert(lines.begin(), p.batch);
  logsumexp.require_device(kDeviceType, call.device).require_type(ScalarType::kFp32).require_shape(lines);
  logsumexp.require_contiguous();
  if (!(scale > 0) || !(alpha >= 0 && alpha <= 1) || saturation < 0 || saturation > 2) {
    throw py::value_error("scale must be positive, alpha in [0, 1], saturation 0, 1 or 2");
  }
  p.scale = scale;
  p.alpha = alpha;
  p.saturation = static_cast<Saturation>(saturation);
  p.q = rows_of(q);
  p.k = rows_of(k);
  p.v = rows_of(v);
  p.logsumexp = logsumexp.data<float>();
  if (!alpha_tensor.is_none()) {
    Tensor tensor("alpha_tensor", alpha_tensor);
    tensor.require_device(kDeviceType, call.device).require_type(ScalarType::kFp32).require_rank(0);
    p.alpha_pointer = tensor.data<float>();
  }
  if (packed) {
    Tensor offsets("cu_seqlens", cu_seqlens), slots("schedule", schedule);
    offsets.require_device(kDeviceType, call.device).require_type(ScalarType::kInt32).require_rank(1);
    offsets.require_contiguous();
    if (offsets.size(0) == 0 || max_seqlen < 0) {
      throw py::value_error("cu_seqlens must have at least one entry and max_seqlen must not be negative");
    }
    p.cu_seqlens = offsets.data<int>();
    p.sequences = static_cast<int>(offsets.size(0)) - 1;
    p.max_seqlen = std::min(max_seqlen, p.tokens);
    slots.require_device(kDeviceType, call.device).require_type(ScalarType::kInt32).require_contiguous();
    slots.require_shape({schedule_slots(p.tokens, p.sequences), 4});
    p.schedule = slots.data<ScheduledTile>();
  }
  return call;
}

Rows output(const Tensor& tensor, const Tensor& like) {
  std::vector<int64_t> shape;
  for (int i = 0; i < like.rank(); ++i) shape.push_back(like.size(i));
  tensor.require_device(kDeviceType, like.device_id()).require_type(like.type()).require_shape(shape);
  tensor.require_aligned_rows();
  return rows_of(tensor);
}

void attention_forward(const py::object& q_, const py::object& k_, const py::object& v_, const py::object& cu_seqlens,
                       int max_seqlen, float alpha, const py::object& alpha_tensor, int saturation, float scale,
                       const py::object& out_, const py::object& logsumexp_, const py::object& schedule,
                       uintptr_t stream) {
  Tensor q("q", q_), k("k", k_), v("v", v_), out("out", out_), logsumexp("logsumexp", logsumexp_);
  Call call =
      check_inputs(q, k, v, logsumexp, cu_seqlens, max_seqlen, alpha, alpha_tensor, saturation, scale, schedule);
  call.params.out = output(out, q);
  for_head_dim(call.head_dim, [&](auto head_dim) {
    if (call.params.tokens == 0) return;
    DeviceGuard device(call.device);
    launch_attention_forward<head_dim>(call.params, call.element, reinterpret_cast<Stream>(stream));
  });
}

void attention_backward(const py::object& grad_out_, const py::object& q_, const py::object& k_, const py::object& v_,
                        const py::object& out_, const py::object& logsumexp_, const py::object& cu_seqlens,
                        int max_seqlen, float alpha, const py::object& alpha_tensor, int saturation, float scale,
                        const py::object& dq_, const py::object& dk_, const py::object& dv_, const py::object& dq_sum,
                        const py::object& delta_, const py::object& schedule, uintptr_t stream) {
  Tensor grad_out("grad_out", grad_out_), q("q", q_), k("k", k_), v("v", v_), out("out", out_);
  Tensor logsumexp("logsumexp", logsumexp_), delta("delta", delta_), dq("dq", dq_), dk("dk", dk_), dv("dv", dv_);
  Call call =
      check_inputs(q, k, v, logsumexp, cu_seqlens, max_seqlen, alpha, alpha_tensor, saturation, scale, schedule);
  AttentionParams& p = call.params;
  p.grad_out = output(grad_out, q);
  p.out = output(out, q);
  p.dq = output(dq, q);
  p.dk = output(dk, k);
  p.dv = output(dv, v);
  std::vector<int64_t> lines, sums;
  for (int i = 0; i < logsumexp.rank(); ++i) lines.push_back(logsumexp.size(i));
  for (int i = 0; i < q.rank(); ++i) sums.push_back(q.size(i));
  delta.require_device(kDeviceType, call.device).require_type(ScalarType::kFp32).require_shape(lines);
  p.delta = delta.require_contiguous().data<float>();
  if (!dq_sum.is_none()) {
    Tensor sum("dq_sum", dq_sum);
    sum.require_device(kDeviceType, call.device).require_type(ScalarType::kFp32).require_shape(sums);
    p.dq_sum = sum.require_contiguous().data<float>();
  }
  for_head_dim(call.head_dim, [&](auto head_dim) {
    if (p.tokens == 0) return;
    DeviceGuard device(call.device);
    launch_attention_backward<head_dim>(p, call.element, device.shared_memory_limit(),
                                        reinterpret_cast<Stream>(stream));
  });
}

}  // namespace
}  // namespace conan_fast

PYBIND11_MODULE(CONAN_FAST_MODULE, module) {
  using namespace conan_fast;
  module.doc() = "Kernels of conan_fast; tensors come as DLPack capsules, the stream as an integer.";
  module.attr("head_dims") = py::cast(std::vector<int>(kHeadDims.begin(), kHeadDims.end()));
  list_launch_shapes(module, std::make_index_sequence<kHeadDims.size()>());
  module.def("schedule_slots", &schedule_slots, py::arg("tokens"), py::arg("sequences"),
             "Rows of the int32 scratch tensor `schedule` [rows, 4] that a packed batch needs.");
  module.def("attention_forward", &attention_forward, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("cu_seqlens"),
             py::arg("max_seqlen"), py::arg("alpha"), py::arg("alpha_tensor"), py::arg("saturation"), py::arg("scale"),
             py::arg("out"), py::arg("logsumexp"), py::arg("schedule"), py::arg("stream"),
             "Writes out and logsumexp [batch, heads, tokens] (packed: [heads, tokens]).");
  module.def("attention_backward", &attention_backward, py::arg("grad_out"), py::arg("q"), py::arg("k"), py::arg("v"),
             py::arg("out"), py::arg("logsumexp"), py::arg("cu_seqlens"), py::arg("max_seqlen"), py::arg("alpha"),
             py::arg("alpha_tensor"), py::arg("saturation"), py::arg("scale"), py::arg("dq"), py::arg("dk"),
             py::arg("dv"), py::arg("dq_sum"), py::arg("delta"), py::arg("schedule"), py::arg("stream"),
             "Writes dk, dv and delta; adds dq / scale to dq_sum (zeros) if given, else writes dq.");
  bind_contrastive(module);
#if defined(CONAN_FAST_EMULATED)
  module.def("set_seed", &emulation::set_seed, py::arg("seed"), "Seed of the order in which warps and blocks run.");
  module.def(
      "set_shared_memory_limit", [](int bytes) { emulated_shared_memory_limit = bytes; }, py::arg("bytes"),
      "Shared memory of a block on the emulated chip: 227 KB on Hopper, 163 on 8.0, 99 on 8.6, 8.9 and 12.x.");
  module.def(
      "bank_conflicts", [] { return emulation::statistics().bank_conflicts; },
      "Bank conflicts of ldmatrix in this process so far.");
  module.def(
      "matrix_products", [] { return emulation::statistics().matrix_products; },
      "Products mma.m16n8k16 (4,096 FLOP) of a warp in this process so far.");
#else
  module.def(
      "driver_version",
      [] {
        int version = 0;
        check_cuda(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
        return version;
      },
      "Newest CUDA version that the driver supports: 13000 is 13.0; 0 without a driver.");
  module.def("runtime_version", [] { return CUDART_VERSION; }, "CUDA version that the kernels were compiled with.");
#endif
}
