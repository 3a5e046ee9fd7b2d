#include "attention/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "attention/launch.h"
#include "tensor.h"

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
    std::string supported;
    for (int dim : kHeadDims) supported += (supported.empty() ? "" : ", ") + std::to_string(dim);
    throw py::value_error("head_dim must be one of " + supported + ", got " + std::to_string(head_dim));
  }
}

std::vector<std::string> saturation_names() {
  std::vector<std::string> names;
  for (int code = 0; const char* name = name_of(static_cast<Saturation>(code)); ++code) names.emplace_back(name);
  return names;
}

Rows rows_of(const Tensor& tensor) {  // [tokens, heads, head_dim] or [batch, tokens, heads, head_dim]
  // A dimension of size 1 may have any stride. Kernels compute addresses of absent rows with it, without reading them;
  // these addresses must be aligned as well.
  auto stride = [&](int dimension) { return tensor.size(dimension) == 1 ? 0 : tensor.stride(dimension); };
  return {tensor.data<uint16_t>(), tensor.rank() == 4 ? stride(0) : 0, stride(-3), stride(-2)};
}

// The checked arguments of both passes.
struct AttentionCall {
  Tensor q;
  CallTensors tensors{q};
  std::vector<int64_t> key_shape;  // of k and v
  std::vector<int64_t> row_shape;  // [batch, heads, tokens], packed [heads, tokens]
  AttentionParams params;

  AttentionCall(const Capsule& q_, const Capsule& k_, const Capsule& v, bool packed) : q("q", q_) {
    q.require_rank(packed ? 3 : 4);
    if (q.type() != ScalarType::kBf16) q.require_type(ScalarType::kFp16);
    for (int64_t size : q.shape()) {
      if (size > 1LL << 30) throw py::value_error("q must have at most 2^30 entries in each dimension");
    }
    key_shape = q.shape();
    key_shape[q.rank() - 2] = Tensor("k", k_).require_rank(q.rank()).size(-2);
    params.q = rows("q", q_, q.shape());
    params.k = rows("k", k_, key_shape);
    params.v = rows("v", v, key_shape);
    params.batch = packed ? 1 : static_cast<int>(q.size(0));
    params.tokens = static_cast<int>(q.size(-3));
    params.heads = static_cast<int>(q.size(-2));
    params.kv_heads = static_cast<int>(key_shape[q.rank() - 2]);
    if (params.kv_heads == 0 || params.heads % params.kv_heads != 0 || params.heads > 65535) {
      throw py::value_error("q must have a multiple of the heads of k, at most 65535, got " +
                            std::to_string(params.heads) + " and " + std::to_string(params.kv_heads));
    }
    row_shape = {params.heads, params.tokens};
    if (!packed) row_shape.insert(row_shape.begin(), params.batch);
  }

  // A tensor with the dtype and the device of q.
  Rows rows(const char* name, const Capsule& capsule, const std::vector<int64_t>& shape) const {
    return rows_of(tensors.tensor(name, capsule, q.type()).require_shape(shape).require_aligned_rows());
  }

  Rows rows_or_null(const char* name, const Capsule& capsule, const std::vector<int64_t>& shape) const {
    return capsule.is_none() ? Rows() : rows(name, capsule, shape);
  }

  void set_mask(float alpha, const Capsule& alpha_tensor, int saturation) {
    if (!(alpha >= 0 && alpha <= 1)) throw py::value_error("alpha must be in [0, 1], got " + std::to_string(alpha));
    params.alpha = alpha;
    params.alpha_pointer = tensors.data_or_null("alpha_tensor", alpha_tensor, {});
    params.saturation = static_cast<Saturation>(saturation);
    if (name_of(params.saturation) == nullptr) {
      throw py::value_error("saturation must be in [0, " + std::to_string(saturation_names().size()) + "), got " +
                            std::to_string(saturation));
    }
  }

  void set_scale(float scale) {
    if (!(scale > 0)) throw py::value_error("scale must be positive, got " + std::to_string(scale));
    params.scale = scale;
  }

  void set_sequences(const Capsule& cu_seqlens, int max_seqlen, const Capsule& schedule) {
    if (cu_seqlens.is_none()) return;
    const Tensor offsets = tensors.tensor("cu_seqlens", cu_seqlens, ScalarType::kInt32).require_rank(1);
    if (offsets.require_contiguous().size(0) == 0 || max_seqlen < 0) {
      throw py::value_error("cu_seqlens must have at least one entry and max_seqlen must not be negative");
    }
    params.cu_seqlens = offsets.data<int>();
    params.sequences = static_cast<int>(offsets.size(0)) - 1;
    params.max_seqlen = std::min(max_seqlen, params.tokens);
    const std::vector<int64_t> shape = {schedule_slots(params.tokens, params.sequences), 4};
    params.schedule = tensors.data<ScheduledTile>("schedule", schedule, shape, ScalarType::kInt32);
  }

  // launch(std::integral_constant<int, head_dim>(), element, target)
  template <class Launch>
  void run(uintptr_t stream, Launch&& launch) const {
    for_head_dim(q.size(-1), [&](auto head_dim) {
      if (params.tokens == 0) return;
      DeviceGuard device(tensors.device);
      launch(head_dim, q.type() == ScalarType::kBf16 ? Element::kBf16 : Element::kFp16, device.target(stream));
    });
  }
};

void attention_forward(const Capsule& q, const Capsule& k, const Capsule& v, const Capsule& cu_seqlens, int max_seqlen,
                       float alpha, const Capsule& alpha_tensor, int saturation, float scale, const Capsule& out,
                       const Capsule& logsumexp, const Capsule& schedule, uintptr_t stream) {
  AttentionCall call(q, k, v, !cu_seqlens.is_none());
  call.set_mask(alpha, alpha_tensor, saturation);
  call.set_scale(scale);
  call.set_sequences(cu_seqlens, max_seqlen, schedule);
  call.params.logsumexp = call.tensors.data("logsumexp", logsumexp, call.row_shape);
  call.params.out = call.rows("out", out, call.q.shape());
  call.run(stream, [&](auto head_dim, Element element, const LaunchTarget& target) {
    launch_attention_forward<head_dim>(call.params, element, target);
  });
}

void attention_backward(const Capsule& grad_out, const Capsule& q, const Capsule& k, const Capsule& v,
                        const Capsule& out, const Capsule& logsumexp, const Capsule& cu_seqlens, int max_seqlen,
                        float alpha, const Capsule& alpha_tensor, int saturation, float scale, const Capsule& dq,
                        const Capsule& dk, const Capsule& dv, const Capsule& dq_sum, const Capsule& delta,
                        const Capsule& schedule, uintptr_t stream) {
  AttentionCall call(q, k, v, !cu_seqlens.is_none());
  call.set_mask(alpha, alpha_tensor, saturation);
  call.set_scale(scale);
  call.set_sequences(cu_seqlens, max_seqlen, schedule);
  AttentionParams& p = call.params;
  p.logsumexp = call.tensors.data("logsumexp", logsumexp, call.row_shape);
  p.delta = call.tensors.data("delta", delta, call.row_shape);
  p.grad_out = call.rows("grad_out", grad_out, call.q.shape());
  p.out = call.rows("out", out, call.q.shape());
  p.dq = call.rows_or_null("dq", dq, call.q.shape());
  p.dk = call.rows_or_null("dk", dk, call.key_shape);
  p.dv = call.rows_or_null("dv", dv, call.key_shape);
  p.dq_sum = call.tensors.data_or_null("dq_sum", dq_sum, call.q.shape());
  if (dk.is_none() != dv.is_none()) throw py::value_error("dk and dv must both be tensors or both be None");
  if (!dq_sum.is_none() && dk.is_none()) throw py::value_error("dq_sum must be None without dk and dv: pass dq");
  call.run(stream, [&](auto head_dim, Element element, const LaunchTarget& target) {
    launch_attention_backward<head_dim>(p, element, target);
  });
}

template <size_t... kIndices>
std::vector<LaunchShape> launch_shapes(std::index_sequence<kIndices...>) {
  std::vector<LaunchShape> shapes = common_launch_shapes();
  auto add = [&](const std::vector<LaunchShape>& more) { shapes.insert(shapes.end(), more.begin(), more.end()); };
  (add(attention_launch_shapes<kHeadDims[kIndices]>()), ...);
  return shapes;
}

}  // namespace

std::vector<LaunchShape> attention_launch_shapes() {
  return launch_shapes(std::make_index_sequence<kHeadDims.size()>());
}

void bind_attention(py::module_& module) {
  using py::arg;
  module.attr("head_dims") = py::cast(std::vector<int>(kHeadDims.begin(), kHeadDims.end()));
  module.attr("saturations") = py::cast(saturation_names());  // index: the code
  module.def("schedule_slots", &schedule_slots, arg("tokens"), arg("sequences"),
             "Rows of the int32 scratch tensor `schedule` [rows, 4] that a packed batch needs.");
  module.def("attention_forward", &attention_forward, arg("q"), arg("k"), arg("v"), arg("cu_seqlens"),
             arg("max_seqlen"), arg("alpha"), arg("alpha_tensor"), arg("saturation"), arg("scale"), arg("out"),
             arg("logsumexp"), arg("schedule"), arg("stream"),
             "Writes out and logsumexp [batch, heads, tokens] (packed: [heads, tokens]).");
  module.def("attention_backward", &attention_backward, arg("grad_out"), arg("q"), arg("k"), arg("v"), arg("out"),
             arg("logsumexp"), arg("cu_seqlens"), arg("max_seqlen"), arg("alpha"), arg("alpha_tensor"),
             arg("saturation"), arg("scale"), arg("dq"), arg("dk"), arg("dv"), arg("dq_sum"), arg("delta"),
             arg("schedule"), arg("stream"),
             "Writes delta, and those of dq, dk and dv that are not None (dk and dv: both or none). Adds dq / scale to "
             "dq_sum (zeros) if it is not None.");
}

}  // namespace conan_fast
